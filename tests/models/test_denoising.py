"""Facts about the extra queries that training places near the objects."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.models.test_rf_detr import SIDE, adapter, choices, drawn
from tests.object_samples import changed, data
from visiontune.data.sample import Sample
from visiontune.errors import RecipeError
from visiontune.models import rf_detr
from visiontune.models.denoising import noised
from visiontune.models.load import build_tiny_finder, load_adapter


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = adapter(tmp_path_factory.mktemp("denoising") / "tiny", choices(denoise=0.4))
    made.network.train()
    return made


def training_batch(model: Any, samples: list[Sample]) -> Any:
    encoder = model.encoder
    return encoder.collate([encoder.encode(sample, augmentation=number) for number, sample in enumerate(samples)])


@given(
    objects=st.integers(1, 9), groups=st.integers(1, 3), queries=st.integers(1, 12), strength=st.floats(0, 0.9),
    number=st.integers(0, 2**64 - 1),
)  # fmt: skip
def test_places_are_near_their_objects(objects: int, groups: int, queries: int, strength: float, number: int):
    boxes = torch.rand(objects, 4, generator=torch.Generator().manual_seed(objects)) * 0.5 + 0.2
    places = noised(boxes, groups, queries, strength, number).unflatten(0, (groups, queries))
    own, near = boxes[:queries], places[:, :objects]
    assert ((near[..., :2] - own[:, :2]).abs() <= strength * own[:, 2:] + 1e-6).all()
    assert ((near[..., 2:] / own[:, 2:]).log2().abs() <= 2 * strength + 1e-5).all()
    others = places[:, objects:]
    assert ((others >= 0) & (others <= 1)).all() and (others[..., 2:] > 0).all()
    assert torch.equal(places.flatten(0, 1), noised(boxes, groups, queries, strength, number))
    if strength > 0.01 or queries > objects:
        assert not torch.equal(places.flatten(0, 1), noised(boxes, groups, queries, strength, number ^ 1))


def test_crowds_have_no_queries(model: Any):
    sample = changed(drawn(0), crowd=np.array([False, True, False]))
    encoded = model.encoder.encode(sample, augmentation=1)
    left = encoded.boxes[~encoded.crowd]
    config = model.network.config
    places = encoded.noised.unflatten(0, (config.group_detr, config.num_queries))[:, : len(left)]
    assert ((places[..., :2] - left[:, :2]).abs() <= 0.4 * left[:, 2:] + 1e-6).all()


def test_the_loss_of_an_image_does_not_depend_on_its_batch(model: Any):
    samples = [drawn(0), drawn(1, count=5), drawn(2, count=0), drawn(3, count=1)]
    batch = training_batch(model, samples)
    whole = model.losses(batch)["denoising"]
    assert batch.weights["denoising"] == 9.0
    pieces = torch.cat([model.losses(piece)["denoising"] for piece in batch.pieces(4)])
    assert torch.allclose(whole, pieces, rtol=1e-4) and (whole > 0).all()


def test_queries_that_stand_for_no_object_are_told_so(model: Any):
    targets = rf_detr.set_loss.targets_of(training_batch(model, [drawn(3, count=1)]), 0)
    places = targets.boxes.expand(1, 4, 4)
    sure = torch.full((1, 4, 2), -9.0)
    sure[:, 0] = torch.where(targets.soft[0] > 0.5, 9.0, -9.0)
    also = sure.clone()
    also[:, 2] = sure[:, 0]  # the same object, found by another query too
    loss = [rf_detr._denoising_loss(logits, places, targets).item() for logits in (sure, also)]
    assert loss[0] < 0.01 and loss[1] > 5


def test_evaluation_places_none_and_the_other_terms_are_as_they_were(model: Any):
    samples = [drawn(0), drawn(1, count=5)]
    with_them, without = training_batch(model, samples), model.encoder.collate([*map(model.encoder.encode, samples)])
    assert "noised" in with_them.tensors and "noised" not in without.tensors
    more, less = model.losses(with_them), model.losses(without)
    assert (less["denoising"] == 0).all()
    for term in ("classes", "l1", "giou"):
        assert torch.equal(more[term], less[term])


def test_the_decoder_learns_of_them_and_the_proposals_do_not(model: Any):
    loss = model.losses(training_batch(model, [drawn(0)]))["denoising"].sum()
    network = model.network
    for module, learns in ((network.model.decoder, True), (network.model.backbone, True), (network.class_embed, True),
                           (network.model.enc_out_class_embed, False)):  # fmt: skip
        grads = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True)
        assert any(grad is not None and bool(grad.any()) for grad in grads) == learns


def test_boxes_are_mended_sooner_with_them(tmp_path: Path):
    """After as many steps, boxes near objects are mended better by a model that was taught by such queries."""
    errors = {}
    for strength in (0.0, 0.4):
        model = adapter(tmp_path / "tiny", choices(denoise=strength))
        model.network.train()
        optimizer = torch.optim.AdamW(model.network.parameters(), 1e-3)
        samples = [drawn(number) for number in range(4)]
        for step in range(24):
            batch = model.encoder.collate(
                [model.encoder.encode(sample, augmentation=10 * step + i) for i, sample in enumerate(samples)]
            )
            losses = model.losses(batch)
            sum((losses[term].sum() / batch.weights[term] for term in model.terms), torch.zeros(())).backward()
            optimizer.step()
            optimizer.zero_grad()
        judge = model.losses(model.encoder.collate([*map(model.encoder.encode, samples)]))
        errors[strength] = (judge["l1"].sum() + judge["giou"].sum()).item()
    assert errors[0.4] < 0.95 * errors[0.0]


def test_other_families_refuse_them(tmp_path: Path):
    objects = choices(denoise=0.4, queries=None)
    build_tiny_finder("tiny/sam", tmp_path / "sam", objects.model_copy(update={"masks": True}), 0, 64)
    with pytest.raises(RecipeError, match="extra queries"):
        load_adapter(str(tmp_path / "sam"), None, data(SIDE), objects=objects)
