"""Calibrated confidence is how often answers are right, and abstaining buys the accuracy that was asked for."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import visiontune
from visiontune.data.sample import LabelProbabilities, Prediction, Text
from visiontune.metrics.calibration import TEMPERATURES, Calibration, calibrate, calibration_error, tempered
from visiontune.run import Run
from visiontune.training.evaluate import predict_split
from visiontune.training.loop import train_run
from visiontune.training.model import load_trained, open_datasets
from visiontune.training.ranks import Ranks


def predictions(probabilities: NDArray[np.float64], truths: NDArray[np.int64]) -> list[Prediction]:
    names = tuple(f"label {c}" for c in range(probabilities.shape[1]))
    return [
        Prediction(
            str(i), (), Text(names[row.argmax()]), {"confidence": float(row.max())}, Text(names[truth]),
            LabelProbabilities(names, row),
        )
        for i, (row, truth) in enumerate(zip(probabilities, truths, strict=True))
    ]  # fmt: skip


def drawn(n: int, sharpened: float, seed: int = 0, classes: int = 5) -> list[Prediction]:
    """Truths drawn from honest probabilities, and predictions with the honest logits multiplied by `sharpened`."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (n, classes))
    honest = tempered(np.exp(logits - logits.max(axis=1, keepdims=True)), 1.0)
    truths = np.array([rng.choice(classes, p=row) for row in honest])
    return predictions(tempered(honest, 1 / sharpened), truths)


def fitted(made: list[Prediction], wanted: float = 0.9) -> Calibration:
    calibration = calibrate(made, wanted, step=7)
    assert calibration is not None
    return calibration


@st.composite
def some_predictions(draw: st.DrawFn) -> list[Prediction]:
    """30 to 60 predictions between two and four labels, many of them alike or nearly so."""
    n, classes = draw(st.integers(30, 60)), draw(st.integers(2, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    tops = draw(st.lists(st.sampled_from([0.55, 0.55 + 1e-9, 0.7, 0.9, 0.9 + 1e-8, 0.999]), min_size=1, max_size=4))
    top = rng.choice(tops, n)
    rows = np.repeat(((1 - top) / (classes - 1))[:, None], classes, axis=1)
    rows[np.arange(n), rng.integers(0, classes, n)] = top
    right = rng.random(n) < draw(st.floats(0, 1))
    truths = np.where(right, rows.argmax(axis=1), rng.integers(0, classes, n))
    return predictions(rows, truths)


# Temperature


@pytest.mark.parametrize("sharpened", [3.0, 1.0, 0.5])
def test_the_temperature_undoes_the_sharpening_of_confident_and_of_timid_models(sharpened: float) -> None:
    calibration = fitted(drawn(4000, sharpened))
    assert calibration.temperature == pytest.approx(sharpened, rel=0.08)
    assert calibration.error_after < 0.03
    if sharpened != 1:
        assert calibration.error_after < calibration.error_before / 3


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=8).filter(lambda values: sum(values) > 0),
    st.floats(*TEMPERATURES),
)
def test_the_most_probable_label_stays_the_most_probable(values: list[float], temperature: float) -> None:
    row = np.array(values) / sum(values)
    made = tempered(row, temperature)
    assert made[row.argmax()] == made.max()
    assert made.sum() == pytest.approx(1) and (made >= 0).all()
    assert np.allclose(tempered(made, 1.0), made)


@pytest.mark.parametrize("n", [30, 200, 2000])
def test_answers_that_were_all_right_do_not_make_certainty(n: int) -> None:
    rng = np.random.default_rng(0)
    top = rng.uniform(0.8, 0.99, n)
    rows = np.stack([top, (1 - top) / 2, (1 - top) / 2], axis=1)
    made = predictions(rows, np.zeros(n, np.int64))
    calibration = fitted(made)
    assert TEMPERATURES[0] * 1.1 < calibration.temperature < TEMPERATURES[1] * 0.9
    calibrated = [calibration.applied(one).scores["confidence"] for one in made]
    assert np.mean(calibrated) < 1 - 1 / (10 * n)


def test_answers_that_were_all_wrong_make_doubt() -> None:
    made = predictions(np.tile([0.9, 0.1], (40, 1)), np.ones(40, np.int64))
    calibration = fitted(made)
    assert calibration.temperature > 5 and calibration.applied(made[0]).scores["confidence"] < 0.62


