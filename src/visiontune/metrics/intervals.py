"""Numbers with what they rest on: a value, its 95 % bootstrap interval, and how many samples were counted.

The intervals are percentile bootstraps (Efron and Tibshirani 1993, chapter 13) from a generator of their own with a
fixed seed, so the same answers always give the same interval. Counts are resampled in place of samples: drawing n
samples with replacement and counting them is a binomial draw (a multinomial one for the cells of a confusion matrix),
so both have the same distribution, and counts do not grow with n.

A bootstrap of answers that are all right, or all wrong, never varies and would claim certainty. There the open end is
the exact bound of Clopper and Pearson (1934): n samples without an error still allow a rate of 1 - 0.025 ** (1 / n).
Where other values never vary, that share of the samples could still be anything: see `mean` and `ratio`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
TAIL = 0.025
CELLS_AT_ONCE = 1 << 21

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Metric:
    """A value with the ends of its 95 % interval, counted on `n` samples.

    It lies in [0, 1], a difference in [-1, 1], a `ratio` anywhere from 0 on.

    With n = 0 there is nothing to say: value, low and high are None. Low and high alone are None where no interval was
    made.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int

    def to_json(self) -> dict[str, float | int | None]:
        """{"value", "low", "high", "n"}, rounded to six digits."""
        ends = {"value": self.value, "low": self.low, "high": self.high}
        return {name: None if end is None else round(end, 6) for name, end in ends.items()} | {"n": self.n}


NOTHING_COUNTED = Metric(None, None, None, 0)


@dataclass(frozen=True)
class ClassMetrics:
    """Precision, recall and F1 of each class, in the order of the confusion matrix, and the mean F1.

    `n` of a precision is the number of answers with that class, of a recall the number of samples of that class (its
    support), of an F1 the number of samples that are one or the other, of the mean all samples.
    """

    precision: tuple[Metric, ...]
    recall: tuple[Metric, ...]
    f1: tuple[Metric, ...]
    macro_f1: Metric


def widest_error_rate(n: int) -> float:
    """The error rate that n > 0 samples without an error still allow, at 97.5 %: about 3.7 / n."""
    return 1 - TAIL ** (1 / n)


def proportion(count: int, n: int, seed: int = 0) -> Metric:
    """`count` of `n` samples, with its interval."""
    if n == 0:
        return NOTHING_COUNTED
    resampled = np.random.default_rng(seed).binomial(n, count / n, RESAMPLES) / n
    return _metric(count / n, resampled, n)


def mean(values: Sequence[float], seed: int = 0, *, bounds: tuple[float, float] = (0.0, 1.0)) -> Metric:
    """The mean of values, one a sample, with its interval. `bounds` are the least and the largest value that there are.

    A difference of two scores in [0, 1] has the bounds (-1, 1).
    """
    n = len(values)
    if n == 0:
        return NOTHING_COUNTED
    found = np.asarray(values, np.float64)
    value = float(found.mean())
    if found.min() == found.max():
        # Resamples of equal values are equal too. Yet a share of the samples could lie at either bound.
        share, (least, most) = widest_error_rate(n), bounds
        return Metric(value, value - share * (value - least), value + share * (most - value), n)
    low, high = np.quantile(_resampled_sums(found[:, None], seed)[:, 0] / n, [TAIL, 1 - TAIL])
    return Metric(value, float(low), float(high), n)


def ratio(parts: Sequence[float], wholes: Sequence[float], seed: int = 0) -> Metric:
    """The sum of `parts` over the sum of `wholes`, values from 0 on, one of each a sample, with its interval.

    It may pass 1. A ratio of sums and not a mean of ratios: a short sample counts for little, and one whose whole is 0
    does no harm. Without a whole above 0 there is nothing to say.
    """
    n, whole = len(parts), float(sum(wholes))
    if whole == 0:
        return NOTHING_COUNTED
    both = np.stack([np.asarray(parts, np.float64), np.asarray(wholes, np.float64)], axis=1)
    value = float(both[:, 0].sum()) / whole
    if np.allclose(both[:, 0], value * both[:, 1], rtol=1e-12, atol=0):
        # Every sample has the same ratio. There is no largest one: the share of samples that could still differ is
        # taken to be off by the ratio itself, or by 1 where that is more (an answer that is wrong in every character).
        off = widest_error_rate(n) * max(value, 1.0)
        return Metric(value, max(0.0, value - off), value + off, n)
    sums = _resampled_sums(both, seed)
    sums = sums[sums[:, 1] > 0]  # a resample may miss every sample that has a whole
    low, high = np.quantile(sums[:, 0] / sums[:, 1], [TAIL, 1 - TAIL])
    return Metric(value, float(low), float(high), n)


