"""Facts about Grounding DINO and MM-Grounding DINO, on small ones of the real classes."""

import copy
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForZeroShotObjectDetection, AutoProcessor
from transformers.loss.loss_grounding_dino import GroundingDinoForObjectDetectionLoss
from transformers.models.grounding_dino.modeling_grounding_dino import build_label_maps, build_text_mask

from tests.object_samples import batch_of, data
from visiontune.data.objects import Objects
from visiontune.data.sample import ImageFile, Images, Sample
from visiontune.errors import DataError, ModelError
from visiontune.metrics.object_scores import score_objects
from visiontune.models.adapter import Batch
from visiontune.models.grounding_dino import GroundingDinoAdapter, build_tiny, build_tiny_original, load, prepared
from visiontune.models.load import native_image_size
from visiontune.models.parts import apply_states, check_parts, save_adapter
from visiontune.models.set_loss import targets_of
from visiontune.recipe import ObjectChoices
from visiontune.recipe_sections import Lora

CLASSES = ("red square", "blue disc")
KINDS = {"mm": build_tiny, "original": build_tiny_original}
SIDE = 64
MANY = tuple(f"part {number}" for number in range(100))


def choices(classes: Sequence[str] = CLASSES, most: int = 100) -> ObjectChoices:
    return ObjectChoices(classes=tuple(classes), masks=False, mirror="none", most=most)


def objects(boxes: Sequence[Sequence[float]], classes: Sequence[int], **more: Any) -> Objects:
    count = len(classes)
    crowd = np.array(more.pop("crowd", [False] * count), bool)
    drawn = np.array(boxes, np.float64).reshape(-1, 4)
    return Objects(drawn, np.array(classes, np.int64), (None,) * count, crowd, tuple(range(count)), **more)


def sample(number: int, count: int = 2, size: tuple[int, int] = (SIDE, SIDE), target: Objects | None = None) -> Sample:
    """An image (width, height) with `count` red squares and blue discs."""
    generator = np.random.default_rng(number)
    image = Image.new("RGB", size, tuple(generator.integers(90, 160, 3).tolist()))
    draw = ImageDraw.Draw(image)
    boxes, classes = [], generator.integers(2, size=count).tolist()
    for one in classes:
        wide, high = generator.integers(14, 26, 2).tolist()
        left, top = int(generator.integers(size[0] - wide)), int(generator.integers(size[1] - high))
        shape, fill = ((draw.rectangle, (230, 40, 40)), (draw.ellipse, (40, 60, 230)))[one]
        shape((left, top, left + wide - 1, top + high - 1), fill=fill)
        boxes.append((left, top, wide, high))
    file = io.BytesIO()
    image.save(file, "PNG")
    seen = Images((ImageFile(file.getvalue(), f"{number}.png"),))
    return Sample(f"s{number}", seen, objects(boxes, classes) if target is None else target)


def answers_of(adapter: GroundingDinoAdapter, batch: Batch) -> Any:
    with torch.no_grad():
        return adapter._answers(batch.tensors["pixel_values"][:, 0], adapter.encoder.prompts.chunks[0])


def equal(first: Any, second: Any) -> bool:
    return torch.equal(first.boxes, second.boxes) and torch.equal(first.logits, second.logits)


def apart(first: Any, second: Any) -> float:
    return max(float((getattr(first, n) - getattr(second, n)).abs().max()) for n in ("boxes", "logits"))


def assert_additive(adapter: GroundingDinoAdapter, samples: Sequence[Sample]) -> None:
    """Each image has the losses in a batch that it has alone."""
    with torch.no_grad():
        together = adapter.losses(batch_of(adapter, samples))
        for row, one in enumerate(samples):
            for term, value in adapter.losses(batch_of(adapter, [one])).items():
                assert float(together[term][row]) == pytest.approx(float(value), rel=1e-4, abs=1e-5)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small models whose box heads say something: new ones leave every box where it was proposed."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    for kind, build in KINDS.items():
        build(folders[kind], choices(), 0, image_size=SIDE)
        network = AutoModelForZeroShotObjectDetection.from_pretrained(folders[kind])
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for head in (*network.bbox_embed, network.model.encoder_output_bbox_embed):
                head.layers[-1].weight.normal_(std=0.5, generator=generator)
        network.save_pretrained(folders[kind])
    return folders


