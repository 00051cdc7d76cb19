"""`visiontune compare`: two runs held to each other from what their evaluations wrote."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import visiontune
from tests.coco_scenes import Scene, random_scene
from tests.metrics.test_response_scores import session
from visiontune.cli import main
from visiontune.data.objects import Objects
from visiontune.data.sample import ObjectPrediction, Prediction, Text
from visiontune.errors import DataError, RecipeError, RunError
from visiontune.metrics.object_scores import Prompts, score_objects
from visiontune.metrics.predicted_session import PredictedSession
from visiontune.metrics.response_scores import score_responses
from visiontune.recipe import Recipe
from visiontune.run import Run
from visiontune.run_group import RunGroup
from visiontune.training.evaluate_objects import evaluate_split_of_objects
from visiontune.training.evaluate_responses import evaluate_split_of_responses
from visiontune.training.ranks import Ranks

TRUTHS = {f"image-{i}": ("cat", "dog")[i % 2] for i in range(40)}
Evaluated = Callable[..., Run]


@pytest.fixture
def evaluated(tmp_path: Path, recipe_of: Recipe) -> Evaluated:
    """Runs whose answers to the test split are wrong for these of the samples."""

    def make(name: str, wrong: Sequence[str], labels: list[str] | None = None, **changed: str) -> Run:
        run = Run(tmp_path / name)
        folder = run.path / "evaluations" / "test"
        folder.mkdir(parents=True)
        recipe_of.save(run.recipe_path)
        (run.path / "labels.json").write_text(json.dumps({"labels": labels}))
        truths = {**TRUTHS, **changed}
        made = [
            Prediction(key, (key,), Text("bird" if key in wrong else truth), {"confidence": 0.5}, Text(truth))
            for key, truth in truths.items()
        ]
        (folder / "predictions.jsonl").write_text("".join(json.dumps(one.to_json()) + "\n" for one in made))
        return run

    return make


def test_the_better_run_is_found_on_the_samples_that_both_answered(
    evaluated: Evaluated, capsys: pytest.CaptureFixture[str]
) -> None:
    one = evaluated("a", list(TRUTHS)[:30], left="cat")
    other = evaluated("b", list(TRUTHS)[:10])
    found = visiontune.compare(one.path, other.path)
    assert (found.n, found.only_first, found.only_second) == (40, ("left",), ())
    exact = next(metric for metric in found.metrics if metric.name == "exact_match")
    assert (exact.first.value, exact.second.value, exact.difference.value) == (0.25, 0.75, 0.5)
    assert exact.verdict == "better"
    for arguments in ([], ["--json"]):
        with pytest.raises(SystemExit) as ended:
            main(["compare", str(one.path), str(other.path), *arguments])
        assert ended.value.code == 0
        printed = capsys.readouterr().out
        if arguments:
            assert json.loads(printed)["metrics"]["exact_match"] == exact.to_json()
        else:
            assert "exact_match: 0.2500, 0.7500, +0.5000" in printed and "better" in printed
            assert f"only in {one.path}: 1, such as left" in printed


def test_runs_with_one_set_of_labels_are_compared_by_the_scores_of_classes(evaluated: Evaluated) -> None:
    one, other = evaluated("a", [], ["cat", "dog"]), evaluated("b", list(TRUTHS)[:20], ["dog", "cat"])
    names = [metric.name for metric in visiontune.compare(one.path, other.path).metrics]
    assert names == ["exact_match", "normalised_match", "macro_f1", "outside_labels"]
    free = evaluated("c", [])
    assert "cer" in [metric.name for metric in visiontune.compare(one.path, free.path).metrics]


def test_a_run_that_was_not_evaluated_is_an_error_with_the_command(evaluated: Evaluated) -> None:
    one, other = evaluated("a", []), evaluated("b", [])
    with pytest.raises(RunError, match=rf"visiontune evaluate {one.path} --split validation"):
        visiontune.compare(one.path, other.path, split="validation")


def test_runs_held_to_other_truths_or_other_samples_are_refused(evaluated: Evaluated) -> None:
    one, other = evaluated("a", []), evaluated("b", [], **{"image-3": "cat"})
    with pytest.raises(DataError, match="different truths") as caught:
        visiontune.compare(one.path, other.path)
    assert caught.value.where == "image-3"
    (other.path / "evaluations" / "test" / "predictions.jsonl").write_text("")
    with pytest.raises(DataError, match="share no sample"):
        visiontune.compare(one.path, other.path)


def test_a_group_of_runs_is_refused_with_one_of_its_runs(evaluated: Evaluated, tmp_path: Path) -> None:
    one = evaluated("group/detector", [])
    RunGroup(tmp_path / "group", {"detector": one}).save()
    with pytest.raises(RecipeError, match="group/detector"):
        visiontune.compare(tmp_path / "group", one.path)


@pytest.fixture
def detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Runs that found these objects in the images of a scene, scored as an evaluation scores them."""
    monkeypatch.setattr(Run, "recipe", SimpleNamespace(target="objects", data=SimpleNamespace(datasets=())))

    def make(name: str, scene: Scene, found: Sequence[Objects], prompts: Prompts = "none") -> Path:
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").write_text("")
        seen = zip(found, scene.truths, scene.sizes, strict=True)
        made = [
            ObjectPrediction(str(i), (), target, tuple(scene.class_names), size, truth)
            for i, (target, truth, size) in enumerate(seen)
        ]
        evaluate_split_of_objects(Run(tmp_path / name), made, "test", Ranks("cpu"), 1, prompts, 0.0)
        return tmp_path / name

    return make


