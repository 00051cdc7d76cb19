"""Distillation: what a teacher's findings become, and how much of them is held to what people drew."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import visiontune
from tests.coco_scenes import objects as drawn
from tests.killed import Counted, count_changes_of_the_disk, killed
from visiontune.data.annotations.masks import from_pixels, to_pixels
from visiontune.data.dataset import Dataset
from visiontune.data.objects import Objects
from visiontune.data.sample import ImageFile, Images, ObjectPrediction, Sample
from visiontune.data.split import SPLITS
from visiontune.errors import DataError, ModelError, RecipeError
from visiontune.models.adapter import Batch
from visiontune.models.load import build_tiny_finder, load_adapter
from visiontune.models.objects import ObjectAdapter, ObjectEncoder, nothing
from visiontune.recipe import Data, DatasetUse, ObjectChoices
from visiontune.training import distil as module
from visiontune.training.batches import Reading
from visiontune.training.distil import distil
from visiontune.training.teacher import Finder, Teacher
from visiontune.training.teacher_targets import FEW, ClassThreshold, blend, choose_thresholds, label

CLASSES = ("cat", "dog", "owl")
SIZE = (60, 80)


def found(boxes: Sequence[Sequence[float]], classes: Sequence[int], scores: Sequence[float]) -> Objects:
    """A teacher's findings; each other class is a quarter as likely as the one found."""
    one = drawn(boxes, classes, scores=scores)
    soft = np.outer(scores, np.full(len(CLASSES), 0.25))
    soft[np.arange(len(scores)), list(classes)] = scores
    return replace(one, soft=soft)


def at(*limits: float | None) -> dict[str, ClassThreshold]:
    return {name: ClassThreshold(limit, False, 9, 9, 9) for name, limit in zip(CLASSES, limits, strict=True)}


def prediction(truth: Objects, target: Objects) -> ObjectPrediction:
    return ObjectPrediction("an image", ("an image",), target, CLASSES, SIZE, truth)


# Thresholds.


@st.composite
def images(draw: st.DrawFn) -> list[ObjectPrediction]:
    """Images whose boxes lie close together, so that many overlap, with few scores, so that many are equal."""
    place = st.tuples(*(st.integers(0, 4),) * 2, *(st.integers(6, 9),) * 2)
    made = []
    for _ in range(draw(st.integers(1, 4))):
        truths = draw(st.lists(st.tuples(place, st.integers(0, 1), st.integers(0, 5)), min_size=1, max_size=6))
        guesses = draw(st.lists(st.tuples(place, st.integers(0, 1), st.integers(1, 9)), max_size=8))
        truth = drawn([t[0] for t in truths], [t[1] for t in truths], crowd=[t[2] == 0 for t in truths])
        target = drawn([g[0] for g in guesses], [g[1] for g in guesses], scores=[g[2] / 10 for g in guesses])
        made.append(prediction(truth, target))
    return made


def counted(predictions: list[ObjectPrediction], limit: float, classes: Sequence[int]) -> tuple[int, int, int]:
    """By the book, one threshold at a time: true objects, findings that count, and those that are right."""
    count = guessed = right = 0
    for one in predictions:
        truth, target = one.truth, one.target
        assert truth is not None and target.scores is not None
        free = [i for i in range(len(truth)) if not truth.crowd[i] and truth.classes[i] in classes]
        count += len(free)
        chosen = [j for j in range(len(target)) if target.scores[j] >= limit and target.classes[j] in classes]
        for j in sorted(chosen, key=lambda j: (-target.scores[j], j)):
            shared = [overlap(target.boxes[j], truth.boxes[i]) for i in range(len(truth))]
            same = [i for i in range(len(truth)) if truth.classes[i] == target.classes[j]]
            best = max((i for i in same if i in free), key=lambda i: shared[i][0] / shared[i][1], default=None)
            if best is not None and shared[best][0] / shared[best][1] >= 0.5:
                free.remove(best)
                right += 1
                guessed += 1
            elif not any(
                truth.crowd[i] and shared[i][0] / (target.boxes[j][2] * target.boxes[j][3]) >= 0.5 for i in same
            ):
                guessed += 1
    return count, guessed, right


