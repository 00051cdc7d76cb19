"""Distillation: what a teacher's findings become, whatever happens on the way."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import visiontune
from tests.coco_scenes import mask_of
from tests.coco_scenes import objects as drawn
from tests.killed import Counted, count_changes_of_the_disk, killed
from tests.painted_teacher import CLASSES, Filler, Painted, PaintedEncoder, asked, marks_of, painted, teacher
from visiontune.data.annotations.masks import to_pixels
from visiontune.data.dataset import Dataset
from visiontune.data.objects import Objects
from visiontune.data.sample import ImageFile, Images, Sample
from visiontune.data.split import SPLITS
from visiontune.errors import DataError, ModelError, RecipeError
from visiontune.models.load import build_tiny_finder, load_adapter
from visiontune.models.objects import nothing
from visiontune.recipe import ObjectChoices
from visiontune.recipe_sections import Data, DatasetUse
from visiontune.training import distil as module
from visiontune.training.batches import Reading
from visiontune.training.distil import distil
from visiontune.training.teacher import Finder, Teacher
from visiontune.training.teacher_targets import ClassThreshold


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
    threshold = json.loads((straight / "distillation.json").read_text())["thresholds"]["cat"]["threshold"]
    doubtful = 0
    for name, target in targets(made).items():
        truth = targets(labelled)[name]
        assert replace(target, soft=None).boxes.tolist() == truth.boxes.tolist()
        assert (target.classes.tolist(), target.ids) == (truth.classes.tolist(), truth.ids)
        assert target.soft is not None
        score = (180 + int(name[:2])) / 250
        wanted = [0.5 + score / 2, score / 8, score / 8] if score >= threshold else [1, 0, 0]
        assert target.soft[0].tolist() == pytest.approx(wanted, abs=1e-4)
        doubtful += score < threshold
    assert 0 < doubtful < len(targets(made))


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
    sure = sum((180 + int(name[:2])) / 250 >= cat["threshold"] for name in targets(labelled))
    assert 0 < of_labelled["found_by_the_teacher"]["cat"] == sure < of_labelled["objects"]["cat"]
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


def test_a_detector_that_draws_masks_teaches_none_that_are_empty_and_none_of_what_it_doubts() -> None:
    full, empty = (mask_of(np.full((8, 8), value, np.uint8)) for value in (1, 0))
    boxes = [[0, 0, 4, 4], [4, 0, 4, 4], [0, 4, 4, 4], [4, 4, 4, 4]]
    found = drawn(boxes, [0] * 4, masks=[full, empty, full, None], crowd=[False, False, True, False])
    (made,) = teacher().draw([], [found])
    assert made.masks == (full, None, None, None)
    assert replace(made, masks=found.masks).__dict__ == found.__dict__


def test_without_unlabelled_images_the_labelled_ones_are_blended_alone(labelled: Dataset, tmp_path: Path) -> None:
    made = distil(teacher(), [labelled, labelled], [], tmp_path / "out", teacher_key="a", share=0.0)
    assert [one.path.name for one in made] == ["labelled-1", "labelled-2"]
    assert json.loads((tmp_path / "out" / "distillation.json").read_text())["unlabelled"] is None
    for target in targets(made[1]).values():
        assert target.soft is not None
        assert (target.soft.max(axis=1) == 1).all() and (target.soft.sum(axis=1) == 1).all()


def test_what_is_done_is_not_done_again_but_under_another_key_it_is(
    straight: Path, labelled: Dataset, unlabelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
    capsys.readouterr()
    distil(other, [labelled], [unlabelled], tmp_path / "new", teacher_key="a")
    assert "unlabelled images 1 are left out: leak-across-splits 1" in capsys.readouterr().err
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


def listing(dataset: Dataset, classes: tuple[str, ...], out: Path) -> Dataset:
    """The same images, in which only these classes were looked for."""
    source = dataset.path.parent / "source"
    value = json.loads((source / "annotations.json").read_text())
    value["categories"] = [{"id": CLASSES.index(name), "name": name} for name in classes]
    kept = {one["id"] for one in value["categories"]}
    value["annotations"] = [one for one in value["annotations"] if one["category_id"] in kept]
    shutil.copytree(source, out / "source")
    (out / "source" / "annotations.json").write_text(json.dumps(value))
    return visiontune.prepare(out / "source" / "annotations.json", out / "photos", workers=1)


def test_datasets_keep_to_their_own_classes_and_what_nobody_labelled_gets_those_of_all(
    labelled: Dataset, unlabelled: Path, straight: Path, tmp_path: Path
) -> None:
    cats, dogs = (listing(labelled, (name,), tmp_path / name) for name in ("cat", "dog"))
    made = distil(teacher(), [dogs, cats], [unlabelled], tmp_path / "out", teacher_key="a")
    assert [one.classes for one in made] == [("dog",), ("cat",), ("dog", "cat")], "no owls: nobody asks for them"
    for one, given in zip(made, (dogs, cats), strict=False):
        one.verify()
        mine, theirs = targets(one), targets(given)
        assert {name: len(found) for name, found in mine.items()} == {name: len(t) for name, t in theirs.items()}
        assert all(found.soft is None or found.soft.shape == (len(found), 1) for found in mine.values())
    whole, parted = targets(Dataset.open(straight / "unlabelled")), targets(made[2])
    for name, found in whole.items():
        names = [CLASSES[c] for c in found.of_classes(np.array([True, True, False])).classes]
        assert [(made[2].classes or ())[c] for c in parted[name].classes] == names
    record = json.loads((tmp_path / "out" / "distillation.json").read_text())
    assert record["classes"] == list(record["thresholds"]) == ["dog", "cat"]
    assert [list(one["objects"]) for one in record["labelled"]] == [["dog"], ["cat"]]
    assert list(record["unlabelled"]["objects"]) == ["dog", "cat"]
    again = teacher()
    distil(again, [dogs, cats], [unlabelled], tmp_path / "out", teacher_key="a")
    assert not asked(again)


def test_a_class_of_which_no_finding_is_taken_is_not_taught_as_absent(
    labelled: Dataset, unlabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = module.choose_thresholds
    monkeypatch.setattr(
        module, "choose_thresholds", lambda found: choose(found) | {"owl": ClassThreshold(None, False, 6, 0, 0)}
    )
    known, new = distil(teacher(), [labelled], [unlabelled], tmp_path / "out", teacher_key="a")
    assert known.listed == CLASSES and new.listed == ("cat", "dog")
    assert len(targets(new)["owl.png"]) == 0


def test_a_limit_is_one_of_what_the_teacher_looks_at_too(labelled: Dataset, unlabelled: Path, tmp_path: Path) -> None:
    one, out = teacher(), tmp_path / "out"
    known, new = distil(one, [labelled], [unlabelled], out, teacher_key="a", limit=5)
    assert known.info.splits == {"train": 5, "validation": 5, "test": labelled.count("test")}
    assert list(targets(known)) == labelled.index("train").ids[:5] and known.info.limit == 5
    assert len(targets(new)) == 5 and len(asked(one)) == 15
    assert {row.id for row in new.info.left_out} == {"held_out.png"}
    assert json.loads((out / "distillation.json").read_text())["limit"] == 5
    distil(again := teacher(), [labelled], [unlabelled], out, teacher_key="a", limit=5)
    assert not asked(again)
    whole = distil(again, [labelled], [unlabelled], out, teacher_key="a")
    assert len(targets(whole[0])) == labelled.count("train")


def test_data_that_do_not_fit_are_refused(labelled: Dataset, unlabelled: Path, tmp_path: Path) -> None:
    one, out = teacher(), tmp_path / "out"
    other = Teacher(Finder(Painted(("dog", "cat")), 400, "fp32", torch.device("cpu")))
    with pytest.raises(DataError, match="The teacher finds dog, cat; this dataset has owl too"):
        distil(other, [labelled], [unlabelled], out, teacher_key="a")
    with pytest.raises(RecipeError):
        distil(one, [labelled], [unlabelled], out, teacher_key="a", share=1.5)
    with pytest.raises(DataError, match="no object to learn from"):
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


def test_images_that_the_teacher_cannot_see_are_left_out_with_their_reason(
    labelled: Dataset, unlabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, out = teacher(), tmp_path / "out"
    monkeypatch.setattr(PaintedEncoder, "unseen", lambda _, high, wide: "too wide" if wide > 80 else None)
    made = distil(one, [labelled], [unlabelled], out, teacher_key="a")[1]
    left_out = {row.id: (row.code, row.found) for row in made.info.left_out}
    assert left_out["large.png"] == ("unseen-by-teacher", "too wide") and "held_out.png" in left_out
    assert "large.png" not in targets(made) and len(targets(made)) == 5
    assert "large.png" not in asked(one)


def test_labelled_images_that_the_teacher_cannot_see_are_named_before_it_looks_at_any(
    labelled: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = teacher()
    monkeypatch.setattr(PaintedEncoder, "unseen", lambda _, high, wide: "too wide" if wide > 50 else None)
    with pytest.raises(DataError, match=f"{labelled.count('train') + labelled.count('validation')} images") as error:
        distil(one, [labelled], [], tmp_path / "out", teacher_key="a")
    assert f"train {labelled.index('train').ids[0]}" in (error.value.where or "")
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
