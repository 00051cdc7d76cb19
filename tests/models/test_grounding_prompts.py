"""Facts about class names as prompts of Grounding DINO."""

import pytest
import torch
from transformers.models.grounding_dino.modeling_grounding_dino import build_label_maps
from transformers.models.grounding_dino.processing_grounding_dino import GroundingDinoProcessor

from visiontune.errors import RecipeError
from visiontune.models.grounding_dino_tiny import tokenizer_of
from visiontune.models.grounding_prompts import make_prompts

NAMES = ("Red blood cell", "No. 5", "platelets", "t-shirt, red", "café", "is it?  a\tcat", "[SEP]")


def test_a_name_stays_one_phrase_and_the_prompt_is_the_models_own():
    tokenizer = tokenizer_of(NAMES)
    prompts = make_prompts(NAMES, tokenizer, 64)
    assert prompts.phrases == ("red blood cell", "no 5", "platelets", "t-shirt red", "café", "is it a cat", "[sep]")
    (chunk,) = prompts.chunks
    text = GroundingDinoProcessor._preprocess_input_text(None, list(prompts.phrases))
    assert chunk.input_ids.tolist() == tokenizer(text)["input_ids"]
    assert chunk.classes.tolist() == list(range(7))


def test_tokens_belong_to_the_classes_that_transformers_finds_in_them():
    (chunk,) = make_prompts(NAMES, tokenizer_of(NAMES), 64).chunks
    (expected,) = build_label_maps(torch.zeros(1, 1, len(chunk.input_ids)), chunk.input_ids[None])
    assert torch.equal(chunk.tokens_of(), expected.float())
    likely = torch.rand(2, 3, len(NAMES), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(chunk.to_classes(chunk.to_tokens(likely)), likely)
    assert not chunk.to_tokens(torch.ones(len(NAMES), dtype=torch.bool))[chunk.place == len(NAMES)].any()


def test_a_thousand_classes_are_asked_for_once_each_in_as_few_prompts_as_hold_them():
    names = [f"part {number}" for number in range(1000)]
    tokenizer = tokenizer_of(names)
    prompts = make_prompts(names, tokenizer, 64)
    assert torch.cat([chunk.classes for chunk in prompts.chunks]).tolist() == list(range(1000))
    for place, chunk in enumerate(prompts.chunks):
        assert prompts.chunk_of[chunk.classes].unique().tolist() == [place]
        for number, tokens in zip(chunk.classes.tolist(), chunk.tokens_of().bool(), strict=True):
            assert tokenizer.decode(chunk.input_ids[tokens]) == names[number] == prompts.phrases[number]
    lengths = [len(chunk.input_ids) for chunk in prompts.chunks]
    assert all(64 - 3 <= length <= 64 for length in lengths[:-1]) and lengths[-1] <= 64


def test_names_that_the_tokenizer_takes_for_one_get_phrases_of_their_own():
    names = ("Cat", "cat", "cat.", "cät", "cat 2")
    prompts = make_prompts(names, tokenizer_of(names), 64)
    assert prompts.phrases == ("cat", "cat 2", "cat 3", "cät 4", "cat 2 2")
    (chunk,) = prompts.chunks
    assert len({tuple(chunk.input_ids[tokens.bool()].tolist()) for tokens in chunk.tokens_of()}) == 5


@pytest.mark.parametrize("name", ["?", " . ", " ".join("abcdefghij" * 7)])
def test_a_name_of_which_no_phrase_can_be_made_is_refused(name: str):
    with pytest.raises(RecipeError, match="cannot be asked for the class"):
        make_prompts(["cat", name], tokenizer_of(["cat"]), 64)