def overlap(box: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """The area that two boxes share, and that of both together."""
    sides = [max(0.0, min(box[k] + box[k + 2], other[k] + other[k + 2]) - max(box[k], other[k])) for k in (0, 1)]
    shared = sides[0] * sides[1]
    return shared, box[2] * box[3] + other[2] * other[3] - shared


@given(images())
@settings(max_examples=200)
def test_no_threshold_has_a_better_f1_and_of_equal_ones_the_highest_is_chosen(
    predictions: list[ObjectPrediction],
) -> None:
    def f1(limit: float, classes: Sequence[int]) -> float:
        count, guessed, right = counted(predictions, limit, classes)
        return 2 * right / max(1, count + guessed)

    limits = [k / 10 for k in range(1, 10)]
    try:
        chosen = choose_thresholds(predictions)
    except DataError:
        assert max(f1(limit, (0, 1)) for limit in limits) == 0
        return
    for number, name in enumerate(CLASSES[:2]):
        one = chosen[name]
        judged = (0, 1) if one.from_all_classes else (number,)
        best = max(f1(limit, judged) for limit in limits)
        assert one.from_all_classes == (counted(predictions, 0, (number,))[0] < FEW)
        if one.threshold is None:
            assert best == 0
            continue
        assert f1(one.threshold, judged) == pytest.approx(best, abs=1e-12)
        assert all(f1(limit, judged) < best for limit in limits if limit > one.threshold)
        assert (one.drawn, one.found, one.right) == counted(predictions, one.threshold, (number,))


def row_of_boxes(count: int) -> list[list[float]]:
    return [[12 * i, 0, 10, 10] for i in range(count)]


def test_each_class_has_its_own_threshold_with_its_figures() -> None:
    truth = drawn(row_of_boxes(12), [0] * 6 + [1] * 6)
    # Cats: the best six of eight are right; dogs: the best three of four, and three are missed.
    guesses = [*row_of_boxes(6), [200, 0, 10, 10], [220, 0, 10, 10], *row_of_boxes(9)[6:], [240, 0, 10, 10]]
    scores = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.35, 0.34, 0.33, 0.1]
    chosen = choose_thresholds([prediction(truth, drawn(guesses, [0] * 8 + [1] * 4, scores=scores))])
    assert (chosen["cat"].threshold, chosen["dog"].threshold) == (0.4, 0.33)
    assert (chosen["cat"].precision, chosen["cat"].recall, chosen["cat"].f1) == (1, 1, 1)
    assert chosen["dog"].to_json() == {
        "threshold": 0.33, "from_all_classes": False, "drawn": 6, "found": 3, "right": 3,
        "precision": 1.0, "recall": 0.5, "f1": 0.666667,
    }  # fmt: skip


def test_of_two_thresholds_with_the_same_f1_the_higher_is_chosen() -> None:
    truth = drawn(row_of_boxes(6), [0] * 6)
    guesses = [*row_of_boxes(2), *[[200.0, 12 * i, 10, 10] for i in range(3)], row_of_boxes(3)[2]]
    scores = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]  # from 0.8 on 2 of 2 are right, from 0.4 on 3 of 6: F1 is 0.5 both times
    chosen = choose_thresholds([prediction(truth, drawn(guesses, [0] * 6, scores=scores))])
    assert (chosen["cat"].threshold, chosen["cat"].f1) == (0.8, 0.5)


def test_findings_with_one_score_are_taken_together_or_not_at_all() -> None:
    truth = drawn(row_of_boxes(6), [0] * 6)
    guesses = [*row_of_boxes(4), *[[200.0, 12 * i, 10, 10] for i in range(4)]]
    chosen = choose_thresholds([prediction(truth, drawn(guesses, [0] * 8, scores=[0.9] * 3 + [0.5] * 5))])
    assert (chosen["cat"].threshold, chosen["cat"].found, chosen["cat"].right) == (0.9, 3, 3)