@settings(max_examples=30, deadline=None)
@given(some_predictions())
def test_no_other_temperature_fits_better(made: list[Prediction]) -> None:
    n = len(made)

    def loss(temperature: float) -> float:
        total = 0.0
        for one in made:
            assert one.labels is not None and one.truth is not None
            logs = np.log(tempered(one.labels.values, temperature) + 1e-30)
            truth = one.labels.names.index(one.truth.answer)
            share = 1 / (n + 2) / (len(logs) - 1)
            total -= sum(log * ((n + 1) / (n + 2) if c == truth else share) for c, log in enumerate(logs))
        return total / n

    found = fitted(made).temperature
    assert loss(found) <= min(loss(t) for t in np.geomspace(*TEMPERATURES, 60)) + 1e-5


# Abstaining


@settings(max_examples=150, deadline=None)
@given(some_predictions(), st.sampled_from([0.5, 0.8, 0.9, 0.99, 1.0]))
def test_the_threshold_reaches_the_wanted_accuracy_and_no_lower_one_does(made: list[Prediction], wanted: float) -> None:
    calibration = fitted(made, wanted)
    after = [calibration.applied(one) for one in made]
    confidence = np.array([one.scores["confidence"] for one in after])
    right = np.array([one.truth is not None and one.truth.answer == one.target.answer for one in after])
    # Where one can cut: confidences that differ by next to nothing stand on one side.
    levels = np.unique(confidence)
    cuts = levels[np.diff(levels, prepend=-1) > 1e-6]
    rates = {c: right[confidence >= c].mean() for c in cuts}
    if calibration.abstain_below is None:
        assert max(rates.values()) < wanted
        assert calibration.coverage == 0 and calibration.accuracy is None
        assert {one.abstained for one in after} == {None}, "nothing is withheld"
        return
    answered = np.array([one.abstained is False for one in after])
    assert np.array_equal(answered, confidence >= calibration.abstain_below)
    assert right[answered].mean() == pytest.approx(calibration.accuracy) and calibration.accuracy is not None
    assert calibration.accuracy >= wanted
    assert answered.mean() == pytest.approx(calibration.coverage)
    assert np.abs(confidence - calibration.abstain_below).min() > 4e-7, "no answer is lost or won by rounding"
    lower = [rate for c, rate in rates.items() if c < calibration.abstain_below]
    assert all(rate < wanted for rate in lower)


def test_abstaining_raises_the_accuracy_of_what_is_answered() -> None:
    made = drawn(4000, 3.0)
    calibration = fitted(made, 0.9)
    everything = np.mean([one.truth == one.target for one in made])
    assert calibration.accuracy is not None
    assert everything < 0.75 < 0.9 <= calibration.accuracy and 0.05 < calibration.coverage < 0.8


def test_an_accuracy_that_cannot_be_had_withholds_nothing() -> None:
    calibration = fitted(predictions(np.tile([0.9, 0.1], (40, 1)), np.arange(40) % 2), 0.99)
    assert calibration.abstain_below is None and calibration.coverage == 0 and calibration.accuracy is None


# What it rests on, and what becomes of it


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
def test_the_calibration_error_is_that_of_its_definition(cases: list[tuple[float, bool]]) -> None:
    total = 0.0
    for b in range(10):
        inside = [(c, r) for c, r in cases if (b <= c * 10 < b + 1) or (b == 9 and c * 10 >= 10)]
        if inside:
            confidence = sum(c for c, _ in inside) / len(inside)
            accuracy = sum(r for _, r in inside) / len(inside)
            total += abs(confidence - accuracy) * len(inside) / len(cases)
    made = calibration_error(np.array([c for c, _ in cases]), np.array([r for _, r in cases]))
    assert made == pytest.approx(total, abs=1e-9)


def test_too_few_samples_fit_nothing_and_those_without_labels_or_truth_do_not_count() -> None:
    made = drawn(30, 3.0)
    assert calibrate(made[:29], 0.9, 1) is None
    free = Prediction("x", (), Text("free"), {"confidence": 0.5}, Text("free"))
    assert calibrate([*made[:29], free], 0.9, 1) is None
    assert fitted([*made, free]).n == 30


def test_a_calibration_comes_back_equal_from_json() -> None:
    for wanted in (0.9, 1.0):
        calibration = fitted(drawn(60, 3.0), wanted)
        assert Calibration.from_json(json.loads(json.dumps(calibration.to_json()))) == calibration
    assert calibration.step == 7 and calibration.wanted_accuracy == 1.0 and calibration.n == 60


