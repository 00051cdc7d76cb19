"""What is refused before anything is computed: numbers that leave nothing, folders that hold something else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import visiontune
from tests.object_runs import QUICK
from visiontune.data.dataset import Dataset
from visiontune.demo_shapes import draw_source
from visiontune.errors import DataError, RecipeError, RunError
from visiontune.files import write_json
from visiontune.run import Run
from visiontune.run_group import RunGroup
from visiontune.training import loop
from visiontune.training.refusals import refuse_taken

Plan = Callable[..., Run]


def train(data: Any, out: Path, model: str = "tiny/rf-detr", *, options: Any = None, **overrides: Any) -> Any:
    return visiontune.train(data, model=model, out=out, overrides={**QUICK, **overrides}, **(options or {}))


@pytest.mark.parametrize(
    ("options", "overrides", "error", "found"),
    [
        ({"limit": 0}, {}, RecipeError, "limit of 0 takes nothing"),
        ({"limit": -3}, {}, RecipeError, "limit of -3"),
        ({"epochs": 0}, {}, RecipeError, "In 0 epochs nothing is learned"),
        ({"epochs": -1.0}, {}, RecipeError, "In -1 epochs"),
        ({}, {"lora.rank": 4}, RecipeError, "lora.rank is set, and no part has adapters: .*decoder full"),
    ],
)
def test_a_run_that_would_learn_nothing_or_not_what_was_asked(
    shapes: Dataset,
    tmp_path: Path,
    options: dict[str, Any],
    overrides: dict[str, Any],
    error: type[Exception],
    found: str,
) -> None:
    with pytest.raises(error, match=found):
        train(shapes.path, tmp_path / "run", options=options, **overrides)
    assert not (tmp_path / "run/recipe.yaml").exists()


def test_masks_are_not_learned_from_data_without_masks(tmp_path: Path) -> None:
    from visiontune.demo_shapes import draw_source

    data = visiontune.prepare(draw_source(tmp_path / "source", 8, masks=False), tmp_path / "data")
    with pytest.raises(RecipeError, match="The data have no masks"):
        train(data.path, tmp_path / "run", **{"objects.masks": True})


def test_a_model_for_objects_is_not_given_the_names_of_folders(digits: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="this model finds objects") as refused:
        train(digits.path, tmp_path / "run")
    assert "COCO" in str(refused.value.fix)


def test_numbers_that_leave_nothing_are_refused_of_a_run(
    detector_run: Run,
    source: Path,
    tmp_path: Path,
) -> None:
    picture = source.parent / "images" / "0000.png"
    for limit in (0, -1):
        with pytest.raises(RecipeError, match="takes nothing"):
            visiontune.evaluate(detector_run.path, limit=limit)
        with pytest.raises(RecipeError, match="takes nothing"):
            visiontune.predict(detector_run.path, [picture], limit=limit)
    with pytest.raises(RecipeError, match="score of 5 is none"):
        visiontune.predict(detector_run.path, [picture], least_score=5)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="pictures go to a folder"):
        visiontune.predict(detector_run.path, [picture], pictures=tmp_path / "file")


def test_classes_are_named_once_each(group: RunGroup, source: Path) -> None:
    picture = source.parent / "images" / "0000.png"
    for classes, found in ((["", " "], "No class is named"), (["car", "bus", "Car."], "read alike: car, Car.")):
        with pytest.raises(RecipeError, match=found):
            visiontune.predict(group.path, [picture], classes=classes)


def test_a_run_is_not_planned_among_other_things(shapes: Dataset, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").touch()
    (tmp_path / "file").touch()
    for place, found in (("photos", "holds other things: a.jpg"), ("file", "This is a file, and a run is a folder")):
        with pytest.raises(RunError, match=found):
            train(shapes.path, tmp_path / place)


def test_a_plan_that_never_took_a_step_makes_room_for_another(plan: Plan, tmp_path: Path) -> None:
    run = plan("mistaken")
    write_json(run.path / "state.json", {"status": "failed", "attempt": 0, "step": 0, "reason": "no such part"})
    (run.path / "data").mkdir()
    run.base_folder.mkdir(exist_ok=True)
    refuse_taken(run)
    assert not run.recipe_path.exists() and not run.base_folder.exists() and (run.path / "data").is_dir()
    refuse_taken(run)  # what is left is what a run may be planned beside

    run = plan("begun")
    (run.path / "metrics.jsonl").write_text('{"kind": "step", "step": 1, "attempt": 1}\n')
    with pytest.raises(RunError, match="holds a run already"):
        refuse_taken(run)
    assert run.recipe_path.exists()


def test_all_that_a_start_without_a_step_left_makes_room_and_what_is_not_of_a_run_is_never_removed(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    run = plan("begun", {"features.cache": "always", "tracking.trackers": ["tensorboard"]})
    monkeypatch.setattr(loop, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        loop.train_run(run)
    (run.path / "font-0123456789abcdef.font").touch()
    (run.path / "notes.txt").touch()
    stood = sorted(run.path.iterdir())
    names = {path.name for path in stood}
    assert {"metrics.jsonl", "features.json", "features", "tracking", "recipe.yaml", "start.json"} <= names
    with pytest.raises(RunError, match=r"holds other things: notes\.txt\."):
        refuse_taken(run)
    assert sorted(run.path.iterdir()) == stood
    (run.path / "notes.txt").unlink()
    refuse_taken(run)
    assert {path.name for path in run.path.iterdir()} == {"forecast.json", "lock"}


def test_a_plan_that_is_being_trained_is_left_alone(plan: Plan) -> None:
    run = plan("running")
    run.set_state("running")
    with run.locked(), pytest.raises(RunError, match="holds a run already"):
        refuse_taken(run)
    assert run.recipe_path.exists()


def test_a_preset_leaves_out_what_detectors_cannot_do(
    shapes: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("visiontune.training.loop.train_run", lambda run, callbacks: run)  # planned, not trained
    recipe = train(shapes.path, tmp_path / "run", options={"preset": "low-memory"}).recipe
    assert recipe.batch.tokens == 1 and not recipe.machine.recompute


def test_images_too_narrow_for_the_model_are_named_before_the_first_step(tmp_path: Path) -> None:
    place = draw_source(tmp_path / "source", 12)
    file = json.loads(place.read_text())
    narrow = place.parent / "images" / "narrow.png"
    Image.effect_noise((300, 20), 60).convert("RGB").save(narrow)
    file["images"].append({"id": 999, "file_name": narrow.name, "width": 300, "height": 20})
    place.write_text(json.dumps(file))
    with pytest.raises(DataError, match="1 image is of a size that the model cannot see") as error:
        train(place, tmp_path / "run", "tiny/mm-grounding-dino")
    assert "narrow.png" in (error.value.where or "") and "--data.image_longest_edge" in (error.value.fix or "")
    assert "300 x 20 pixels becomes" in error.value.found
    assert not Run(tmp_path / "run").began