def test_a_class_with_too_few_objects_has_the_threshold_of_all_and_that_is_said() -> None:
    truth = drawn(row_of_boxes(10), [0] * 9 + [2])
    guesses = drawn(row_of_boxes(10), [0] * 9 + [2], scores=[0.8] * 9 + [0.2])
    chosen = choose_thresholds([prediction(truth, guesses)])
    assert chosen["owl"].from_all_classes and chosen["dog"].from_all_classes and not chosen["cat"].from_all_classes
    assert chosen["owl"].threshold == chosen["dog"].threshold == 0.2
    assert (chosen["owl"].drawn, chosen["owl"].right, chosen["dog"].drawn, chosen["dog"].recall) == (1, 1, 0, None)


def test_a_class_of_which_nothing_is_right_is_never_taken() -> None:
    truth = drawn(row_of_boxes(10), [0] * 5 + [1] * 5)
    guesses = drawn([*row_of_boxes(5), *[[200.0, 20, 10, 10]] * 5], [0] * 5 + [1] * 5, scores=[0.9] * 10)
    chosen = choose_thresholds([prediction(truth, guesses)])
    assert chosen["dog"].threshold is None
    taken = label(found([[0, 0, 9, 9]], [1], [1.0]), chosen, CLASSES, SIZE)
    assert len(taken) == 0


def test_a_teacher_that_finds_nothing_right_and_truths_without_objects_are_refused() -> None:
    truth = drawn(row_of_boxes(6), [0] * 6)
    for predictions in ([prediction(truth, drawn([], [], scores=[]))], [prediction(drawn([], []), truth)], []):
        with pytest.raises(DataError):
            choose_thresholds(predictions)


# Targets.


def test_sure_findings_are_objects_doubtful_ones_crowds_and_the_rest_is_background() -> None:
    guesses = found(row_of_boxes(4), [0, 0, 0, 1], [0.6, 0.29, 0.61, 0.3])
    taken = label(guesses, at(0.6, 0.5, 0.5), CLASSES, SIZE)
    assert taken.boxes[:, 0].tolist() == [24, 0, 36]
    assert taken.crowd.tolist() == [False, False, True]
    assert taken.ids == (1, 2, 3)
    assert taken.scores is None and taken.soft is not None
    assert taken.soft[0].tolist() == [0.61, 0.1525, 0.1525]


def test_a_box_that_was_given_two_classes_becomes_one_object_of_the_surer_class() -> None:
    guesses = found([[0, 0, 20, 20], [0, 0, 20, 20], [0, 1, 20, 20]], [0, 1, 1], [0.6, 0.55, 0.2])
    taken = label(guesses, at(0.7, 0.5, 0.5), CLASSES, SIZE)
    assert (taken.classes.tolist(), taken.crowd.tolist()) == ([1], [False])


def test_a_doubtful_second_box_on_an_object_is_no_crowd() -> None:
    guesses = found([[0, 0, 20, 20], [0, 6, 20, 20], [0, 30, 20, 20]], [0, 0, 0], [0.9, 0.3, 0.3])
    taken = label(guesses, at(0.5, 0.5, 0.5), CLASSES, SIZE)
    assert taken.boxes[:, 1].tolist() == [0, 30]
    assert taken.crowd.tolist() == [False, True]


def test_boxes_end_at_the_images_edges_and_slivers_are_left_out() -> None:
    height, width = SIZE
    guesses = found([[-5, -5, 20, 20], [width - 0.5, 0, 30, 30], [10, 40, 40, 40]], [0, 0, 0], [0.9, 0.8, 0.7])
    taken = label(guesses, at(0.5, 0.5, 0.5), CLASSES, SIZE)
    assert taken.boxes.tolist() == [[0, 0, 15, 15], [10, 40, 40, height - 40]]