def ratio_difference(first: tuple[Floats, Floats], second: tuple[Floats, Floats], seed: int = 0) -> Metric:
    """The `ratio` of the second (parts, wholes) minus that of the first, on the same n samples, with its interval.

    Without a whole above 0 in either there is nothing to say.
    """
    table = np.stack([*first, *second], axis=1)
    n, totals = len(table), table.sum(axis=0)
    if totals[1] == 0 or totals[3] == 0:
        return NOTHING_COUNTED
    value = float(totals[2] / totals[3] - totals[0] / totals[1])
    if np.array_equal(table[:, :2], table[:, 2:]):
        off = widest_error_rate(n) * max(float(totals[0] / totals[1]), 1.0)  # as `ratio` has it
        return Metric(value, value - off, value + off, n)
    sums = _resampled_sums(table, seed)
    sums = sums[(sums[:, 1] > 0) & (sums[:, 3] > 0)]
    low, high = np.quantile(sums[:, 2] / sums[:, 3] - sums[:, 0] / sums[:, 1], [TAIL, 1 - TAIL])
    return Metric(value, float(low), float(high), n)


def macro_f1_difference(
    truth: NDArray[np.int64], first: NDArray[np.int64], second: NDArray[np.int64], classes: int, seed: int = 0
) -> Metric:
    """The mean F1 (`class_metrics`) of the second answers minus that of the first, with its interval; (n,) each.

    A value is the place of a class; an answer of `classes` is no class.
    """
    n = len(truth)
    if n == 0:
        return NOTHING_COUNTED
    cells, counts = np.unique(np.stack([truth, first, second], axis=1), axis=0, return_counts=True)

    def differences(draws: NDArray[np.int64]) -> Floats:
        means = []
        for column in (1, 2):
            right = cells[:, 0] == cells[:, column]
            hits = _summed(draws[:, right], cells[right, 0], classes)
            support = _summed(draws, cells[:, 0], classes)
            answers = _summed(draws, cells[:, column], classes + 1)[:, :classes]
            means.append(np.nanmean(_rates(hits, support, answers)[2], axis=1))
        return means[1] - means[0]

    value = float(differences(counts[None])[0])
    if np.array_equal(first, second):
        return Metric(value, value - widest_error_rate(n), value + widest_error_rate(n), n)
    generator, at_once = np.random.default_rng(seed), max(1, CELLS_AT_ONCE // len(cells))
    draws = [
        differences(generator.multinomial(n, counts / n, min(at_once, RESAMPLES - done)))
        for done in range(0, RESAMPLES, at_once)
    ]
    low, high = np.quantile(np.concatenate(draws), [TAIL, 1 - TAIL])
    return Metric(value, float(low), float(high), n)


def _resampled_sums(values: Floats, seed: int) -> Floats:
    """The sums of n samples drawn with replacement, RESAMPLES times: (n, columns) to (RESAMPLES, columns)."""
    n = len(values)
    generator = np.random.default_rng(seed)
    at_once = max(1, CELLS_AT_ONCE // n)
    draws = [
        values[generator.integers(0, n, (min(at_once, RESAMPLES - done), n))].sum(axis=1)
        for done in range(0, RESAMPLES, at_once)
    ]
    return np.concatenate(draws)


def class_metrics(counts: NDArray[np.int64], seed: int = 0) -> ClassMetrics:
    """Precision, recall and F1 from a confusion matrix of shape (classes, columns), rows truth, columns answers.

    Column c is class c; columns beyond the classes hold answers that are no class. A rate whose denominator is zero is
    None. The mean F1 is over the classes that stand in the truth or in the answers, as scikit-learn's is over the
    labels that it finds. Takes about a second for 100 classes and 100,000 samples.
    """
    classes = len(counts)
    n = int(counts.sum())
    if n == 0:
        nothing = (NOTHING_COUNTED,) * classes
        return ClassMetrics(nothing, nothing, nothing, NOTHING_COUNTED)
    hits, support, answers = np.diagonal(counts), counts.sum(axis=1), counts[:, :classes].sum(axis=0)
    precision, recall, f1 = _rates(hits, support, answers)
    precisions, recalls, f1s = _rates(*_resampled(counts, np.random.default_rng(seed)))
    return ClassMetrics(
        precision=tuple(map(_metric, precision, precisions.T, answers)),
        recall=tuple(map(_metric, recall, recalls.T, support)),
        f1=tuple(map(_f1_metric, f1, f1s.T, support + answers - hits)),
        # Errors spread over the classes as their samples are cost the mean F1 about what they cost accuracy, so the
        # open end of the one serves the other.
        macro_f1=_metric(float(np.nanmean(f1)), np.nanmean(f1s, axis=1), n),
    )


def _resampled(counts: NDArray[np.int64], generator: np.random.Generator) -> tuple[NDArray, NDArray, NDArray]:
    """Hits, support and answers of each class in each resample, of shape (RESAMPLES, classes)."""
    rows, columns = np.nonzero(counts)  # most cells of a large matrix are empty, and stay so
    n, classes = int(counts.sum()), len(counts)
    on_diagonal = rows == columns
    at_once = max(1, CELLS_AT_ONCE // len(rows))
    parts = []
    for done in range(0, RESAMPLES, at_once):
        cells = generator.multinomial(n, counts[rows, columns] / n, min(at_once, RESAMPLES - done))
        hits = _summed(cells[:, on_diagonal], rows[on_diagonal], classes)
        parts.append((hits, _summed(cells, rows, classes), _summed(cells, columns, counts.shape[1])[:, :classes]))
    hits, support, answers = (np.concatenate(part) for part in zip(*parts, strict=True))
    return hits, support, answers


def _summed(cells: NDArray[np.int64], group: NDArray[np.int64], groups: int) -> NDArray[np.int64]:
    """The sums over the cells of each group: (resamples, cells) to (resamples, groups)."""
    sums = np.zeros((len(cells), groups), dtype=np.int64)
    order = np.argsort(group, kind="stable")
    present, starts = np.unique(group[order], return_index=True)
    if len(present):
        sums[:, present] = np.add.reduceat(cells[:, order], starts, axis=1)
    return sums


def _rates(hits: NDArray, support: NDArray, answers: NDArray) -> tuple[Floats, Floats, Floats]:
    """Precision, recall and F1 (2 * hits / (support + answers)); NaN where there is nothing to divide by."""
    with np.errstate(invalid="ignore"):
        return hits / answers, hits / support, 2 * hits / (support + answers)


def _metric(value: float, resampled: Floats, n: int) -> Metric:
    """A proportion with its interval; a rate that is NaN counted nothing."""
    if np.isnan(value):
        return NOTHING_COUNTED
    low, high = np.nanquantile(resampled, [TAIL, 1 - TAIL])
    if value == 1:
        low = 1 - widest_error_rate(n)
    if value == 0:
        high = widest_error_rate(n)
    return Metric(float(value), float(low), float(high), int(n))


def _f1_metric(value: float, resampled: Floats, n: int) -> Metric:
    """An F1 of n samples that have the class or got it: 2 j / (1 + j), with j the proportion of them that are hits."""
    metric = _metric(value, resampled, n)
    if metric.low is None or metric.high is None or 0 < value < 1:
        return metric
    bound = metric.low if value == 1 else metric.high
    f1 = 2 * bound / (1 + bound)
    return Metric(metric.value, f1, metric.high, metric.n) if value == 1 else Metric(0.0, 0.0, f1, metric.n)