def test_runs_that_find_objects_are_compared_by_ap_over_the_images_that_both_saw(detected: Callable[..., Path]) -> None:
    scene = random_scene(5, images=30, classes=3, most_objects=5, detections=4, side=120)
    good = [replace(truth, scores=np.ones(len(truth)), crowd=np.zeros(len(truth), bool)) for truth in scene.truths]
    fewer = replace(scene, truths=scene.truths[:20], sizes=scene.sizes[:20])
    found = visiontune.compare(detected("noisy", scene, scene.predictions), detected("good", fewer, good[:20]))
    assert (found.n, len(found.only_first), found.only_second) == (20, 10, ())
    assert {one.name: one.verdict for one in found.metrics} == {"box_ap": "better", "box_ap50": "better"}
    scores = score_objects(fewer.truths, scene.predictions[:20], fewer.sizes, scene.class_names, halves=0)
    assert found.metrics[0].first.value == pytest.approx(scores.metric("box_ap").value)


def test_runs_that_looked_for_other_classes_are_compared_by_those_of_both(
    detected: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    scene = random_scene(5, images=30, classes=3, most_objects=5, detections=4, side=120)
    asked = np.array([True, True, False])  # of the first twenty images

    def seen_by(classes: np.ndarray, objects: Sequence[Objects], images: int, **changes: np.ndarray) -> list[Objects]:
        return [replace(o.of_classes(classes), **changes) if i < images else o for i, o in enumerate(objects)]

    some = replace(scene, truths=seen_by(asked, scene.truths, 20, looked_for=asked))
    first = detected("some", some, seen_by(asked, scene.predictions, 20))
    found = visiontune.compare(first, detected("all", scene, scene.predictions))
    last = scene.class_names[2]
    assert (found.n, found.left_out, found.only_first, found.only_second) == (30, {last: 20}, (), ())
    # One model, of which only the questions differ.
    assert {one.difference.value for one in found.metrics} == {0.0}
    # A run that does not know the class is compared by the others, whatever the order of its list.
    turned = [replace(one.of_classes(asked), classes=1 - one.of_classes(asked).classes) for one in scene.predictions]
    truths = [replace(one.of_classes(asked), classes=1 - one.of_classes(asked).classes) for one in scene.truths]
    names = [scene.class_names[1], scene.class_names[0]]
    fewer = detected("fewer", replace(scene, truths=truths, class_names=names), turned)
    again = visiontune.compare(fewer, first)
    assert again.left_out == {last: 10} and {one.difference.value for one in again.metrics} == {0.0}
    with pytest.raises(SystemExit):
        main(["compare", str(fewer), str(first)])
    assert f"only one of the runs looked for it: {last} in 10 images" in capsys.readouterr().out


def test_runs_that_answer_other_questions_are_not_compared(
    detected: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = random_scene(6, images=4, classes=2, most_objects=3, detections=2, masks=True)
    one = detected("one", scene, scene.predictions)
    other = detected("other", replace(scene, class_names=["cell", "dust"]), scene.predictions)
    with pytest.raises(DataError, match="no class in the same images"):
        visiontune.compare(one, other)
    truths = [replace(found, scores=None) for found in scene.predictions]
    drawn = detected("drawn", replace(scene, truths=truths), scene.predictions, "ground-truth boxes")
    for pair in ((drawn, one), (one, drawn)):
        with pytest.raises(RecipeError, match="in boxes that it is given") as caught:
            visiontune.compare(*pair)
        assert caught.value.where == str(drawn)
    targets, none = {"one": "objects", "other": "text"}, SimpleNamespace(datasets=())
    monkeypatch.setattr(Run, "recipe", property(lambda run: SimpleNamespace(target=targets[run.path.name], data=none)))
    with pytest.raises(RecipeError, match="One run learns objects, the other text"):
        visiontune.compare(one, other)


def test_recordings_are_compared_by_the_bins_that_both_runs_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "recipe", SimpleNamespace(target="responses"))
    true = session("a", trials=30)
    flat = replace(true, rates=np.full_like(true.rates, 0.8))
    kept = np.flatnonzero(true.places > 1)  # the second run has a longer burn-in
    cut = replace(flat, **{name: getattr(flat, name)[kept] for name in ("rates", "counts", "valid", "trials")},
                  conditions=flat.conditions[kept], places=flat.places[kept])  # fmt: skip
    cut = replace(cut, valid=cut.valid & (cut.places[:, None] % 5 != 3))
    runs = [_with(tmp_path / name, sessions) for name, sessions in (("true", [true]), ("flat", [cut]))]
    found = visiontune.compare(runs[0], runs[1])
    assert found.n == len(kept) and found.only_second == ()
    assert found.only_first == (f"{len(true.trials) - len(kept)} bins of session a",)
    bits = next(metric for metric in found.metrics if metric.name == "bits_per_spike")
    assert bits.verdict == "worse"
    counted = replace(cut, rates=true.rates[kept])  # what is valid in both counts for both
    assert bits.first.value == pytest.approx(score_responses([counted]).metric("bits_per_spike").value, rel=1e-5)
    assert bits.second.value == pytest.approx(score_responses([cut]).metric("bits_per_spike").value, rel=1e-5)
    other = _with(tmp_path / "other", [replace(true, counts=true.counts + 1)])
    with pytest.raises(DataError, match="different responses"):
        visiontune.compare(runs[0], other)


def _with(path: Path, sessions: list[PredictedSession]) -> Path:
    path.mkdir()
    (path / "recipe.yaml").write_text("")
    evaluate_split_of_responses(Run(path), sessions, "test", Ranks("cpu"), 1, 0.0)
    return path