def test_nothing_found_is_nothing_to_learn() -> None:
    for none in (nothing(3), replace(nothing(3), scores=None, soft=None)):
        taken = label(none, at(0.5, 0.5, 0.5), CLASSES, SIZE)
        assert len(taken) == 0 and taken.soft is not None and taken.soft.shape == (0, 3)


def test_blending_keeps_what_people_drew_and_adds_the_teachers_doubts_where_it_found_the_object() -> None:
    truth = drawn([[0, 0, 20, 20], [30, 0, 20, 20], [0, 30, 20, 20]], [0, 1, 2], crowd=[False, False, True])
    guesses = found([[0, 1, 20, 20], [60, 0, 9, 9], [0, 30, 20, 20]], [1, 0, 2], [0.8, 0.9, 0.9])
    sure = label(guesses, at(0.5, 0.5, 0.5), CLASSES, SIZE)
    blended = blend(truth, sure, 0.25)
    assert replace(blended, soft=None).__dict__ == truth.__dict__
    assert blended.soft is not None
    assert blended.soft[0].tolist() == pytest.approx([0.75 + 0.25 * 0.2, 0.25 * 0.8, 0.25 * 0.2])
    assert blended.soft[1:].tolist() == [[0, 1, 0], [0, 0, 1]]


def test_a_finding_speaks_for_one_object_alone() -> None:
    truth = drawn([[0, 0, 20, 20], [0, 2, 20, 20]], [0, 0])
    sure = label(found([[0, 2, 20, 20]], [0], [0.5]), at(0.5, 0.5, 0.5), CLASSES, SIZE)
    blended = blend(truth, sure, 1.0)
    assert blended.soft is not None
    assert blended.soft[:, 0].tolist() == [1.0, 0.5]


# Teachers: models that see painted boxes as they are painted.

RED_OF_CLASS = 60


class _Processor:
    def to_json_string(self) -> str:
        return "{}"