def test_free_text_is_left_alone() -> None:
    free = Prediction("x", (), Text("free"), {"confidence": 0.5})
    assert fitted(drawn(60, 3.0)).applied(free) == free


def test_a_calibrated_prediction_changes_its_confidence_and_not_its_answer() -> None:
    one = drawn(60, 3.0)[0]
    after = fitted(drawn(60, 3.0)).applied(one)
    assert after.target == one.target and after.truth == one.truth and after.id == one.id
    assert one.labels is not None and after.labels is not None
    assert after.scores["confidence"] == after.labels.values.max() < one.labels.values.max()


# From end to end


def written(run: Run, split: str = "validation") -> list[Prediction]:
    lines = (run.path / "evaluations" / split / "predictions.jsonl").read_text().splitlines()
    return [Prediction.from_json(json.loads(line)) for line in lines]


def test_a_run_calibrates_its_best_checkpoint_and_evaluate_and_predict_use_it(
    plan: Callable[..., Run], digits_folder: Path
) -> None:
    # Just as many held-out samples as a calibration needs.
    run = train_run(plan("run", {"evaluation.wanted_accuracy": 0.3, "checkpoints.keep": 10}))
    assert run.best is not None
    value = run.read_json("calibration.json")
    assert value is not None
    calibration = Calibration.from_json(value)
    assert (calibration.n, calibration.step, calibration.wanted_accuracy) == (30, run.best["step"], 0.3)
    assert calibration.temperature != 1

    def raw(split: str, step: int, limit: int) -> list[Prediction]:
        adapter, _ = load_trained(run, run.recipe, torch.device("cpu"), step)
        return predict_split(
            adapter, open_datasets(run.recipe), split, run.recipe, Ranks("cpu"), limit=limit, rows=limit
        )

    def confidences(made: list[Prediction]) -> list[float]:
        return [one.scores["confidence"] for one in made]

    best = run.best["step"]
    wanted = [calibration.applied(one) for one in raw("validation", best, 30)]
    assert confidences(written(run)) == pytest.approx(confidences(wanted), abs=2e-6)
    assert confidences(wanted) != pytest.approx(confidences(raw("validation", best, 30)), abs=1e-3)
    metrics = run.read_json("evaluations/validation/metrics.json")
    assert metrics is not None
    if calibration.abstain_below is not None:
        assert metrics["metrics"]["answered"]["value"] == pytest.approx(calibration.coverage, abs=0.001)
        assert metrics["metrics"]["accuracy_answered"]["value"] == pytest.approx(calibration.accuracy, abs=0.001)
        assert [one.abstained for one in written(run)] == [one.abstained for one in wanted]

    visiontune.evaluate(run.path, split="test", limit=8)
    wanted = [calibration.applied(one) for one in raw("test", best, 8)]
    assert confidences(written(run, "test")) == pytest.approx(confidences(wanted), abs=2e-6)

    photo = next(digits_folder.rglob("*.png"))
    tempered_one, plain = visiontune.predict(run.path, [photo])[0], visiontune.predict(run.path, [photo], prompt="?")[0]
    assert plain.labels is None and plain.abstained is None, "another question is answered freely"
    assert tempered_one.labels is not None and tempered_one.target.answer in map(str, range(10))
    assert tempered_one.scores["confidence"] == tempered_one.labels.values.max()
    assert tempered_one.labels.values.sum() == pytest.approx(1)

    other = next(step for step in run.checkpoint_steps() if step != best)
    visiontune.evaluate(run.path, split="test", limit=8, step=other)
    assert confidences(written(run, "test")) == pytest.approx(confidences(raw("test", other, 8)), abs=2e-6)
    assert {one.abstained for one in written(run, "test")} == {None}
    uncalibrated = visiontune.predict(run.path, [photo], step=other)[0]
    assert uncalibrated.abstained is None and uncalibrated.labels is not None
    (run.calibration_path).unlink()
    again = visiontune.predict(run.path, [photo])[0]
    assert again.labels is not None
    assert tempered(again.labels.values, calibration.temperature) == pytest.approx(tempered_one.labels.values, abs=1e-6)


def test_a_run_with_few_held_out_samples_or_free_answers_calibrates_nothing(plan: Callable[..., Run]) -> None:
    short = {"schedule.steps": 2, "evaluation.samples": 4}
    assert not train_run(plan("few", {**short, "data.limit": 29})).calibration_path.exists()
    assert not train_run(plan("free", {**short, "evaluation.answers": "generated"})).calibration_path.exists()
