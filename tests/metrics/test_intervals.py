import time

import numpy as np
import pytest

from visiontune.metrics.intervals import Metric, class_metrics, mean, proportion, ratio, widest_error_rate


def test_the_same_counts_always_give_the_same_interval() -> None:
    state = np.random.get_state()[1].tolist()  # pyright: ignore
    assert proportion(80, 100) == proportion(80, 100)
    assert proportion(80, 100) != proportion(80, 100, seed=1)
    counts = np.array([[5, 2, 1], [3, 9, 0]])
    assert class_metrics(counts) == class_metrics(counts)
    assert np.random.get_state()[1].tolist() == state, "the global generator was drawn from"  # pyright: ignore


def test_the_interval_of_a_proportion_is_that_of_resampled_samples() -> None:
    answers = np.repeat([1, 0], [150, 50])
    generator = np.random.default_rng(7)
    means = answers[generator.integers(0, 200, size=(4000, 200))].mean(axis=1)
    metric = proportion(150, 200)
    assert metric.value == 0.75
    assert [metric.low, metric.high] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.011)


def test_the_intervals_of_classes_are_those_of_resampled_samples() -> None:
    counts = np.array([[40, 6, 2, 2], [9, 50, 1, 0], [0, 4, 5, 1]]) * 8
    cells = np.repeat(np.arange(12), counts.ravel())
    generator = np.random.default_rng(5)
    macro, recall, precision = [], [], []
    for _ in range(3000):
        again = np.bincount(generator.choice(cells, len(cells)), minlength=12).reshape(3, 4)
        hits, support, answers = np.diag(again), again.sum(axis=1), again[:, :3].sum(axis=0)
        macro.append(np.mean(2 * hits / (support + answers)))
        recall.append(hits[2] / support[2])
        precision.append(hits[0] / answers[0])
    metrics = class_metrics(counts)
    for metric, resampled in (
        (metrics.macro_f1, macro),
        (metrics.recall[2], recall),
        (metrics.precision[0], precision),
    ):
        assert [metric.low, metric.high] == pytest.approx(np.quantile(resampled, [0.025, 0.975]), abs=0.03)


def test_the_interval_holds_the_true_rate_about_95_times_in_100() -> None:
    generator = np.random.default_rng(3)
    held = 0
    for k in generator.binomial(400, 0.9, size=400):
        metric = proportion(int(k), 400)
        assert metric.low is not None and metric.high is not None
        held += metric.low <= 0.9 <= metric.high
    assert 0.91 <= held / 400 <= 0.99


def test_the_interval_of_a_ratio_holds_the_true_one_about_95_times_in_100() -> None:
    generator = np.random.default_rng(4)
    held = 0
    for _ in range(300):
        wholes = generator.integers(20, 200, 80)
        parts = generator.poisson(1.5 * wholes * generator.gamma(4, 1 / 4, 80))  # samples differ, and pass 1
        metric = ratio(parts.tolist(), wholes.tolist())
        assert metric.low is not None and metric.high is not None
        held += metric.low <= 1.5 <= metric.high
    assert 0.9 <= held / 300 <= 0.99


def test_samples_of_unlike_lengths_and_one_ratio_have_a_narrow_interval() -> None:
    generator = np.random.default_rng(8)
    wholes = generator.integers(1, 1000, 50)
    metric = ratio((2 * wholes + generator.integers(0, 2, 50)).tolist(), wholes.tolist())
    assert metric.low is not None and metric.high is not None
    assert 2 <= metric.low <= metric.high <= 2.01


def test_the_interval_of_differences_reaches_below_zero() -> None:
    differences = np.random.default_rng(6).uniform(-0.5, 0.4, 200)
    metric = mean(differences.tolist(), bounds=(-1, 1))
    resampled = np.random.default_rng(1).choice(differences, (4000, 200)).mean(axis=1)
    assert metric.value == pytest.approx(differences.mean())
    assert [metric.low, metric.high] == pytest.approx(np.quantile(resampled, [0.025, 0.975]), abs=0.01)


def test_values_that_never_vary_do_not_claim_certainty() -> None:
    assert mean([1.0] * 10) == proportion(10, 10) and mean([0.0] * 10) == proportion(0, 10)
    share = widest_error_rate(10)
    assert mean([0.0] * 10, bounds=(-1, 1)) == Metric(0.0, -share, share, 10)
    assert mean([0.25] * 10) == Metric(0.25, 0.25 - share * 0.25, 0.25 + share * 0.75, 10)
    assert ratio([0] * 10, [5] * 10) == Metric(0.0, 0.0, share, 10)
    assert ratio([20, 40], [1, 2]).low == pytest.approx(20 - widest_error_rate(2) * 20)


def test_a_sample_without_a_whole_counts_its_part() -> None:
    assert ratio([3, 2], [0, 10]).value == pytest.approx(0.5)
    assert ratio([3, 2], [0, 0]) == Metric(None, None, None, 0)


def test_no_error_in_a_few_samples_does_not_claim_certainty() -> None:
    """The exact bounds of 0 in 10 and 10 in 10: Clopper and Pearson 1934."""
    assert proportion(10, 10).low == pytest.approx(0.6915, abs=1e-4)
    assert proportion(10, 10).high == 1
    assert proportion(0, 10).high == pytest.approx(0.3085, abs=1e-4)
    assert proportion(0, 10).low == 0
    perfect = class_metrics(np.diag([10, 20]))
    assert perfect.recall[0].low == perfect.precision[0].low == pytest.approx(0.6915, abs=1e-4)
    assert perfect.f1[0].low == pytest.approx(2 * 0.6915 / 1.6915, abs=1e-4)
    assert perfect.macro_f1.value == 1 and perfect.macro_f1.low == pytest.approx(1 - widest_error_rate(30))
    hopeless = class_metrics(np.array([[0, 10], [20, 0]]))
    assert hopeless.f1[0].value == 0 and (hopeless.f1[0].high or 0) > 0.1
    assert hopeless.macro_f1.value == 0 and (hopeless.macro_f1.high or 0) > 0.1


def test_what_counted_nothing_has_no_value() -> None:
    assert proportion(0, 0) == Metric(None, None, None, 0)
    assert class_metrics(np.zeros((2, 3), dtype=np.int64)).macro_f1 == Metric(None, None, None, 0)
    metrics = class_metrics(np.array([[3, 0, 0, 1], [2, 4, 0, 0], [0, 0, 0, 0]]))
    assert metrics.recall[2] == metrics.precision[2] == metrics.f1[2] == Metric(None, None, None, 0)
    assert metrics.macro_f1.value == pytest.approx((6 / 9 + 8 / 10) / 2), "an absent class must not pull the mean down"


@pytest.mark.parametrize("counts", [[[7]], [[3, 4]], [[0, 5]], [[1, 0, 0], [0, 0, 1]]])
def test_the_value_lies_in_its_interval(counts: list[list[int]]) -> None:
    metrics = class_metrics(np.array(counts))
    for metric in (*metrics.precision, *metrics.recall, *metrics.f1, metrics.macro_f1):
        if metric.value is not None:
            assert metric.low is not None and metric.high is not None
            assert 0 <= metric.low <= metric.value <= metric.high <= 1


def test_many_classes_and_samples_take_seconds_not_minutes() -> None:
    generator = np.random.default_rng(0)
    shares = np.full((100, 101), 0.001) + 0.9 * np.eye(100, 101)
    counts = generator.multinomial(100_000, (shares / shares.sum()).ravel()).reshape(100, 101)
    start = time.process_time()
    class_metrics(counts)
    assert time.process_time() - start < 5