class PaintedEncoder(ObjectEncoder):
    """Pixels as they are; one token for 64 of them."""

    def see(self, image: Image.Image) -> tuple[torch.Tensor, tuple[int, int]]:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float(), (image.height, image.width)

    def picture(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    def mask_size(self, picture: tuple[int, int]) -> None:
        return None

    def tokens(self, height: int, width: int) -> int:
        return height * width // 64

    def loss_weights(self, encoded: Any) -> dict[str, float]:
        return {}


class Painted(ObjectAdapter):
    """Finds boxes that are painted without blue: red says the class, green the score. As a detector does it says of
    each box how likely the next class is, too. `asked` are the ids it saw, batch by batch."""

    family, terms, parts = "painted", (), ()

    def __init__(self, classes: tuple[str, ...] = CLASSES) -> None:
        self.network = torch.nn.Identity()
        data = Data(datasets=(DatasetUse(path="x", content_hash="x"),), image_longest_edge=64)
        self.encoder = PaintedEncoder(_Processor(), data, ObjectChoices(classes=classes, masks=False, mirror="none"))
        self.asked: list[list[str]] = []

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def find(self, batch: Batch) -> list[Objects]:
        self.asked.append(batch.ids)
        return [
            self._found(pixels[0, :, :height, :width].permute(1, 2, 0).numpy().astype(int))
            for pixels, (height, width) in zip(
                batch.tensors["pixel_values"], batch.tensors["picture"].tolist(), strict=True
            )
        ]

    def _found(self, pixels: np.ndarray) -> Objects:
        boxes, classes, scores = [], [], []
        painted = pixels[pixels[..., 2] == 0]
        for red, green, _ in sorted({tuple(p) for p in painted.tolist()}, key=lambda p: -p[1]):
            rows, columns = np.nonzero((pixels == (red, green, 0)).all(axis=2))
            box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            boxes += [box, box]
            classes += [red // RED_OF_CLASS, (red // RED_OF_CLASS + 1) % len(CLASSES)]
            scores += [green / 250, green / 1000]
        soft = found(boxes, classes, scores).soft
        assert soft is not None
        soft[1::2] = soft[::2]
        return replace(found(boxes, classes, scores), soft=soft)


class Filler(Painted):
    """Fills the boxes that it is given; of dogs it expects to be wrong."""

    prompted = True

    def find(self, batch: Batch) -> list[Objects]:
        self.asked.append(batch.ids)
        made = []
        for row, size in enumerate(batch.tensors["size"].tolist()):
            present = batch.tensors["present"][row]
            classes = batch.tensors["classes"][row][present].numpy()
            boxes = batch.tensors["boxes"][row][present].double().numpy() * np.tile(size[::-1], 2)
            boxes[:, :2] -= boxes[:, 2:] / 2
            masks = []
            for left, top, width, height in boxes.round().astype(int):
                pixels = np.zeros(size, bool)
                pixels[top : top + height, left : left + width] = True
                masks.append(from_pixels(pixels))
            made.append(drawn(boxes.tolist(), classes.tolist(), masks=masks, scores=np.where(classes == 1, 0.3, 0.9)))
        return made


def teacher(*, segmenter: bool = False, tokens: int = 400) -> Teacher:
    def finder(adapter: ObjectAdapter) -> Finder:
        return Finder(adapter, tokens, "fp32", torch.device("cpu"))

    return Teacher(finder(Painted()), finder(Filler()) if segmenter else None)


def asked(of: Teacher) -> list[str]:
    assert isinstance(of.detector.adapter, Painted)
    return [name for batch in of.detector.adapter.asked for name in batch]


Mark = tuple[int, int, tuple[int, int, int, int]]
"""What is painted: a class, a score in 1/250 and a box."""


def painted(path: Path, seed: int, marks: Sequence[Mark], size: tuple[int, int] = (40, 56)) -> None:
    """A picture of soft blobs that no other seed looks like, and boxes painted on it."""
    coarse = np.random.default_rng(seed).integers(60, 256, (6, 6, 3), dtype=np.uint8)
    pixels = np.array(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BILINEAR))
    for number, green, (left, top, width, height) in marks:
        pixels[top : top + height, left : left + width] = (number * RED_OF_CLASS, green, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def marks_of(number: int) -> list[Mark]:
    """A sure cat everywhere, a fainter dog in each second picture, something faint that is no cat in each third."""
    faint = (50 + number % 7) if number % 3 == 0 else 0
    marks: list[Mark] = [(0, 180 + number, (2, 3, 12, 12))]
    marks += [(1, 100 + number, (20, 4, 14, 10))] if number % 2 else []
    return marks + ([(0, faint, (4, 22, 10, 12))] if faint else [])


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """42 pictures with their cats and dogs; what is faint was not drawn."""
    folder = tmp_path_factory.mktemp("labelled")
    images, annotations = [], []
    for number in range(42):
        painted(folder / "source" / f"{number:02d}.png", number, marks_of(number))
        images.append({"id": number, "file_name": f"{number:02d}.png", "width": 56, "height": 40})
        for place, green, box in marks_of(number):
            if green >= 100:
                one = {"image_id": number, "category_id": place, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
                annotations.append({"id": len(annotations) + 1, **one})
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES)]
    value = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "source" / "annotations.json").write_text(json.dumps(value))
    return visiontune.prepare(folder / "source" / "annotations.json", folder / "photos", workers=1)


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory, labelled: Dataset) -> Path:
    """Six new pictures, and a copy of one that is held out."""
    folder = tmp_path_factory.mktemp("unlabelled") / "new"
    painted(folder / "sure.png", 100, [(0, 200, (5, 5, 15, 15)), (1, 130, (25, 5, 15, 15))])
    painted(folder / "doubtful.png", 101, [(0, 120, (5, 5, 15, 15))])
    painted(folder / "faint.png", 102, [(0, 20, (5, 5, 15, 15))])
    painted(folder / "inner" / "empty.png", 103, [])
    painted(folder / "large.png", 104, [(1, 200, (5, 5, 70, 50)), (0, 120, (5, 60, 15, 15))], (80, 90))
    painted(folder / "owl.png", 105, [(2, 240, (5, 5, 15, 15))])
    held = labelled.index("test").ids[0]
    shutil.copy(labelled.path.parent / "source" / held, folder / "held_out.png")
    return folder