@pytest.fixture(scope="module")
def many_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    build_tiny(folder, choices(MANY), 0, image_size=SIDE)
    return folder


@pytest.fixture(params=KINDS)
def folder(folders: dict[str, Path], request: pytest.FixtureRequest) -> Path:
    return folders[request.param]


@pytest.fixture
def adapter(folder: Path) -> GroundingDinoAdapter:
    return loaded(folder)


def loaded(folder: Path, classes: Sequence[str] = CLASSES, **more: Any) -> GroundingDinoAdapter:
    adapter = load(str(folder), None, data(SIDE), choices(classes, **more), 0)
    adapter.network.eval()
    return adapter


# What it sees


@pytest.mark.parametrize("size", [(64, 64), (200, 90), (61, 117)])
def test_pixels_are_those_of_the_models_own_processor(adapter: Any, folder: Path, size: tuple[int, int]):
    encoded = adapter.encoder.encode(sample(0, size=size))
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    image = Image.open(io.BytesIO(sample(0, size=size).seen.files[0].data))
    expected = processor(images=image, return_tensors="pt")
    assert torch.equal(encoded.pixel_values, expected["pixel_values"][0])
    assert encoded.picture == adapter.encoder.picture(size[1], size[0]) == encoded.pixel_values.shape[1:]
    with torch.no_grad():
        ids = adapter.encoder.prompts.chunks[0].input_ids[None]
        seen = adapter.network.model(pixel_values=encoded.pixel_values[None], input_ids=ids)
    assert adapter.encoder.tokens(size[1], size[0]) == seen.enc_outputs_class.shape[1]


def test_the_recipes_size_limits_the_longer_side_and_the_shorter_in_the_processors_proportion(folder: Path):
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    processor.size = {"shortest_edge": 800, "longest_edge": 1333}
    adapter = load(str(folder), None, data(64), choices(), 0)
    adapter.encoder.processor.image_processor = processor
    encoder = type(adapter.encoder)(adapter.encoder.processor, data(2666), choices(), adapter.network.config)
    assert encoder.picture(1000, 1000) == (1600, 1600)
    assert encoder.picture(1000, 3000) == (889, 2666)


def test_a_checkpoint_is_trained_further_at_the_size_that_its_processor_was_saved_with(folder: Path, tmp_path: Path):
    assert native_image_size(str(folder)) == SIDE
    trained = load(str(folder), None, data(2 * SIDE), choices(), 0)
    trained.network.save_pretrained(tmp_path)
    trained.encoder.save(tmp_path)
    assert native_image_size(str(tmp_path)) == 2 * SIDE
    next(tmp_path.glob("*processor_config.json")).unlink()
    with pytest.raises(ModelError, match="not a checkpoint that transformers loads"):
        native_image_size(str(tmp_path))


def test_an_image_too_narrow_for_the_queries_is_refused_with_what_to_change(adapter: Any):
    with pytest.raises(DataError, match="30 queries") as error:
        adapter.encoder.encode(sample(0, 0, size=(300, 20)))
    assert "data.image_longest_edge" in str(error.value) and error.value.where == "s0"


def test_an_image_that_is_just_wide_enough_is_so_however_it_is_augmented(adapter: Any):
    seen = next(high for high in range(1, 61) if adapter.encoder.unseen(high, 61) is None)
    assert adapter.encoder.unseen(seen - 1, 61) is not None
    encoder = copy.copy(adapter.encoder)
    encoder.data = encoder.data.model_copy(update={"augment": 1.0})
    narrow, sizes = sample(0, 0, size=(61, seen)), set()
    for number in range(60):
        sizes.add(encoder.encode(narrow, augmentation=number).size)
    assert len(sizes) > 20 and (seen, 61) in sizes


