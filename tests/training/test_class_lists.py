"""Several datasets that list other classes, learned together."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import visiontune
from tests.conftest import SAME_EVERYWHERE
from tests.object_samples import listing
from visiontune.data.dataset import Dataset
from visiontune.data.objects import Objects
from visiontune.data.sample import ObjectPrediction
from visiontune.demo_shapes import CLASSES
from visiontune.errors import DataError
from visiontune.exports.verify_run import verify_run
from visiontune.run import Run
from visiontune.training.class_lists import classes_of, said_of, warn_of_class_lists
from visiontune.training.evaluate_objects import score_predictions
from visiontune.training.model import open_datasets

DISC, SQUARE, _, CROSS = CLASSES[:4]
QUICK: dict[str, Any] = {
    "data.image_longest_edge": 64,
    "objects.queries": 16,
    "batch.samples": 4,
    "batch.window": 16,
    "schedule.steps": 4,
    "evaluation.every": 4,
    "checkpoints.every": 4,
    **SAME_EVERYWHERE,
}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[Dataset]:
    """Discs and squares in the one, crosses and discs in the other; all of them are in the images of both."""
    folder = tmp_path_factory.mktemp("lists")
    sources = (listing(folder / "a", (DISC, SQUARE), 0, count=60), listing(folder / "b", (CROSS, DISC), 2, count=60))
    return [visiontune.prepare(source, folder / f"data-{source.parent.name}", workers=1) for source in sources]


@pytest.fixture(scope="module")
def run(both: list[Dataset], tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("runs") / "run"
    trained: Any = visiontune.train(*(one.path for one in both), model="tiny/rf-detr", out=out, overrides=QUICK)
    return trained


def drawn_in(dataset: Dataset, split: str, i: int) -> Objects:
    target = dataset.sample(split, i).target
    assert isinstance(target, Objects)
    return target


def test_classes_are_those_of_the_first_and_then_what_others_add(both: list[Dataset]) -> None:
    assert classes_of(both) == (DISC, SQUARE, CROSS)
    assert classes_of(both[::-1]) == (CROSS, DISC, SQUARE)
    assert said_of(both[:1]) is None and said_of(both) is not None


def test_class_numbers_are_those_of_the_run_and_the_names_stay(both: list[Dataset]) -> None:
    classes = classes_of(both)
    for own in both:
        ours = pickle.loads(pickle.dumps(own.among(classes)))
        names = own.classes or ()
        for i in range(own.count("train")):
            before, after = drawn_in(own, "train", i), drawn_in(ours, "train", i)
            assert [names[c] for c in before.classes] == [classes[c] for c in after.classes]
            assert np.array_equal(before.boxes, after.boxes) and before.looked_for is None
            assert after.looked_for is not None and after.looked_for.tolist() == [name in names for name in classes]
            stored = ours.index("train").target(i)
            assert isinstance(stored, Objects) and np.array_equal(stored.classes, after.classes)
            assert np.array_equal(stored.looked_for, after.looked_for)
        assert own.among(names).looked_for is None, "all that it lists is asked for"


def test_the_same_classes_in_another_order_are_the_same_classes(tmp_path: Path) -> None:
    one, other = (
        visiontune.prepare(listing(tmp_path / name, order, 3, count=12), tmp_path / f"data-{name}", workers=1)
        for name, order in (("a", (DISC, SQUARE)), ("b", (SQUARE, DISC)))
    )
    mapped = other.among(classes_of([one, other]))
    assert said_of([one, other]) is None and mapped.looked_for is None
    for split in ("train", "validation", "test"):
        for i in range(one.count(split)):
            assert drawn_in(one, split, i).classes.tolist() == drawn_in(mapped, split, i).classes.tolist()


def test_a_dataset_with_a_class_that_is_not_among_them_or_without_objects_is_refused(
    both: list[Dataset], digits: Dataset
) -> None:
    with pytest.raises(DataError, match="holds no objects"):
        digits.among((DISC, SQUARE))
    with pytest.raises(DataError, match=CROSS) as error:
        both[1].among((DISC, SQUARE))
    assert str(both[1].path) in str(error.value)


def test_a_class_that_was_looked_for_since_and_never_found_makes_it_another_dataset(
    run: Run, both: list[Dataset], tmp_path: Path
) -> None:
    copies = [shutil.copytree(one.path, tmp_path / one.path.name) for one in both]
    uses = tuple(
        use.model_copy(update={"path": str(copy)}) for use, copy in zip(run.recipe.data.datasets, copies, strict=True)
    )
    recipe = run.recipe.model_copy(update={"data": run.recipe.data.model_copy(update={"datasets": uses})})
    assert [one.listed for one in open_datasets(recipe)] == [(DISC, SQUARE), (CROSS, DISC)]
    source = listing(tmp_path / "a", (DISC, SQUARE), 0, count=60)
    value = json.loads(source.read_text())
    value["categories"].append({"id": 9, "name": CROSS})
    source.write_text(json.dumps(value))
    again = visiontune.prepare(source, copies[0], workers=1)
    assert again.listed == (DISC, SQUARE, CROSS) and again.info.splits == both[0].info.splits
    with pytest.raises(DataError, match="has changed since the run was planned"):
        open_datasets(recipe)


def test_a_dataset_that_lists_no_class_is_refused_beside_others(both: list[Dataset], tmp_path: Path) -> None:
    empty = visiontune.prepare(listing(tmp_path / "none", (), 5, count=12), tmp_path / "data", workers=1)
    with pytest.raises(DataError, match="lists no class"):
        classes_of([*both, empty])


def test_what_differs_is_said_and_names_that_look_alike_are_named(
    both: list[Dataset], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    warn_of_class_lists(both[:1])
    assert not capsys.readouterr().err
    source = listing(tmp_path / "c", (DISC,), 7, count=12)
    source.write_text(source.read_text().replace(f'"name": "{DISC}"', f'"name": "{DISC.upper()}"'))
    third = visiontune.prepare(source, tmp_path / "data", workers=1)
    capsys.readouterr()
    warn_of_class_lists([*both, third])
    said = capsys.readouterr().err
    assert f"{both[0].path} does not list 2 classes of the others: {CROSS}, {DISC.upper()}." in said
    assert f"different classes: {DISC}, {DISC.upper()}." in said


def test_a_run_learns_all_classes_and_its_recipe_says_whose_they_are(run: Run) -> None:
    assert run.status == "finished" and run.recipe.objects is not None
    assert run.recipe.objects.classes == (DISC, SQUARE, CROSS)
    assert run.recipe.why["objects.classes"].startswith("those of 2 datasets together, 1 in all of them")
    supervised = next(one for one in run.receipts if one["name"] == "supervised")
    assert supervised["status"] == "passed"
    lists = {example["dataset"]: example["looked_for"] for example in supervised["examples"]}
    assert lists == {0: [DISC, SQUARE], 1: [DISC, CROSS]}


def test_an_image_is_scored_by_the_classes_of_its_own_dataset(run: Run) -> None:
    scores: Any = visiontune.evaluate(run.path, split="test")
    lines = (run.path / "evaluations/test/predictions.jsonl").read_text().splitlines()
    classes = (DISC, SQUARE, CROSS)
    made = [ObjectPrediction.from_json(json.loads(line), classes) for line in lines]
    datasets = open_datasets(run.recipe)
    rows = np.cumsum([dataset.count("test") for dataset in datasets]).tolist()
    of = [made[: rows[0]], made[rows[0] :]]
    assert len(made) == rows[1]
    found = [{classes[c] for one in mine for c in one.target.classes} for mine in of]
    assert found == [{DISC, SQUARE}, {DISC, CROSS}]
    # What the images of another dataset show changes nothing in a class that this one alone lists.
    alone = [score_predictions(mine, "none", halves=0) for mine in of]
    for name, own in ((SQUARE, alone[0]), (CROSS, alone[1])):
        for figure in ("box_ap", "box_ap50", "box_ar100"):
            assert scores.metric(f"{figure}.{name}").value == own.metric(f"{figure}.{name}").value


def test_ids_that_several_datasets_have_in_common_are_kept_apart(run: Run, both: list[Dataset], tmp_path: Path) -> None:
    shared = set.intersection(*(set(one.index("test").ids) for one in both))
    assert shared, "files of one name"
    checks = {check.name: check for check in verify_run(run)}
    assert checks["answers"].status == "passed", checks["answers"].found
    images = sum(one.count("test") for one in both)
    visiontune.evaluate(run.path, split="test")
    same = visiontune.compare(run.path, run.path, split="test")
    assert same.n == images and not same.only_first and not same.only_second
    again: Any = visiontune.train(
        *(one.path for one in both[::-1]),
        model="tiny/rf-detr",
        out=tmp_path / "turned",
        overrides={**QUICK, "schedule.steps": 1},
    )
    visiontune.evaluate(again.path, split="test")
    turned = visiontune.compare(run.path, again.path, split="test")
    assert turned.n == images - 2 * len(shared) and len(turned.only_first) == len(turned.only_second) == 2 * len(shared)