def test_a_model_in_the_others_place_is_no_teacher() -> None:
    detector, segmenter = (Finder(a, 400, "fp32", torch.device("cpu")) for a in (Painted(), Filler()))
    other = Finder(Filler(("cat",)), 400, "fp32", torch.device("cpu"))
    for parts in ((segmenter, None), (detector, detector), (detector, other)):
        with pytest.raises(ModelError):
            Teacher(*parts)


def test_batches_hold_no_more_tokens_than_they_may_and_findings_keep_their_order(tmp_path: Path) -> None:
    samples = []
    for number in range(9):
        side = 24 + 8 * (number * 5 % 9)
        painted(tmp_path / "x.png", number, [(0, 100 + number, (3, 3, 10, 10))], (side, side))
        image = ImageFile((tmp_path / "x.png").read_bytes(), "x.png")
        samples.append(Sample(str(number), Images((image,)), nothing(3)))
    one = teacher(tokens=150)
    made = one.find(samples)
    assert [objects.scores is not None and round(objects.scores[0] * 250) for objects in made] == list(range(100, 109))
    assert isinstance(one.detector.adapter, Painted)
    batches = one.detector.adapter.asked
    assert sorted(asked(one)) == sorted(str(i) for i in range(9))
    assert 1 < len(batches) < 9
    for batch in batches:
        longest = max((24 + 8 * (int(name) * 5 % 9)) ** 2 // 64 for name in batch)
        assert len(batch) == 1 or longest * len(batch) <= 150


def targets(dataset: Dataset, split: str = "train") -> dict[str, Objects]:
    index = dataset.index(split)
    made = {}
    for i, name in enumerate(index.ids):
        target = index.target(i)
        assert isinstance(target, Objects)
        made[name] = target
    return made


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, labelled: Dataset, unlabelled: Path) -> Path:
    """A distillation without interruption."""
    out = tmp_path_factory.mktemp("straight") / "out"
    distil(teacher(), [labelled], [unlabelled], out, teacher_key="a")
    return out


def test_labelled_images_keep_their_rows_and_what_is_held_out_is_not_touched(straight: Path, labelled: Dataset) -> None:
    made = Dataset.open(straight / "labelled-1")
    made.verify()
    for split in SPLITS:
        mine, theirs = made.index(split), labelled.index(split)
        assert mine.ids == theirs.ids
        for i in range(len(mine.ids)):
            assert made.sample(split, i).seen == labelled.sample(split, i).seen
        assert split == "train" or vars(mine) == vars(theirs)
    for name, target in targets(made).items():
        truth = targets(labelled)[name]
        assert replace(target, soft=None).boxes.tolist() == truth.boxes.tolist()
        assert (target.classes.tolist(), target.ids) == (truth.classes.tolist(), truth.ids)
        assert target.soft is not None
        score = (180 + int(name[:2])) / 250
        assert target.soft[0].tolist() == pytest.approx([0.5 + score / 2, score / 8, score / 8], abs=1e-4)


