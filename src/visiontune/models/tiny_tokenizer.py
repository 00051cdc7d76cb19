"""The tokenizer of the tiny models: byte-level BPE as published ones have it, trained on the texts at hand."""

from collections.abc import Iterable, Sequence
from typing import Any

VOCABULARY = 512


def train_byte_level(texts: Iterable[str], special: Sequence[str]) -> Any:
    """A `tokenizers.Tokenizer` of at most 512 tokens, the special ones first; digits stand one by one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
