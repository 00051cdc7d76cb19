"""Samples in one row without padding: no token sees another sample's, the loss and its gradients stay what they
were."""

from typing import Any

import pytest
import torch

from tests.models.test_image_text_models import TEXTS, data, samples
from visiontune.errors import RecipeError
from visiontune.models import segments
from visiontune.models.load import build_tiny, load_adapter
from visiontune.models.token_loss import token_losses

SIDES = {
    "tiny/smolvlm": 32,
    "tiny/deepseek-ocr": 64,
    "tiny/deepseek-ocr2": 64,
    "tiny/qwen-vl": 48,
    "tiny/qwen3-vl": 48,
}


@pytest.fixture(params=SIDES)
def pair(request, tmp_path) -> list[Any]:
    """The same model twice, the second one packing; no dropout."""
    side = SIDES[request.param]
    build_tiny(request.param, tmp_path, TEXTS, 0, side)
    two = [load_adapter(str(tmp_path), None, data(side)) for _ in range(2)]
    two[1].pack()
    for adapter in two:
        adapter.network.eval()
    return two


def batch_of(adapter: Any, some: Any) -> Any:
    return adapter.encoder.collate([adapter.encoder.encode(one) for one in some])


def test_losses_and_gradients_are_those_of_padded_samples(pair):
    found = []
    for adapter in pair:
        losses = adapter.losses(batch_of(adapter, samples()))["text"]
        (losses * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
        gradients = {name: p.grad for name, p in adapter.network.named_parameters() if p.grad is not None}
        found.append((losses.detach(), gradients))
    (plain, gradients), (packed, packed_gradients) = found
    torch.testing.assert_close(packed, plain, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == packed_gradients.keys()
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(packed_gradients[name], gradient, rtol=1e-4, atol=1e-5 * largest)


def test_the_row_holds_no_padding_and_no_sample_sees_another(pair):
    adapter, some = pair[1], samples()
    seen = []
    model = adapter.network.model
    text_model = model.text_model if adapter.family == "smolvlm" else model.language_model
    hook = text_model.register_forward_pre_hook(lambda _, args, given: seen.append(given), with_kwargs=True)
    with torch.no_grad():
        batch = batch_of(adapter, some)
        before = adapter.losses(batch)["text"]
        hook.remove()
        changed = batch_of(adapter, [*some[:1], *some[3:], *some[1:3]])
        after = adapter.losses(changed)["text"]
    assert seen[0]["inputs_embeds"].shape[:2] == (1, batch.tokens)
    assert batch.padded_tokens == batch.tokens < batch.tensors["input_ids"].numel()
    torch.testing.assert_close(after, before[[0, 3, 1, 2]], rtol=1e-5, atol=1e-5)


def test_answers_of_padded_samples_stay_what_they_were(pair):
    found = []
    for adapter in pair:
        encoded = [adapter.encoder.encode(one, with_answer=False) for one in samples()]
        found.append(adapter.trace(adapter.encoder.collate(encoded, pad_left=True), 4))
    for one, other in zip(*found, strict=True):
        assert one.tokens == other.tokens
        assert one.log_probabilities == pytest.approx(other.log_probabilities, abs=1e-5)


def test_heads_that_share_keys_attend_each_within_its_sample():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, 10, 8, generator=generator) for heads in (4, 2, 2))
    sample = torch.arange(10) >= 3
    seen = (sample[:, None] == sample) & torch.ones(10, 10, dtype=torch.bool).tril()
    keys, values = (one.repeat_interleave(2, dim=1) for one in (key, value))
    wanted = torch.nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=seen)
    found, _ = segments._attend(torch.nn.Module(), query, key, value, segments.bounds(torch.tensor([3, 7])))
    assert torch.allclose(found, wanted.transpose(1, 2), atol=1e-6)


def test_a_model_whose_samples_would_see_each_other_is_refused(tmp_path):
    build_tiny("tiny/gemma3", tmp_path, TEXTS, 0, 48)
    adapter: Any = load_adapter(str(tmp_path), None, data(48))
    with pytest.raises(RecipeError, match="see each other"):
        adapter.pack()
    plain = adapter.losses(batch_of(adapter, samples()))["text"]
    adapter.packs = True  # what is refused would indeed be wrong
    adapter.pack()
    assert not torch.allclose(adapter.losses(batch_of(adapter, samples()))["text"], plain, atol=1e-2)


@pytest.mark.parametrize("at_once", [1, 70, 999, 2**20])
def test_losses_and_gradients_of_tokens_do_not_depend_on_how_many_logits_exist(at_once):
    generator = torch.Generator().manual_seed(0)
    made = []
    for how in (None, at_once):
        hidden = torch.randn(37, 16, generator=generator.manual_seed(1)).requires_grad_()
        head = torch.nn.Linear(16, 50)
        torch.nn.init.normal_(head.weight, generator=generator.manual_seed(2))
        torch.nn.init.zeros_(head.bias)
        targets = torch.randint(0, 50, (37,), generator=generator.manual_seed(3))
        largest: list[int] = []
        head.register_forward_hook(lambda _, __, logits, sizes=largest: sizes.append(logits.numel()))
        if how is None:
            losses = torch.nn.functional.cross_entropy(head(hidden), targets, reduction="none")
        else:
            losses = token_losses(head, hidden, targets, 50, how)
            assert max(largest) <= max(how, 50)
        losses.sum().backward()
        made.append((losses.detach(), hidden.grad, head.weight.grad))
    for mine, theirs in zip(*made, strict=True):
        torch.testing.assert_close(mine, theirs)