def test_unlabelled_images_are_learned_as_the_thresholds_say_and_what_is_held_out_is_not(straight: Path) -> None:
    made = Dataset.open(straight / "unlabelled")
    made.verify()
    found = targets(made)
    assert made.info.splits == {"train": 6, "validation": 0, "test": 0}
    sure = found["sure.png"]
    assert sure.soft is not None and not sure.crowd.any()
    boxes = dict(zip(sure.classes.tolist(), sure.boxes.tolist(), strict=True))
    assert boxes == {0: [5, 5, 15, 15], 1: [25, 5, 15, 15]}
    assert sure.soft[sure.classes == 0].tolist() == [[0.8, 0.2, 0.2]]
    assert (found["doubtful.png"].classes.tolist(), found["doubtful.png"].crowd.tolist()) == ([0], [True])
    assert len(found["faint.png"]) == len(found["inner/empty.png"]) == 0
    assert "held_out.png" not in found
    (left_out,) = made.info.left_out
    assert (left_out.id, left_out.code) == ("held_out.png", "leak-across-splits")
    assert "teacher" in made.info.provenance.format and made.info.provenance.source == "new"


def test_the_record_names_thresholds_counts_and_what_was_left_out(straight: Path, labelled: Dataset) -> None:
    record = json.loads((straight / "distillation.json").read_text())
    count = labelled.count("validation")
    cats = sum(int((one.classes == 0).sum()) for one in targets(labelled, "validation").values())
    assert record["validation_images"] == count
    cat = record["thresholds"]["cat"]
    assert (cat["drawn"], cat["found"], cat["right"], cat["f1"]) == (cats, cats, cats, 1.0)
    assert cat["threshold"] == min((180 + int(name[:2])) / 250 for name in targets(labelled, "validation"))
    assert record["thresholds"]["owl"]["from_all_classes"]
    (of_labelled,) = record["labelled"]
    assert of_labelled["objects"] == of_labelled["found_by_the_teacher"]
    assert of_labelled["made_from"] == labelled.info.content_hash
    of_unlabelled = record["unlabelled"]
    assert of_unlabelled["objects"] == {"cat": 1, "dog": 2, "owl": 1}
    assert of_unlabelled["doubtful"] == {"cat": 2, "dog": 0, "owl": 0}
    assert (of_unlabelled["images"], of_unlabelled["nothing_found"]) == (6, 2)
    assert [row["id"] for row in of_unlabelled["left_out"]] == ["held_out.png"]
    assert {path.name for path in straight.iterdir()} == {"labelled-1", "unlabelled", "distillation.json"}


def test_a_segmenter_draws_masks_of_what_is_taken_where_it_trusts_itself(
    labelled: Dataset, unlabelled: Path, tmp_path: Path
) -> None:
    one = teacher(segmenter=True)
    made = distil(one, [labelled], [unlabelled], tmp_path / "out", teacher_key="a")[1]
    sure = targets(made)["sure.png"]
    cat, dog = (sure.masks[sure.classes.tolist().index(number)] for number in (0, 1))
    assert dog is None and cat is not None
    wanted = np.zeros((40, 56), bool)
    wanted[5:20, 5:20] = True
    assert (to_pixels(cat) == wanted).all()
    assert targets(made)["doubtful.png"].masks == (None,)
    assert targets(made)["large.png"].masks == (None, None)
    assert one.segmenter is not None and isinstance(one.segmenter.adapter, Filler)
    told = {name for batch in one.segmenter.adapter.asked for name in batch}
    assert told == {"sure.png", "large.png", "owl.png"}


def test_without_unlabelled_images_the_labelled_ones_are_blended_alone(labelled: Dataset, tmp_path: Path) -> None:
    made = distil(teacher(), [labelled, labelled], [], tmp_path / "out", teacher_key="a", share=0.0)
    assert [one.path.name for one in made] == ["labelled-1", "labelled-2"]
    assert json.loads((tmp_path / "out" / "distillation.json").read_text())["unlabelled"] is None
    for target in targets(made[1]).values():
        assert target.soft is not None
        assert (target.soft.max(axis=1) == 1).all() and (target.soft.sum(axis=1) == 1).all()


