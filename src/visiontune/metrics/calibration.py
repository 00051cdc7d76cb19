"""Confidence that means what it says: a temperature fitted on held-out labels, and where to abstain.

Temperature scaling: Guo et al. 2017, "On Calibration of Modern Neural Networks". The temperature divides the labels'
log-probabilities; the most probable label stays the same.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visiontune.data.sample import LabelProbabilities, Prediction

FITTED_FROM = 30  # fewer held-out samples say too little about a temperature
LEAST_LOG = -80.0
TEMPERATURES = (0.05, 20.0)
BINS = 10
APART = 1e-6  # confidences closer than this are one


@dataclass(frozen=True)
class Calibration:
    """What the held-out samples say about the confidence of one checkpoint.

    `abstain_below` is the least confidence from which on the held-out answers were right at the wanted rate; None where
    no confidence was high enough: then nothing is withheld. `coverage` is the share of samples answered there and
    `accuracy` how many of those were right. `error_before` and `error_after` are expected calibration errors (ten bins
    of equal width).
    """

    temperature: float
    abstain_below: float | None
    wanted_accuracy: float
    coverage: float
    accuracy: float | None
    error_before: float
    error_after: float
    n: int
    step: int

    def to_json(self) -> dict[str, Any]:
        """All fields, under their names."""
        return asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> "Calibration":
        """Read back what `to_json` wrote."""
        return Calibration(**value)

    def applied(self, prediction: Prediction) -> Prediction:
        """The prediction with calibrated probabilities, and whether it abstains."""
        if prediction.labels is None:
            return prediction
        values = tempered(prediction.labels.values, self.temperature)
        confidence = float(values.max())
        return replace(
            prediction,
            labels=LabelProbabilities(prediction.labels.names, values),
            scores={**prediction.scores, "confidence": confidence},
            abstained=None if self.abstain_below is None else confidence < self.abstain_below,
        )


def tempered(probabilities: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Probabilities (..., labels) with their logarithms divided by the temperature, summing to one again."""
    with np.errstate(divide="ignore"):
        logs = np.maximum(np.log(probabilities), LEAST_LOG) / temperature
    powers = np.exp(logs - logs.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def calibrate(predictions: Sequence[Prediction], wanted_accuracy: float, step: int) -> Calibration | None:
    """Fit temperature and threshold to predictions with scored labels and a truth; None where there are too few.

    A single label leaves nothing to be unsure about: None as well.
    """
    usable = [p for p in predictions if p.labels is not None and p.truth is not None]
    if len(usable) < FITTED_FROM or len(usable[0].labels.names if usable[0].labels else ()) < 2:
        return None
    probabilities = np.stack([p.labels.values for p in usable if p.labels is not None])
    truths = np.array(
        [p.labels.names.index(p.truth.answer) for p in usable if p.labels is not None and p.truth is not None]
    )
    temperature = _fit(probabilities, truths)
    right = probabilities.argmax(axis=1) == truths
    confidence = tempered(probabilities, temperature).max(axis=1)
    threshold, coverage, accuracy = _threshold(confidence, right, wanted_accuracy)
    return Calibration(
        temperature=temperature,
        abstain_below=threshold,
        wanted_accuracy=wanted_accuracy,
        coverage=coverage,
        accuracy=accuracy,
        error_before=calibration_error(probabilities.max(axis=1), right),
        error_after=calibration_error(confidence, right),
        n=len(usable),
        step=step,
    )


def _fit(probabilities: NDArray[np.float64], truths: NDArray[np.int64]) -> float:
    """The temperature of the least cross-entropy, by golden section over its logarithm (it is convex in the inverse
    temperature, so there is one minimum).

    The targets are Platt's (1999): of n samples the truth counts (n + 1) / (n + 2), the rest is spread over the other
    labels. Else n answers that are all right would call for certainty.
    """
    n, classes = probabilities.shape
    targets = np.full((n, classes), 1 / (n + 2) / max(1, classes - 1))
    targets[np.arange(n), truths] = (n + 1) / (n + 2)

    def loss(log_temperature: float) -> float:
        values = tempered(probabilities, float(np.exp(log_temperature)))
        return float(-(targets * np.log(np.maximum(values, np.exp(LEAST_LOG)))).sum(axis=1).mean())

    low, high = np.log(TEMPERATURES)
    golden = (np.sqrt(5) - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    losses = loss(left), loss(right)
    while high - low > 1e-4:
        if losses[0] <= losses[1]:
            high, right = right, left
            left = high - golden * (high - low)
            losses = loss(left), losses[0]
        else:
            low, left = left, right
            right = low + golden * (high - low)
            losses = losses[1], loss(right)
    return round(float(np.exp((low + high) / 2)), 4)


def _threshold(
    confidence: NDArray[np.float64], right: NDArray[np.bool_], wanted: float
) -> tuple[float | None, float, float | None]:
    """(threshold, coverage, accuracy): as many of the most confident answers as are right at the wanted rate."""
    order = np.argsort(-confidence, kind="stable")
    rates = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    # A cut lies between two answers or nowhere: those of one confidence are answered together.
    cuts = np.append(-np.diff(confidence[order]), np.inf) > APART
    ends = np.flatnonzero(cuts & (rates >= wanted))
    if not len(ends):
        return None, 0.0, None
    last = int(ends[-1])
    return float(confidence[order[last]]) - APART / 2, (last + 1) / len(order), float(rates[last])


def calibration_error(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """Expected calibration error: the mean distance of confidence and accuracy over ten bins, weighted by count."""
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [
        abs(float(confidence[bins == b].mean()) - float(right[bins == b].mean())) * int((bins == b).sum())
        for b in range(BINS)
        if (bins == b).any()
    ]
    return sum(gaps) / len(confidence)
