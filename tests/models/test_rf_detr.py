"""Facts about RF-DETR: what it sees, what it learns from, what it finds."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from transformers import (
    AutoImageProcessor,
    RfDetrForInstanceSegmentation,
    RfDetrForObjectDetection,
    RfDetrImageProcessor,
)

from tests.object_samples import as_sample, batch_of, changed, data, objects_of, total, train
from visiontune.data.annotations.masks import from_pixels, to_pixels
from visiontune.data.objects import Objects
from visiontune.data.sample import Sample
from visiontune.errors import ModelError
from visiontune.metrics.object_scores import score_objects
from visiontune.models import rf_detr
from visiontune.models.load import native_image_size, read_config
from visiontune.models.parts import check_parts, set_training_mode
from visiontune.models.rf_detr_masks import Drawing, drawings_of, mask_loss
from visiontune.recipe import ObjectChoices

SIDE, QUERIES = 96, 36
CLASSES = ("disc", "square")


def choices(**changes: Any) -> ObjectChoices:
    return ObjectChoices(**{"classes": CLASSES, "masks": False, "mirror": "none", "queries": QUERIES, **changes})


def adapter(folder: Path, objects: ObjectChoices, seed: int = 0) -> Any:
    if not folder.exists():
        rf_detr.build_tiny(folder, objects, 0, image_size=SIDE)
    return rf_detr.load(str(folder), None, data(SIDE), objects, seed)


@pytest.fixture(scope="module")
def boxes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rf_detr") / "boxes"
    rf_detr.build_tiny(folder, choices(), 0, image_size=SIDE)
    return folder


@pytest.fixture(scope="module")
def masks_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rf_detr") / "masks"
    rf_detr.build_tiny(folder, choices(masks=True), 0, image_size=SIDE)
    return folder


def drawn(number: int, count: int = 3, width: int = 120, height: int = 100) -> Sample:
    """Discs and squares in places of their own on grey."""
    generator = np.random.default_rng(number)
    image = Image.fromarray(generator.integers(90, 130, (height, width, 3), dtype=np.uint8))
    draw, boxes, classes, masks = ImageDraw.Draw(image), [], [], []
    for cell in generator.permutation(6)[:count].tolist():
        side = int(generator.integers(22, 34))
        left, top = (
            cell % 3 * 40 + int(generator.integers(40 - side)),
            cell // 3 * 50 + int(generator.integers(50 - side)),
        )
        kind = int(generator.integers(2))
        corners = (left, top, left + side - 1, top + side - 1)
        mask = Image.new("1", image.size)
        for canvas, colour in ((draw, ("red", "blue")[kind]), (ImageDraw.Draw(mask), 1)):
            (canvas.rectangle if kind else canvas.ellipse)(corners, fill=colour)
        boxes.append([left, top, side, side])
        classes.append(kind)
        masks.append(from_pixels(np.asarray(mask)))
    return as_sample(f"drawn {number}", image, boxes, classes, masks)


def terms(model: Any, samples: list[Sample]) -> dict[str, float]:
    with torch.no_grad():
        return {name: values.sum().item() for name, values in model.losses(batch_of(model, samples)).items()}


@pytest.mark.parametrize("masks", [False, True])
def test_every_weight_belongs_to_one_part(masks: bool, boxes_folder: Path, masks_folder: Path):
    model = adapter(masks_folder if masks else boxes_folder, choices(masks=masks))
    check_parts(model.network, model.parts, {part.name: "full" for part in model.parts})


def test_the_model_sees_what_its_own_processor_makes(boxes_folder: Path):
    model = adapter(boxes_folder, choices())
    image = Image.open(io.BytesIO(drawn(0).seen.files[0].data))  # pyright: ignore[reportAttributeAccessIssue]
    own = AutoImageProcessor.from_pretrained(boxes_folder)(images=image, return_tensors="pt")["pixel_values"][0]
    pixels, picture = model.encoder.see(image)
    assert torch.equal(pixels, own)
    assert picture == model.encoder.picture(image.height, image.width) == own.shape[1:]


def test_the_loss_of_boxes_is_the_librarys(boxes_folder: Path):
    model = adapter(boxes_folder, choices())
    model.network.train()
    with torch.no_grad():
        for head in (model.network.bbox_embed, *model.network.model.enc_out_bbox_embed):
            head.layers[-1].weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    batch = batch_of(model, [drawn(0), drawn(1, count=5), drawn(2, count=0)])
    present = batch.tensors["present"]
    labels = [
        {"class_labels": classes[here], "boxes": boxes[here]}
        for classes, boxes, here in zip(batch.tensors["classes"], batch.tensors["boxes"], present, strict=True)
    ]
    theirs = model.network(pixel_values=batch.tensors["pixel_values"][:, 0], labels=labels).loss
    ours = total(model, batch)
    assert batch.weights == {"classes": 8.0, "l1": 8.0, "giou": 8.0}
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    weights = list(model.network.parameters())
    for mine, its in zip(torch.autograd.grad(ours, weights), torch.autograd.grad(theirs, weights), strict=True):
        assert torch.allclose(mine, its, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("training", [False, True])
def test_a_batch_loses_as_much_as_its_pieces(training: bool, masks_folder: Path):
    model = adapter(masks_folder, choices(masks=True))
    model.network.train(training)
    crowded = changed(drawn(2), crowd=np.array([False, True, False]))
    unmasked = changed(drawn(3, count=4), masks=(None,) * 4)
    batch = batch_of(model, [drawn(0), drawn(1, count=5), crowded, unmasked, drawn(4, count=0)])
    assert batch.weights == {"classes": 14.0, "l1": 14.0, "giou": 14.0, "mask": 10.0, "dice": 10.0}
    whole = model.losses(batch)
    pieces = [model.losses(piece) for piece in batch.pieces(3)]
    assert set(whole) == set(model.terms)
    for name, values in whole.items():
        assert values.shape == (5,) and values.dtype == torch.float32
        assert torch.allclose(values, torch.cat([piece[name] for piece in pieces]), rtol=1e-5, atol=1e-5)


def test_images_without_objects_teach_that_there_are_none(masks_folder: Path):
    model = adapter(masks_folder, choices(masks=True))
    model.network.train()
    batch = batch_of(model, [drawn(0, count=0), drawn(1, count=0)])
    assert set(batch.weights.values()) == {0.0}
    losses = model.losses(batch)
    assert (losses["classes"] > 0).all()
    assert all((losses[name] == 0).all() for name in ("l1", "giou", "mask", "dice"))
    total(model, batch).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.network.parameters() if p.grad is not None)


def test_the_same_batch_gives_the_same_gradients_bit_for_bit(masks_folder: Path):
    model = adapter(masks_folder, choices(masks=True))
    model.network.train()
    batch, gradients, state = batch_of(model, [drawn(0), drawn(1)]), [], torch.get_rng_state()
    for _ in range(2):
        model.network.zero_grad()
        total(model, batch).backward()
        gradients.append([p.grad.clone() for p in model.network.parameters()])
    assert all(torch.equal(first, second) for first, second in zip(*gradients, strict=True))
    assert torch.equal(state, torch.get_rng_state())


def test_a_crowd_is_not_learned_and_excuses_what_is_found_in_it(boxes_folder: Path):
    model = adapter(boxes_folder, choices())
    for head in (model.network.class_embed, *model.network.model.enc_out_class_embed):
        torch.nn.init.zeros_(head.bias)  # what is found weighs
    sample = drawn(0)
    everywhere = changed(
        sample,
        boxes=np.concatenate([objects_of(sample).boxes, [[0, 0, 120, 100]]]),
        classes=np.append(objects_of(sample).classes, 1),
        masks=(*objects_of(sample).masks, None),
        crowd=np.array([False, False, False, True]),
        ids=(0, 1, 2, 3),
    )
    without, crowded = terms(model, [sample]), terms(model, [everywhere])
    assert batch_of(model, [everywhere]).weights["classes"] == 3.0
    assert crowded["l1"] == without["l1"] and crowded["giou"] == without["giou"]
    # Half of the classes are excused but for the queries that have an object.
    assert 0.5 * without["classes"] < crowded["classes"] < 0.8 * without["classes"]


@pytest.mark.parametrize("masks", [False, True])
def test_a_class_that_nobody_looked_for_is_neither_learned_nor_found(
    masks: bool, boxes_folder: Path, masks_folder: Path
):
    model = adapter(masks_folder if masks else boxes_folder, choices(masks=masks, denoise=0.4, most=QUERIES))
    sample = drawn(3, count=4)
    discs = np.flatnonzero(objects_of(sample).classes == 0)
    told = replace(sample, target=replace(objects_of(sample).some(discs), looked_for=np.array([True, False])))
    heads = [head for name, head in model.network.named_modules() if name.endswith("class_embed") and name]
    rows = [row for head in heads for row in head.parameters()]
    assert rows and 0 < len(discs) < 4
    model.network.train()
    encoded = model.encoder.encode(told, augmentation=1)
    total(model, model.encoder.collate([encoded])).backward()
    for row in rows:
        assert row.grad is not None and row.grad[0].any() and not row.grad[1].any()
    model.network.eval()
    (found,) = model.find(model.encoder.collate([model.encoder.encode(told, with_answer=False)]))
    (everything,) = model.find(model.encoder.collate([model.encoder.encode(sample, with_answer=False)]))
    assert set(found.classes.tolist()) == {0} and set(everything.classes.tolist()) == {0, 1}
    assert found.soft is not None and not found.soft[:, 1].any()
    alone = everything.of_classes(np.array([True, False]))
    # Others do not take the places of those that are asked for.
    assert np.array_equal(found.boxes[: len(alone)], alone.boxes) and len(found) == QUERIES > len(alone)


def test_an_object_counts_as_much_as_it_is_likely(boxes_folder: Path):
    model = adapter(boxes_folder, choices())
    sample = drawn(0, count=1)
    certain = np.eye(2)[objects_of(sample).classes]
    hard, soft = terms(model, [sample]), terms(model, [changed(sample, soft=certain)])
    half = terms(model, [changed(sample, soft=certain / 2)])
    none = terms(model, [changed(sample, soft=certain * 0)])
    assert soft == hard
    assert batch_of(model, [changed(sample, soft=certain / 2)]).weights["l1"] == 0.5
    for name in ("l1", "giou"):
        assert half[name] == pytest.approx(hard[name] / 2, rel=0.05)
        assert none[name] == 0
    assert none["classes"] < half["classes"] < hard["classes"]


def test_only_objects_with_a_mask_teach_masks(masks_folder: Path):
    model = adapter(masks_folder, choices(masks=True))
    assert terms(model, [changed(drawn(0), masks=(None,) * 3)])["dice"] == 0
    one = changed(drawn(0), masks=(*objects_of(drawn(0)).masks[:1], None, None))
    assert batch_of(model, [one]).weights == {"classes": 3.0, "l1": 3.0, "giou": 3.0, "mask": 1.0, "dice": 1.0}
    assert 0 < terms(model, [one])["dice"] < terms(model, [drawn(0)])["dice"]


def test_groups_of_queries_stay_apart_in_a_frozen_decoder(tmp_path: Path):
    model = adapter(tmp_path / "grouped", choices(queries=12))
    config, parts = model.network.config, {part.name: "full" for part in model.parts}
    assert config.group_detr > 1 and config.dropout == config.attention_dropout == 0
    found = []
    for state in ("full", "frozen"):
        set_training_mode(model.network, model.network, model.parts, parts | {"decoder": state})
        found.append(terms(model, [drawn(0), drawn(1, count=5)]))
    assert found[0] == found[1]


def test_undecided_masks_lose_what_the_formulas_say():
    masks = torch.zeros(1, 4, 4, dtype=torch.uint8)
    masks[0, :2] = 255
    undecided = Drawing(torch.zeros(1, 1, 2), torch.zeros(2, 4, 4), torch.zeros(1, 1, 1))
    place = torch.zeros(1, 1, dtype=torch.int64)
    entropy, dice = mask_loss(undecided, masks, place, place, torch.ones(1, 1)).tolist()
    assert entropy == pytest.approx(5 * np.log(2)) and dice == pytest.approx(5 * (1 - (2 * 4 + 1) / (8 + 8 + 1)))


def test_what_is_found_is_what_the_librarys_post_processing_finds(masks_folder: Path):
    model = adapter(masks_folder, choices(masks=True, most=7))
    batch = batch_of(model, [drawn(0), drawn(1, width=150, height=90)])
    found = model.find(batch)
    with torch.no_grad():
        seen = model.network(pixel_values=batch.tensors["pixel_values"][:, 0])
    own = model.encoder.processor.post_process_object_detection(seen, 0.0, batch.tensors["size"], top_k=7)
    shapes = model.encoder.processor.post_process_instance_segmentation(
        seen, 0.0, target_sizes=batch.tensors["size"].tolist(), return_binary_maps=True, top_k=7
    )
    for mine, its, masks, size in zip(found, own, shapes, batch.tensors["size"].tolist(), strict=True):
        assert np.allclose(mine.scores, its["scores"]) and (np.diff(mine.scores) <= 0).all()
        assert mine.classes.tolist() == its["labels"].tolist()
        low, high = mine.boxes[:, :2], mine.boxes[:, :2] + mine.boxes[:, 2:]
        limits = torch.tensor([size[1], size[0]] * 2)
        assert np.allclose(np.c_[low, high], its["boxes"].clamp(min=0).minimum(limits), atol=1e-3)
        drawn_masks = [to_pixels(mask) for mask in mine.masks]
        assert all(mask.shape == tuple(size) for mask in drawn_masks)
        kept = [mask for mask in drawn_masks if mask.any()]
        assert len(kept) == len(masks["segmentation"])
        assert all((a == b.numpy()).all() for a, b in zip(kept, masks["segmentation"], strict=True))
        assert np.allclose(mine.soft[np.arange(7), mine.classes], mine.scores)


@pytest.mark.parametrize("groups", [1, 2])
def test_masks_and_their_gradients_are_those_of_the_librarys_head(groups: int, masks_folder: Path):
    """In float64; only some masks weigh, as when they are matched."""
    head = adapter(masks_folder, choices(masks=True)).network.double()
    head.requires_grad_(True)
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    with torch.no_grad():
        for name, weight in head.named_parameters():
            if not name.startswith("model."):
                weight += 0.1 * drawn(*weight.shape)
    side, width, size = SIDE // 8, head.config.d_model, torch.Size((SIDE, SIDE))
    seen = [drawn(2, width, side, side), drawn(3, 2, 8, width), drawn(2, 8, width)]
    features, hidden, proposed = (value.requires_grad_() for value in seen)
    weighed = [(weight := drawn(2, 8)).masked_fill(weight < 0, 0.0) for _ in range(4)]
    learned = [*seen, *(weight for name, weight in head.named_parameters() if not name.startswith("model."))]

    own = [*head.segmentation_head(features, hidden, size), head.segmentation_head(features, proposed, size, True)]
    wanted = sum((masks.sigmoid().mean((2, 3)) * weights).sum() for masks, weights in zip(own, weighed, strict=True))
    ours: Any = 0.0
    for layer, masks, weights in zip(drawings_of(head, features, hidden, proposed, size), own, weighed, strict=True):
        for row, image in enumerate(layer.images(groups)):
            assert torch.allclose(image.logits().flatten(0, 1), masks[row], rtol=1e-9, atol=1e-9)
            places = (mine := weights[row].unflatten(0, (groups, -1))).nonzero(as_tuple=True)
            ours = ours + (image.of(*places).logits().sigmoid().mean((1, 2)) * mine[places]).sum()
    for one, other in zip(torch.autograd.grad(ours, learned), torch.autograd.grad(wanted, learned), strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)


def test_a_tiny_model_sees_finer_where_it_learns_masks_than_where_it_finds_boxes_alone(
    boxes_folder: Path, masks_folder: Path
):
    """No mask says where a small object ends within one of its pixels."""
    finer, coarser = (adapter(masks_folder, choices(masks=True)), adapter(boxes_folder, choices()))
    assert finer.encoder.tokens(SIDE, SIDE) == 4 * coarser.encoder.tokens(SIDE, SIDE)
    assert finer.encoder.mask_size() == (SIDE // 2, SIDE // 2)


def test_a_tiny_model_learns_to_find_drawn_shapes(boxes_folder: Path):
    model = adapter(boxes_folder, choices())
    samples = [drawn(number) for number in range(3)]
    batch = batch_of(model, samples)
    train(model, batch, 80, 2e-3)
    assert average_precision(model.find(batch), samples) > 0.9


def average_precision(found: list[Objects], samples: list[Sample]) -> float:
    """AP at an IoU of 0.5, averaged over the classes."""
    truths: list[Any] = [sample.target for sample in samples]
    scores = score_objects(truths, found, [(100, 120)] * len(found), CLASSES, prompts="none", halves=2)
    return scores.metric("box_ap50").value or 0.0


def test_a_tiny_model_learns_masks(masks_folder: Path):
    model = adapter(masks_folder, choices(masks=True))
    samples = [drawn(number) for number in range(2)]
    batch, before = batch_of(model, samples), terms(model, samples)
    overlap = mean_overlap(model.find(batch), samples)
    train(model, batch, 40, 2e-3)
    after = terms(model, samples)
    assert 0 < after["dice"] < 0.8 * before["dice"] and 0 < after["mask"] < 0.8 * before["mask"]
    assert mean_overlap(model.find(batch), samples) > overlap + 0.2


def mean_overlap(found: list[Objects], samples: list[Sample]) -> float:
    """The IoU of each drawn mask with the mask found that is most like it, on average."""
    best = []
    for mine, sample in zip(found, samples, strict=True):
        shapes = [to_pixels(mask) for mask in mine.masks if mask is not None]
        for mask in objects_of(sample).masks:
            assert mask is not None
            true = to_pixels(mask)
            best.append(max((true & one).sum() / (true | one).sum() for one in shapes))
    return float(np.mean(best))


def test_heads_for_other_classes_follow_from_the_seed_alone(boxes_folder: Path):
    def heads(folder: Path, names: tuple[str, ...], seed: int, masks: bool = False) -> Any:
        model = adapter(folder, choices(classes=names, masks=masks), seed)
        detector = model.network.model if masks else model.network
        assert tuple(detector.config.id2label.values()) == names
        return detector

    letters = ("a", "b", "c")
    first, same = heads(boxes_folder, letters, 3), heads(boxes_folder, letters, 3, masks=True)
    other, kept = heads(boxes_folder, letters, 4), heads(boxes_folder, CLASSES, 3)
    stored = RfDetrForObjectDetection.from_pretrained(boxes_folder)
    assert torch.equal(first.class_embed.weight, same.class_embed.weight)
    assert torch.equal(first.model.enc_out_class_embed[2].weight, same.model.enc_out_class_embed[2].weight)
    assert not torch.equal(first.class_embed.weight, other.class_embed.weight)
    assert torch.equal(kept.class_embed.weight, stored.class_embed.weight)
    with torch.no_grad():
        logits = first.eval()(pixel_values=torch.randn(1, 3, SIDE, SIDE)).logits
    assert logits.shape[-1] == 3 and logits.sigmoid().mean().item() == pytest.approx(0.01, rel=0.5)


def test_a_checkpoint_of_boxes_learns_masks_and_one_of_masks_boxes(
    boxes_folder: Path, masks_folder: Path, tmp_path: Path
):
    with_masks = adapter(boxes_folder, choices(masks=True), 1)
    assert isinstance(with_masks.network, RfDetrForInstanceSegmentation)
    assert with_masks.find(batch_of(with_masks, [drawn(0)]))[0].masks[0] is not None
    plain = adapter(boxes_folder, choices())
    for name, weight in plain.network.state_dict().items():
        assert torch.equal(weight, with_masks.network.state_dict()[f"model.{name}"])
    boxes_alone = adapter(masks_folder, choices())
    assert isinstance(boxes_alone.network, RfDetrForObjectDetection)
    assert boxes_alone.terms == ("classes", "l1", "giou")
    for number, model in enumerate((with_masks, boxes_alone)):
        model.network.save_pretrained(tmp_path / str(number))
        again = type(model.network).from_pretrained(tmp_path / str(number))
        for name, weight in model.network.state_dict().items():
            assert torch.equal(weight, again.state_dict()[name])


def test_images_that_do_not_fit_the_model_are_refused_with_a_size_that_does(boxes_folder: Path):
    for side in (100, 32):
        with pytest.raises(ModelError) as refused:
            rf_detr.load(str(boxes_folder), None, data(side), choices(), 0)
        assert "96" in str(refused.value.fix)
    rf_detr.load(str(boxes_folder), None, data(128), choices(), 0)


def test_a_checkpoint_is_trained_further_at_the_size_that_its_processor_was_saved_with(
    boxes_folder: Path, tmp_path: Path
):
    assert native_image_size(str(boxes_folder)) == SIDE
    larger = rf_detr.load(str(boxes_folder), None, data(2 * SIDE), choices(), 0)
    larger.network.save_pretrained(tmp_path)
    larger.encoder.save(tmp_path)
    assert native_image_size(str(tmp_path)) == 2 * SIDE
    RfDetrImageProcessor().save_pretrained(tmp_path)  # 800 to 1333 pixels, and no square
    assert native_image_size(str(tmp_path)) == SIDE


def test_the_same_arguments_build_the_same_files(boxes_folder: Path, tmp_path: Path):
    state = torch.get_rng_state()
    rf_detr.build_tiny(tmp_path, choices(), 0, image_size=SIDE)
    assert torch.equal(state, torch.get_rng_state())
    for file in boxes_folder.iterdir():
        assert file.read_bytes() == (tmp_path / file.name).read_bytes()


def test_a_config_that_was_written_anew_is_read_anew(boxes_folder: Path, tmp_path: Path):
    file = shutil.copytree(boxes_folder, tmp_path / "model") / "config.json"
    assert read_config(str(file.parent)).num_queries == QUERIES
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_queries": QUERIES + 1}))
    assert read_config(str(file.parent)).num_queries == QUERIES + 1
