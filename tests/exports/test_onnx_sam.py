"""Facts about SAM as an image encoder and a mask decoder in ONNX."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.exports.onnx_models import SIDE, held_to, sample, segmenter, shipped
from visiontune.data.annotations.masks import from_pixels, to_pixels
from visiontune.data.images import decode
from visiontune.data.objects import Objects
from visiontune.data.sample import Sample
from visiontune.errors import ModelError
from visiontune.exports.onnx_certificate import certify_onnx
from visiontune.exports.onnx_runtime import find_in_files, open_model, open_session
from visiontune.exports.reference import image_of
from visiontune.models.objects import nothing


def with_masks(number: int, width: int = 90, height: int = 70) -> Sample:
    """Each object fills its box; a crowd stands beside them."""
    plain = sample(number, width, height)
    assert isinstance(plain.target, Objects)
    masks = []
    for left, top, wide, high in plain.target.boxes.astype(int).tolist():
        pixels = np.zeros((height, width), bool)
        pixels[top : top + high, left : left + wide] = True
        masks.append(from_pixels(pixels))
    crowd = Objects(
        boxes=np.r_[[[0.0, 0.0, 9.0, 9.0]], plain.target.boxes],
        classes=np.r_[1, plain.target.classes],
        masks=(None, *masks),
        crowd=np.array([True, False, False]),
        ids=(0, 1, 2),
    )
    return replace(plain, target=crowd)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return segmenter(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def folder(adapter: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shipped(adapter, tmp_path_factory.mktemp("shipped") / "folder")


@torch.no_grad()
def test_one_encoding_serves_any_number_of_boxes_as_in_torch(adapter: Any, folder: Path) -> None:
    encoder, decoder = (open_session(folder / name, 1) for name in ("encoder.onnx", "decoder.onnx"))
    random = torch.Generator().manual_seed(0)
    for batch in (1, 2, 5):
        pixels = torch.randn(batch, 3, SIDE, SIDE, generator=random)
        wanted = adapter.network.vision_encoder(pixels).last_hidden_state
        (embeddings,) = encoder.run(None, {"pixel_values": pixels.numpy()})
        assert embeddings.shape == wanted.shape
        assert np.abs(embeddings - wanted.numpy()).max() < 1e-4
    for count in (1, 2, 7):
        low = torch.rand(1, count, 2, generator=random) * SIDE / 2
        boxes = torch.cat([low, low + 4 + torch.rand(1, count, 2, generator=random) * SIDE / 2], dim=2)
        drawn = adapter.network(image_embeddings=wanted[:1], input_boxes=boxes, multimask_output=False)
        masks, scores = decoder.run(None, {"embeddings": wanted[:1].numpy(), "boxes": boxes.numpy()})
        assert masks.shape == drawn.pred_masks[:, :, 0].shape and scores.shape == (1, count)
        assert np.abs(masks - drawn.pred_masks[:, :, 0].numpy()).max() < 1e-4
        assert np.abs(scores - drawn.iou_scores[:, :, 0].numpy()).max() < 1e-4


@pytest.mark.parametrize(("width", "height"), [(90, 70), (61, 200), (64, 64)])
def test_it_sees_the_encoders_pixels_and_draws_the_trained_models_masks(
    adapter: Any, folder: Path, width: int, height: int
) -> None:
    asked, model = with_masks(5, width, height), open_model(folder, 1)
    encoded, image = adapter.encoder.encode(asked), decode(image_of(asked))
    assert encoded.pixel_values is not None and isinstance(asked.target, Objects)
    assert np.abs(model.pixels(image) - encoded.pixel_values.numpy()).max() < 1e-6
    (trained,), found = adapter.find(adapter.encoder.collate([encoded])), model.find(image, asked.target)
    assert found.classes.tolist() == trained.classes.tolist() and found.ids == trained.ids
    assert np.abs(found.boxes - trained.boxes).max() < 1e-3
    assert trained.scores is not None and found.scores is not None
    assert np.abs(found.scores - trained.scores).max() < 1e-4
    for mine, its in zip(found.masks, trained.masks, strict=True):
        assert mine is not None and its is not None
        assert (to_pixels(mine) != to_pixels(its)).mean() < 1e-3  # pixels on the very edge


def test_more_boxes_than_are_drawn_at_once_come_out_in_their_order(adapter: Any, folder: Path) -> None:
    asked = with_masks(6)
    assert isinstance(asked.target, Objects)
    many = Objects(
        boxes=np.tile(asked.target.boxes[1:], (20, 1)) + np.arange(40)[:, None] / 4,
        classes=np.arange(40) % 3,
        masks=(None,) * 40,
        crowd=np.zeros(40, bool),
        ids=tuple(range(40)),
    )
    encoded, image = adapter.encoder.encode(replace(asked, target=many)), decode(image_of(asked))
    (trained,), found = adapter.find(adapter.encoder.collate([encoded])), open_model(folder, 1).find(image, many)
    assert trained.scores is not None and found.scores is not None
    assert np.abs(found.scores - trained.scores).max() < 1e-4 and len(set(np.round(found.scores, 6))) > 20


def test_without_boxes_there_is_nothing_to_draw(folder: Path) -> None:
    image, model = decode(image_of(sample(0))), open_model(folder, 1)
    assert len(model.find(image, nothing(3))) == 0
    with pytest.raises(ModelError, match="draws masks in boxes that it is given"):
        model.find(image)


def test_its_certificate_passes_and_one_with_another_filter_does_not(adapter: Any, folder: Path) -> None:
    images = [with_masks(number) for number in range(4)] + [replace(sample(9), target=nothing(3))]
    found = certify_onnx(folder, held_to(adapter, images))
    assert {check.name: check.status for check in found.checks} == dict.fromkeys(
        ("files", "contract", "pixels", "outputs", "objects", "metric"), "passed"
    )
    path = folder / "contract.json"
    text = path.read_text()
    try:
        path.write_text(text.replace("pillow_bilinear", "bilinear"))
        checks = certify_onnx(folder, held_to(adapter, images)).checks
    finally:
        path.write_text(text)
    assert {check.name for check in checks if check.status == "failed"} >= {"contract", "pixels"}


def test_a_shipped_segmenter_is_not_asked_without_boxes(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="draws masks in boxes that it is given"):
        find_in_files(folder, [tmp_path / "a.png"])