def test_what_is_done_is_not_done_again_but_under_another_key_it_is(
    straight: Path, labelled: Dataset, unlabelled: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(straight, out)
    again = teacher()
    made = distil(again, [labelled], [unlabelled], out, teacher_key="a")
    assert not asked(again)
    assert [one.info.content_hash for one in made] == [
        Dataset.open(straight / name).info.content_hash for name in ("labelled-1", "unlabelled")
    ]
    other = teacher()
    distil(other, [labelled], [], out, teacher_key="b")
    assert len(asked(other)) == labelled.count("train") + labelled.count("validation")
    assert {path.name for path in out.iterdir()} == {"labelled-1", "distillation.json"}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_killed_anywhere_it_goes_on_ends_the_same_and_finds_nothing_twice(
    straight: Path, labelled: Dataset, unlabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_IMAGES", 8)
    images = labelled.count("train") + labelled.count("validation") + 6
    resumed_from = set()
    for moment in range(0, 200, 4):
        out = tmp_path / f"out {moment}"

        def work(counted: Counted, out: Path = out) -> None:
            count_changes_of_the_disk(counted)
            Path.rename = counted(Path.rename)
            Painted.find = counted(Painted.find)
            distil(teacher(), [labelled], [unlabelled], out, teacher_key="a")

        finished = killed(moment, work)
        kept = [path.read_text().count("\n") for path in (out / ".distil").glob("found-*.jsonl")]
        done = (out / "distillation.json").is_file()
        again = teacher()
        distil(again, [labelled], [unlabelled], out, teacher_key="a")
        assert len(asked(again)) == (0 if done else images - sum(kept))
        resumed_from.add(len(kept))
        assert files(out) == files(straight)
        if finished:
            break
    assert finished and len(resumed_from) > 3


def test_data_that_do_not_fit_are_refused(labelled: Dataset, unlabelled: Path, tmp_path: Path) -> None:
    one, out = teacher(), tmp_path / "out"
    other = Teacher(Finder(Painted(("dog", "cat", "owl")), 400, "fp32", torch.device("cpu")))
    with pytest.raises(DataError, match="dog, cat, owl"):
        distil(other, [labelled], [unlabelled], out, teacher_key="a")
    with pytest.raises(RecipeError):
        distil(one, [labelled], [unlabelled], out, teacher_key="a", share=1.5)
    with pytest.raises(DataError, match="validation"):
        distil(one, [], [unlabelled], out, teacher_key="a")
    held = tmp_path / "held"
    held.mkdir()
    shutil.copy(unlabelled / "held_out.png", held)
    with pytest.raises(DataError, match="held out"):
        distil(one, [labelled], [held], out, teacher_key="a")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("important")
    with pytest.raises(DataError, match=r"thesis\.txt"):
        distil(one, [labelled], [unlabelled], tmp_path / "taken", teacher_key="a")
    assert not asked(one)


def test_a_student_learns_from_what_was_written_and_less_from_what_the_teacher_doubts(
    straight: Path, tmp_path: Path
) -> None:
    datasets = [Dataset.open(straight / name) for name in ("labelled-1", "unlabelled")]
    objects = ObjectChoices(classes=CLASSES, masks=False, mirror="none")
    build_tiny_finder("tiny/rf-detr", tmp_path, objects, 0, 128)
    data = Data(datasets=(DatasetUse(path="x", content_hash="x"),), image_longest_edge=128)
    student = load_adapter(str(tmp_path), None, data, objects=objects)
    rows = [(0, 0, 0), *((1, i, 0) for i in range(6))]
    batch = Reading(datasets, student.encoder).batch(rows)
    learned = [next(iter(targets(datasets[0]).values())), *targets(datasets[1]).values()]
    weights = [one.soft[~one.crowd].max(axis=1).sum() for one in learned if one.soft is not None]
    assert batch.weights["l1"] == pytest.approx(sum(weights), abs=1e-4)
    losses = student.losses(batch)
    assert all(torch.isfinite(loss).all() for loss in losses.values())
    torch.stack([loss.sum() for loss in losses.values()]).sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.network.parameters())