def test_what_is_learned_is_what_was_drawn(adapter: Any):
    assert adapter.encoder.supervision(sample(3, size=(90, 70))).wrong is None


# What it learns


def test_the_loss_is_that_of_transformers_on_the_same_outputs(adapter: Any, folder: Path):
    """All decoder layers natively; the proposals through its loss function (its own two tensors are others)."""
    batch = batch_of(adapter, [sample(number, count) for number, count in ((0, 2), (1, 3), (2, 0), (3, 1))])
    with torch.no_grad():
        losses = adapter.losses(batch)
    labels = []
    for row in range(4):
        targets = targets_of(batch, row)
        labels.append({"class_labels": targets.soft.argmax(dim=1), "boxes": targets.boxes})
    native = AutoModelForZeroShotObjectDetection.from_pretrained(folder).eval()
    native.config.auxiliary_loss = True
    text = AutoProcessor.from_pretrained(folder)(text=[list(CLASSES)] * 4, return_tensors="pt")
    with torch.no_grad():
        seen = native(pixel_values=batch.tensors["pixel_values"][:, 0], labels=labels, **text)
    proposals = adapter._answers(batch.tensors["pixel_values"][:, 0], adapter.encoder.prompts.chunks[0])
    logits = torch.full_like(seen.logits, -torch.inf)
    logits[..., : proposals.logits.shape[-1]] = proposals.logits[0].detach()
    config = SimpleNamespace(**{**native.config.to_dict(), "two_stage": False, "auxiliary_loss": False})
    maps, mask = build_label_maps(logits, text["input_ids"]), build_text_mask(logits, text["attention_mask"])
    _, proposed, _ = GroundingDinoForObjectDetectionLoss(
        logits, labels, "cpu", proposals.boxes[0].detach(), config, maps, mask
    )
    for term, theirs, coefficient in (("classes", "loss_ce", 2), ("l1", "loss_bbox", 5), ("giou", "loss_giou", 2)):
        layers = [seen.loss_dict[name] for name in (theirs, f"{theirs}_0")] + [proposed[theirs]]
        assert float(losses[term].sum()) / batch.weights[term] == pytest.approx(
            coefficient * float(sum(layers)), rel=1e-4
        )
    assert batch.weights == dict.fromkeys(losses, 6.0)


def test_images_whose_objects_stand_in_different_prompts_are_learned_together_where_transformers_fails(
    many_folder: Path,
):
    adapter = loaded(many_folder, MANY)
    prompts, ends = adapter.encoder.prompts, (0, 99)
    assert prompts.chunk_of[0] != prompts.chunk_of[99]
    samples = [sample(i, target=objects([(5, 5, 20, 20)], [number])) for i, number in enumerate(ends)]
    assert_additive(adapter, samples)

    processor, native = AutoProcessor.from_pretrained(many_folder), adapter.network
    lists = [MANY[:3], [MANY[number] for number in prompts.chunks[-1].classes]]
    text = processor(text=lists, return_tensors="pt", padding=True)
    box = torch.tensor([[0.2, 0.2, 0.3, 0.3]])
    labels = [{"class_labels": torch.tensor([place]), "boxes": box} for place in (0, len(lists[1]) - 1)]
    pixels = batch_of(adapter, samples).tensors["pixel_values"][:, 0]
    with pytest.raises(IndexError):
        native(pixel_values=pixels, labels=labels, **text)


def test_the_loss_does_not_depend_on_how_a_step_is_cut(adapter: Any):
    samples = [sample(0), sample(1, 3, size=(90, 64)), sample(2, 0), sample(3, 1, size=(48, 64)), sample(4)]
    assert_additive(adapter, samples)


def test_images_without_any_object_teach_that_there_is_none(adapter: Any):
    batch = batch_of(adapter, [sample(0, 0), sample(1, 0)])
    losses = adapter.losses(batch)
    assert batch.weights == dict.fromkeys(losses, 0.0)
    assert losses["l1"].tolist() == losses["giou"].tolist() == [0.0, 0.0]
    sum(value.sum() for value in losses.values()).backward()
    gradients = [p.grad for p in adapter.network.parameters() if p.grad is not None]
    assert losses["classes"].min() > 0 and all(bool(torch.isfinite(one).all()) for one in gradients)


