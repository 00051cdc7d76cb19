"""Differences of two models on the same samples: their values, and what their intervals may be trusted for."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import bootstrap
from sklearn.metrics import f1_score

from tests.coco_scenes import random_scene
from tests.metrics.test_response_scores import session
from visiontune.data.objects import Objects
from visiontune.data.sample import ObjectPrediction, Prediction, Text
from visiontune.metrics.intervals import macro_f1_difference, mean, ratio_difference
from visiontune.metrics.object_scores import score_objects
from visiontune.metrics.paired import Paired, paired_objects, paired_responses, paired_texts
from visiontune.metrics.response_scores import score_responses
from visiontune.metrics.text import score_texts

LABELS = ["cat", "dog", "fox"]


def predictions(truths: list[str], answers: list[str]) -> list[Prediction]:
    pairs = zip(truths, answers, strict=True)
    return [Prediction(str(i), (), Text(answer), {}, Text(truth)) for i, (truth, answer) in enumerate(pairs)]


def noisy(truths: list[str], rate: float, seed: int) -> list[str]:
    generator = np.random.default_rng(seed)
    return [str(generator.choice([*LABELS, "none"])) if generator.random() < rate else truth for truth in truths]


def by_name(found: list[Paired]) -> dict[str, Paired]:
    return {one.name: one for one in found}


def test_each_metric_is_that_of_either_run_and_the_difference_is_theirs() -> None:
    truths = [LABELS[i % 3] for i in range(60)]
    both = [predictions(truths, noisy(truths, rate, seed)) for rate, seed in ((0.6, 1), (0.2, 2))]
    for labels, names in (
        (None, {"exact_match", "normalised_match", "rouge1", "rouge2", "rougeL", "repetition", "cer", "wer"}),
        (LABELS, {"exact_match", "normalised_match", "macro_f1", "outside_labels"}),
    ):
        found = by_name(paired_texts(both[0], both[1], labels))
        assert names <= set(found)
        for name, one in found.items():
            first, second = (score_texts(p, labels).metric(name) for p in both)
            assert (one.first, one.second) == (first, second)
            assert first.value is not None and second.value is not None
            assert one.difference.value == pytest.approx(second.value - first.value)
    assert found["macro_f1"].verdict == "better" and found["outside_labels"].verdict == "better"


def test_fewer_errors_are_better_and_another_length_is_neither() -> None:
    truths = [f"{LABELS[i % 3]} {i}" for i in range(40)]
    found = by_name(paired_texts(predictions(truths, ["x" * 30] * 40), predictions(truths, truths), None))
    assert {found[name].verdict for name in ("cer", "wer", "exact_match", "rougeL")} == {"better"}
    assert found["length_ratio"].verdict == "undecided"
    back = by_name(paired_texts(predictions(truths, truths), predictions(truths, ["x" * 30] * 40), None))
    assert {back[name].verdict for name in ("cer", "wer", "exact_match", "rougeL")} == {"worse"}


@pytest.mark.parametrize("labels", [None, LABELS])
def test_a_run_beside_itself_differs_by_nothing_and_is_not_certain_of_it(labels: list[str] | None) -> None:
    truths = [LABELS[i % 3] for i in range(30)]
    same = predictions(truths, noisy(truths, 0.5, 1))
    for one in paired_texts(same, same, labels):
        assert one.difference.value == 0 and one.verdict == "undecided"
        assert one.difference.low is not None and one.difference.high is not None
        assert one.difference.low < 0 < one.difference.high


def test_the_intervals_are_scipys() -> None:
    generator = np.random.default_rng(0)
    wholes = generator.integers(1, 20, 80).astype(float)
    first, second = generator.random(80) * wholes, generator.random(80) * 0.8 * wholes
    found = ratio_difference((first, wholes), (second, wholes))

    def statistic(a: NDArray, b: NDArray, w: NDArray, axis: int) -> NDArray:
        return b.sum(axis) / w.sum(axis) - a.sum(axis) / w.sum(axis)

    options = {"paired": True, "vectorized": True, "method": "percentile", "n_resamples": 5000, "rng": 1}
    ends = bootstrap((first, second, wholes), statistic, **options).confidence_interval
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high), abs=0.01)


def test_the_intervals_hold_the_true_difference_as_often_as_they_say() -> None:
    """Two models that share what is hard about a sample; 0.95 of the intervals should hold, less what n = 150 costs."""
    generator, n, rounds = np.random.default_rng(0), 150, 150
    held = {"mean": 0, "ratio": 0, "macro_f1": 0}
    wide = 0
    large = _drawn(generator, 200_000)
    true = {"mean": float((large[2] - large[1]).mean()), "ratio": _ratio(*large), "macro_f1": _macro_f1(*large)}
    for seed in range(rounds):
        truth, first, second = _drawn(generator, n)
        right = [(truth == answers).astype(float) for answers in (first, second)]
        found = {
            "mean": mean((second - first).tolist(), seed, bounds=(-2, 2)),
            "ratio": ratio_difference((right[0], truth + 1.0), (right[1], truth + 1.0), seed),
            "macro_f1": macro_f1_difference(truth, first, second, 3, seed),
        }
        for name, one in found.items():
            assert one.low is not None and one.high is not None
            held[name] += one.low <= true[name] <= one.high
        alone = [mean(one.tolist(), seed) for one in right]
        paired = mean((right[1] - right[0]).tolist(), seed, bounds=(-1, 1))
        wide += _width(paired) < (_width(alone[0]) ** 2 + _width(alone[1]) ** 2) ** 0.5
    assert all(0.89 <= count / rounds <= 0.99 for count in held.values()), held
    assert wide == rounds, "a pair tells more than two runs held apart"


def _drawn(generator: np.random.Generator, n: int) -> tuple[NDArray, NDArray, NDArray]:
    truth, hard = generator.integers(0, 3, n), generator.random(n)
    answers = [np.where(hard < rate, generator.integers(0, 3, n), truth) for rate in (0.5, 0.4)]
    return truth, answers[0], answers[1]


def _ratio(truth: NDArray, first: NDArray, second: NDArray) -> float:
    return float(((truth == second).sum() - (truth == first).sum()) / (truth + 1).sum())


def _macro_f1(truth: NDArray, first: NDArray, second: NDArray) -> float:
    return float(f1_score(truth, second, average="macro")) - float(f1_score(truth, first, average="macro"))


def _width(metric: object) -> float:
    return metric.high - metric.low  # pyright: ignore


def test_objects_are_held_to_each_other_by_the_halves_of_the_same_images() -> None:
    scene = random_scene(5, images=30, classes=3, most_objects=5, detections=4, side=120, masks=True)
    rows = zip(scene.truths, scene.predictions, scene.sizes, strict=True)
    full = [
        ObjectPrediction(str(i), (), found, tuple(scene.class_names), size, truth)
        for i, (truth, found, size) in enumerate(rows)
    ]
    good = [replace(one, target=_drawn_truth(one)) for one in full]
    found = by_name(paired_objects(full, good, scene.class_names))
    assert set(found) == {"box_ap", "box_ap50"}, "the second model draws no masks"
    scores = score_objects(scene.truths, scene.predictions, scene.sizes, scene.class_names, halves=0)
    for name, one in found.items():
        assert one.first.value == scores.metric(name).value and one.verdict == "better"
        assert one.difference.value == pytest.approx((one.second.value or 0) - (one.first.value or 0))
    itself = paired_objects(full, full, scene.class_names)
    assert [one.name for one in itself] == ["box_ap", "box_ap50", "mask_ap", "mask_ap50"]
    assert {one.verdict for one in itself} == {"undecided"}


def _drawn_truth(prediction: ObjectPrediction) -> Objects:
    """The true objects that are no crowd, found with falling scores."""
    truth = prediction.truth
    assert truth is not None
    kept = np.flatnonzero(~truth.crowd)
    return Objects(
        truth.boxes[kept], truth.classes[kept], (None,) * len(kept), truth.crowd[kept], tuple(range(len(kept))),
        np.linspace(0.9, 0.5, len(kept)),
    )  # fmt: skip


def test_responses_are_held_to_each_other_over_the_same_stimuli() -> None:
    true = [session("a", trials=30), session("b", units=3, trials=30, seed=1)]
    flat = [replace(one, rates=np.full_like(one.rates, one.counts.mean())) for one in true]
    found = by_name(paired_responses(flat, true))
    scores = [score_responses(sessions) for sessions in (flat, true)]
    for name in ("bits_per_spike", "above_zero", "bits_per_spike_median"):
        assert (found[name].first.value, found[name].second.value) == tuple(s.metric(name).value for s in scores)
    assert found["bits_per_spike"].verdict == "better"
    assert found["correlation"].first.value is None and found["correlation"].difference.value is None
    bits = found["bits_per_spike"].difference
    assert bits.low is not None and bits.high is not None and bits.value is not None
    assert 0 < bits.low < bits.value < bits.high < 2 * bits.value
    for one in paired_responses(true, true):
        assert one.verdict == "undecided"
        assert {one.difference.low, one.difference.high} <= {0.0, None}, "every resample is the same for both"
