"""Facts about the extra queries that training places near the objects."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.models.test_rf_detr import SIDE, adapter, choices, drawn
from tests.object_samples import changed, data, objects_of
from visiontune.data.sample import Sample
from visiontune.errors import RecipeError
from visiontune.models import rf_detr
from visiontune.models.denoising import noised
from visiontune.models.load import build_tiny_finder, load_adapter
from visiontune.models.rf_detr_masks import Drawing


@pytest.fixture(scope="module", params=[False, True], ids=["boxes", "masks"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = adapter(tmp_path_factory.mktemp("denoising") / "tiny", choices(denoise=0.4, masks=request.param))
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
    terms = [term for term in model.terms if term.endswith("denoising")]
    assert terms == ["denoising", "mask_denoising"][: 1 + model.masks]
    whole, parts = model.losses(batch), [model.losses(piece) for piece in batch.pieces(4)]
    for term in terms:
        assert batch.weights[term] == 9.0
        assert torch.allclose(whole[term], torch.cat([piece[term] for piece in parts]), rtol=1e-4)
        assert ((whole[term] > 0) == torch.tensor([True, True, term == "denoising", True])).all()


def test_queries_that_stand_for_no_object_are_told_so(model: Any):
    targets = rf_detr.set_loss.targets_of(training_batch(model, [drawn(3, count=1)]), 0)
    places = targets.boxes.expand(1, 4, 4)
    sure = torch.full((1, 4, 2), -9.0)
    sure[:, 0] = torch.where(targets.soft[0] > 0.5, 9.0, -9.0)
    also = sure.clone()
    also[:, 2] = sure[:, 0]  # the same object, found by another query too
    loss = [rf_detr._denoising_losses(logits, places, [], targets)["denoising"].item() for logits in (sure, also)]
    assert loss[0] < 0.01 and loss[1] > 5


def test_evaluation_places_none_and_the_other_terms_are_as_they_were(model: Any):
    samples = [drawn(0), drawn(1, count=5)]
    with_them, without = training_batch(model, samples), model.encoder.collate([*map(model.encoder.encode, samples)])
    assert "noised" in with_them.tensors and "noised" not in without.tensors
    more, less = model.losses(with_them), model.losses(without)
    for term in model.terms:
        if term.endswith("denoising"):
            assert (less[term] == 0).all()
        else:
            assert torch.allclose(more[term], less[term], rtol=1e-6, atol=0)


def test_the_decoder_learns_of_them_and_the_proposals_do_not(model: Any):
    losses = model.losses(training_batch(model, [drawn(0)]))
    detector, masks = (model.network.model if model.masks else model.network), model.masks
    learns = {detector.model.decoder: "both", detector.model.backbone: "both", detector.class_embed: "denoising",
              detector.model.enc_out_class_embed: "none"}  # fmt: skip
    learns |= (
        {model.network.blocks: "mask_denoising", model.network.query_features_proj: "mask_denoising"} if masks else {}
    )
    for module, term in ((module, term) for module in learns for term in ("denoising", "mask_denoising")[: 1 + masks]):
        grads = torch.autograd.grad(losses[term].sum(), list(module.parameters()), retain_graph=True, allow_unused=True)
        assert any(grad is not None and bool(grad.any()) for grad in grads) == (learns[module] in ("both", term))


def test_each_place_is_taught_the_mask_of_its_own_object(tmp_path: Path):
    model = adapter(tmp_path / "tiny", choices(denoise=0.4, masks=True))
    targets = rf_detr.set_loss.targets_of(training_batch(model, [drawn(0)]), 0)
    assert targets.masks is not None
    features = torch.where(targets.masks > 127, 9.0, -9.0)  # one mask in each feature
    losses = []
    for order in ([0, 1, 2], [1, 2, 0]):
        layer = Drawing(torch.eye(3)[order].expand(2, 3, 3), features, torch.zeros(2, 3, 1))  # of two groups
        answers = torch.zeros(2, 3, 2), targets.boxes.expand(2, 3, 4)
        losses.append(rf_detr._denoising_losses(*answers, [layer], targets)["mask_denoising"].item())
    assert losses[0] < 0.1 * losses[1]


def test_objects_without_a_mask_teach_none_of_their_places(tmp_path: Path):
    model = adapter(tmp_path / "tiny", choices(denoise=0.4, masks=True))
    model.network.train()
    whole = drawn(0)
    drawn_masks = dict(enumerate(objects_of(whole).masks))
    batches = []
    for kept in ((0,), (1,), (2,), (0, 1, 2), ()):
        some = changed(whole, masks=tuple(drawn_masks[i] if i in kept else None for i in range(3)))
        batches.append(model.encoder.collate([model.encoder.encode(some, augmentation=0)]))
    assert [batch.weights["mask_denoising"] for batch in batches] == [1.0, 1.0, 1.0, 3.0, 0.0]
    losses = [model.losses(batch)["mask_denoising"].item() for batch in batches]
    assert losses[3] == pytest.approx(sum(losses[:3]), rel=1e-4) and losses[4] == 0


def test_boxes_are_mended_sooner_with_them(tmp_path: Path):
    """After as many steps, boxes near objects are mended better by a model that was taught by such queries."""
    errors = {}
    for strength in (0.0, 0.4):
        model = adapter(tmp_path / "tiny", choices(denoise=strength))
        model.network.train()
        optimizer = torch.optim.AdamW(model.network.parameters(), 1e-3)
        samples = [drawn(number) for number in range(3)]
        for step in range(20):
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