def test_every_part_gets_a_gradient_also_the_heads_of_the_proposals(adapter: Any):
    sum(value.sum() for value in adapter.losses(batch_of(adapter, [sample(0)])).values()).backward()
    without = [name for name, p in adapter.network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not [name for name in without if "encoder_output" in name and "layers.2" in name]
    assert all(
        any(part.holds(n) for n, _ in adapter.network.named_parameters() if n not in without) for part in adapter.parts
    )


def test_a_class_that_is_merely_likely_is_learned_as_such(adapter: Any):
    """The loss of a query's tokens is least where they say what the teacher said."""
    from visiontune.models.grounding_dino import _image_losses

    (chunk,) = adapter.encoder.prompts.chunks
    soft = objects([(10, 10, 20, 20)], [0], soft=np.array([[0.6, 0.3]]))
    targets = targets_of(batch_of(adapter, [sample(0, target=soft)]), 0)
    boxes = targets.boxes[None].repeat(1, 3, 1)
    logits = torch.full((1, 3, len(chunk.input_ids)), -9.0)
    logits[0, 1] = torch.logit(chunk.to_tokens(targets.soft[0]).clamp(1e-4))
    told = logits.clone().requires_grad_()
    losses = _image_losses(boxes, told, chunk, targets)
    losses[0].backward()
    assert losses[0] < 1e-4 and told.grad is not None and told.grad.abs().max() < 1e-4
    for place in range(len(chunk.input_ids)):
        off = logits.clone()
        off[0, 1, place] += 1
        assert _image_losses(boxes, off, chunk, targets)[0] > losses[0]

    drawn = targets_of(batch_of(adapter, [sample(0, target=objects([(10, 10, 20, 20)], [0]))]), 0)
    likely, certain = (_image_losses(boxes * 1.1, logits, chunk, one)[1:] for one in (targets, drawn))
    assert torch.allclose(likely, 0.6 * certain) and certain.min() > 0
    assert batch_of(adapter, [sample(0, target=soft)]).weights["l1"] == pytest.approx(0.6)


def test_what_is_found_inside_a_crowd_is_not_held_against_the_model_in_the_crowds_own_class(many_folder: Path):
    from visiontune.models.grounding_dino import _image_losses, _within

    adapter, whole = loaded(many_folder, MANY), [(0, 0, SIDE, SIDE)]
    batch = batch_of(adapter, [sample(0, target=objects(whole, [99], crowd=[True]))])
    assert batch.weights["classes"] == 0
    chunk = adapter.encoder.prompts.chunks[-1]
    told = torch.zeros(1, 3, len(chunk.input_ids), requires_grad=True)
    boxes = torch.tensor([0.5, 0.5, 0.2, 0.2]).expand(1, 3, 4)
    _image_losses(boxes, told, chunk, _within(targets_of(batch, 0), chunk))[0].backward()
    assert told.grad is not None and chunk.classes[-1] == 99
    judged = (told.grad[0] != 0).all(dim=0)
    assert torch.equal(judged, chunk.place != len(chunk.classes) - 1)


def test_a_class_that_nobody_looked_for_is_neither_learned_nor_found(many_folder: Path):
    from visiontune.models.grounding_dino import _image_losses, _within

    adapter, prompts = loaded(many_folder, MANY), loaded(many_folder, MANY).encoder.prompts
    first = prompts.chunks[0]
    looked_for = np.arange(len(MANY)) % 2 == 0
    looked_for[len(first.classes) :] = False
    told = sample(0, target=objects([(5, 5, 20, 20)], [2], looked_for=looked_for))
    batch = batch_of(adapter, [told])
    logits = torch.zeros(1, 3, len(first.input_ids), requires_grad=True)
    boxes = torch.tensor([0.5, 0.5, 0.2, 0.2]).expand(1, 3, 4)
    _image_losses(boxes, logits, first, _within(targets_of(batch, 0), first))[0].backward()
    assert logits.grad is not None
    judged = (logits.grad[0] != 0).all(dim=0)
    assert torch.equal(judged, (first.place % 2 == 0) | (first.place == len(first.classes)))
    assert torch.equal(judged, (logits.grad[0] != 0).any(dim=0))
    for epoch in range(9):  # a prompt without a class that was looked for teaches nothing
        batch.origins = [(0, 0, epoch)]
        assert adapter._learned(batch, 0, targets_of(batch, 0)) == {0}
    found, everything = adapter.find(batch)[0], adapter.find(batch_of(adapter, [sample(0)]))[0]
    assert len(found) and looked_for[found.classes].all() and not looked_for[everything.classes].all()
    assert not found.soft[:, ~looked_for].any() and everything.soft[:, ~looked_for].any()


def test_a_data_set_without_the_objects_of_an_image_asks_for_none_of_them(many_folder: Path):
    adapter = loaded(many_folder, MANY)
    none = sample(0, target=objects([], [], looked_for=np.zeros(len(MANY), bool)))
    (found,) = adapter.find(batch_of(adapter, [none]))
    assert len(found) == 0


def test_an_image_is_learned_with_the_prompts_of_its_objects_and_one_more_that_changes_by_epoch(many_folder: Path):
    adapter = loaded(many_folder, MANY)
    prompts = adapter.encoder.prompts
    batch = batch_of(adapter, [sample(0, target=objects([(5, 5, 20, 20)] * 2, [0, 99])), sample(1, 0)])
    seen = []
    for epoch in (*range(30), 0):
        batch.origins = [(0, 0, epoch), (0, 1, epoch)]
        learned = [adapter._learned(batch, row, targets_of(batch, row)) for row in (0, 1)]
        assert learned[0] > {0, int(prompts.chunk_of[99])} and [len(one) for one in learned] == [3, 1]
        seen.append(learned)
    assert set().union(*(one[1] for one in seen)) == set(range(len(prompts.chunks)))
    assert seen[0] == seen[-1]


@pytest.mark.parametrize("build", KINDS.values(), ids=KINDS)
def test_a_small_one_learns_to_find_what_was_drawn(build: Callable[..., None], tmp_path: Path):
    build(tmp_path, choices(), 0, image_size=SIDE)
    adapter = loaded(tmp_path)
    samples = [sample(number) for number in range(3)]
    batch = batch_of(adapter, samples)
    optimizer = torch.optim.AdamW(adapter.network.parameters(), lr=2e-3, weight_decay=1e-4)
    adapter.network.train()
    for step in range(90):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 20)
        losses = adapter.losses(batch)
        optimizer.zero_grad()
        sum(losses[term].sum() / batch.weights[term] for term in losses).backward()
        torch.nn.utils.clip_grad_norm_(adapter.network.parameters(), 0.5)
        optimizer.step()
    adapter.network.eval()
    truths: Any = [one.target for one in samples]
    scores = score_objects(truths, adapter.find(batch), [(SIDE, SIDE)] * 3, CLASSES, prompts="none", halves=2)
    found = scores.metrics["box_ap50"].value
    assert found is not None and found > 0.8


