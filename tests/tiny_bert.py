"""A tiny BERT on disk, as an encoder from a hub would stand there."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch


def build(folder: Path, words: Sequence[str], layers: int, longest: int = 24) -> str:
    """Write the model and a tokenizer that knows `words` to `folder`, and return the folder's name."""
    from transformers import BertConfig, BertModel, BertTokenizer

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizer(str(folder / "vocab.txt"), model_max_length=longest).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=longest,
    )
    spread(BertModel(config)).save_pretrained(folder)
    return str(folder)


def spread(network: Any) -> Any:
    """The network with random weights that keep the embeddings of its tokens apart."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "LayerNorm" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return network