def test_training_twice_gives_the_same_losses_and_gradients_bit_for_bit(adapter: Any):
    adapter.network.train()
    batch, seen = batch_of(adapter, [sample(0), sample(1, size=(80, 64))]), []
    for _ in range(2):
        adapter.network.zero_grad()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            losses = torch.stack(list(adapter.losses(batch).values()))
        losses.sum().backward()
        seen.append((losses.detach(), [p.grad for p in adapter.network.parameters() if p.grad is not None]))
    assert torch.equal(seen[0][0], seen[1][0])
    assert all(torch.equal(*pair) for pair in zip(seen[0][1], seen[1][1], strict=True))


# What it finds


def test_what_is_found_has_the_models_own_boxes_and_scores(adapter: Any, folder: Path):
    """The score of a class is the mean over its tokens, its box that of its query, cut at the image's edges."""
    one = sample(5, size=(90, 70))
    (found,) = adapter.find(batch_of(adapter, [one]))
    processor = AutoProcessor.from_pretrained(folder)
    text = processor(text=[list(CLASSES)], return_tensors="pt")
    native = AutoModelForZeroShotObjectDetection.from_pretrained(folder).eval()
    with torch.no_grad():
        seen = native(pixel_values=adapter.encoder.encode(one).pixel_values[None], **text)
    tokens = build_label_maps(seen.logits, text["input_ids"])[0].bool()
    likely = torch.stack([seen.logits[0].sigmoid()[:, mine].mean(dim=1) for mine in tokens], dim=1)
    best = likely.flatten().argsort(descending=True)[:60]
    np.testing.assert_allclose(found.scores, likely.flatten()[best][: len(found)], atol=1e-5)
    np.testing.assert_allclose(found.soft[0], likely[best[0] // 2], atol=1e-5)
    assert found.classes[0] == best[0] % 2
    centre, half = seen.pred_boxes[0, best[0] // 2].double().numpy().reshape(2, 2) * [90, 70] * np.array([[1], [0.5]])
    low, high = (centre - half).clip(0, [90, 70]), (centre + half).clip(0, [90, 70])
    np.testing.assert_allclose(found.boxes[0], [*low, *(high - low)], atol=1e-3)
    ends = found.boxes[:, :2] + found.boxes[:, 2:]
    assert (found.boxes >= 0).all() and (ends <= [90 + 1e-9, 70 + 1e-9]).all()


def test_no_more_is_found_than_is_asked_for_and_the_best_comes_first(folder: Path):
    adapter = loaded(folder, most=7)
    (found,) = adapter.find(batch_of(adapter, [sample(0)]))
    assert len(found) == 7 and found.soft.shape == (7, 2)
    assert (np.diff(found.scores) <= 0).all()


def test_what_is_found_in_an_image_does_not_depend_on_its_neighbours(adapter: Any):
    small, large = sample(0, size=(64, 40)), sample(1, size=(64, 64))
    (alone,) = adapter.find(batch_of(adapter, [small]))
    beside, _ = adapter.find(batch_of(adapter, [small, large]))
    np.testing.assert_allclose(beside.boxes, alone.boxes, atol=1e-4)
    np.testing.assert_allclose(beside.soft, alone.soft, atol=1e-5)


def test_of_a_thousand_classes_each_is_found_under_its_own_number(folders: dict[str, Path]):
    names = [f"part {number}" for number in range(1000)]
    adapter = loaded(folders["mm"], names)
    (found,) = adapter.find(batch_of(adapter, [sample(0, 0)]))
    assert len(found) == 100 and found.soft.shape == (100, 1000)
    np.testing.assert_allclose(found.soft[np.arange(100), found.classes], found.scores, atol=1e-6)
    # Asked for the classes of one prompt alone, the model says the same of them.
    best = int(found.classes[0])
    mine = next(c.classes.tolist() for c in adapter.encoder.prompts.chunks if best in c.classes.tolist())
    adapter.encoder = adapter.encoder.asking([names[number] for number in mine])
    (again,) = adapter.find(batch_of(adapter, [sample(0, 0)]))
    assert mine[int(again.classes[0])] == best and again.scores[0] == pytest.approx(found.scores[0], abs=1e-6)


def test_a_trained_model_can_be_asked_for_other_classes(folder: Path):
    adapter = loaded(folder)
    trained = adapter.encoder
    adapter.encoder = trained.asking(["green star", "Blue disc", "red square"])
    assert adapter.encoder.prompts.phrases == ("green star", "blue disc", "red square")
    assert trained.classes == CLASSES and trained.prompts.phrases == CLASSES
    batch = batch_of(adapter, [sample(0, target=objects([], []))])
    (found,) = adapter.find(batch)
    (expected,) = loaded(folder, ["green star", "blue disc", "red square"]).find(batch)
    assert found.soft.shape[1] == 3
    assert np.array_equal(found.soft, expected.soft) and np.array_equal(found.classes, expected.classes)


# Its parts and adapters


def test_the_parts_hold_every_weight_once(adapter: Any):
    check_parts(adapter.network, adapter.parts, {part.name: "full" for part in adapter.parts})


STATES = {
    "fusion and decoder": {"fusion": "lora", "decoder": "lora"},
    "all with linear layers": dict.fromkeys(
        ("vision_encoder", "text_encoder", "projector", "fusion", "decoder", "heads"), "lora"
    ),
    "heads in full": {"fusion": "lora", "heads": "full"},
}


def adapted(adapter: GroundingDinoAdapter, states: dict[str, Any], steps: int = 3) -> None:
    """Adapt the parts and train them a little. What is trained is used: all of it gets a gradient."""
    states = {part.name: "frozen" for part in adapter.parts} | states
    adapter.peft = apply_states(adapter.network, adapter.parts, states, Lora(rank=4, alpha=8, dropout=0.0), 1)
    batch = batch_of(adapter, [sample(0), sample(1)])
    weights = [p for p in adapter.trained_module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        sum(value.sum() for value in adapter.losses(batch).values()).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
    assert all(weight.grad is not None for weight in weights)


@pytest.mark.parametrize("states", STATES.values(), ids=STATES)
def test_an_adapter_is_switched_off_without_a_trace_merges_and_loads_in_plain_peft(
    adapter: Any, folder: Path, states: dict[str, Any], tmp_path: Path
):
    batch = batch_of(adapter, [sample(0), sample(1)])
    before = answers_of(adapter, batch)
    adapted(adapter, states)
    after = answers_of(adapter, batch)
    assert apart(before, after) > 1e-2
    with adapter.peft.disable_adapter():
        assert equal(answers_of(adapter, batch), before)

    save_adapter(adapter.peft, tmp_path / "adapter")
    plain: Any = prepared(AutoModelForZeroShotObjectDetection.from_pretrained(folder).eval())
    PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).eval()
    assert apart(answers_of(GroundingDinoAdapter(plain, adapter.encoder), batch), after) < 1e-5

    merged: Any = adapter.peft.merge_and_unload()
    assert apart(answers_of(GroundingDinoAdapter(merged, adapter.encoder), batch), after) < 1e-4
    merged.save_pretrained(tmp_path / "merged")
    assert apart(answers_of(loaded_with_processor(tmp_path / "merged", adapter), batch), after) < 1e-4


def loaded_with_processor(folder: Path, adapter: GroundingDinoAdapter) -> GroundingDinoAdapter:
    adapter.encoder.save(folder)
    return loaded(folder)


@pytest.mark.parametrize("shared", [True, False])
def test_box_heads_that_share_their_weights_share_their_adapter(folder: Path, shared: bool):
    """The decoder refines boxes with the same head that answers; whether all layers have one head, the config says."""
    base = AutoModelForZeroShotObjectDetection.from_pretrained(folder)
    config = type(base.config).from_pretrained(folder, decoder_bbox_embed_share=shared)
    adapter = GroundingDinoAdapter(prepared(type(base)(config).eval()), loaded(folder).encoder)
    adapted(adapter, {"heads": "lora"}, steps=1)
    network: Any = adapter.network
    assert network.bbox_embed[1] is network.model.decoder.bbox_embed[1]
    assert (network.bbox_embed[0] is network.bbox_embed[1]) == shared


def test_an_adapter_holds_nothing_of_the_base_model(adapter: Any, tmp_path: Path):
    adapted(adapter, {"fusion": "lora", "decoder": "lora"}, steps=1)
    save_adapter(adapter.peft, tmp_path)
    assert all(".lora_" in name for name in load_file(tmp_path / "adapter_model.safetensors"))


@pytest.mark.parametrize("build", KINDS.values(), ids=KINDS)
def test_the_same_seed_builds_the_same_small_model(build: Callable[..., None], tmp_path: Path):
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        build(tmp_path / name, choices(), seed, image_size=SIDE)
    files = {name: sorted(p.name for p in (tmp_path / name).iterdir()) for name in ("one", "two")}
    assert files["one"] == files["two"]
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files["one"])
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "other")]
    assert weights[0] != weights[1]
