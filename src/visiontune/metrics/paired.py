"""Two models on the same samples: each metric of both, and by how much they differ, from paired resamples.

The samples are drawn with replacement once, for both models together, so that what is hard about a sample cancels
(paired bootstrap; Efron and Tibshirani 1993, chapter 8). Of several metrics each interval stands for itself: of twenty,
one is expected to miss by chance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visiontune.data.sample import ObjectPrediction, Prediction
from visiontune.metrics.answers import Counted, free_text, matches
from visiontune.metrics.ap_intervals import HALVES, difference_of_halves, halved
from visiontune.metrics.average_precision import Kind, coco_pair, curves
from visiontune.metrics.intervals import Metric, macro_f1_difference, mean, ratio_difference
from visiontune.metrics.object_scores import draw_masks, have_masks
from visiontune.metrics.predicted_session import PredictedSession
from visiontune.metrics.response_scores import response_differences
from visiontune.metrics.text import label_places, score_texts

LOWER_IS_BETTER = ("repetition", "at_length_limit", "cer", "wer", "outside_labels")
NEITHER_IS_BETTER = ("length_ratio", "compression")


@dataclass(frozen=True)
class Paired:
    """A metric of two models, and that of the second minus that of the first."""

    name: str
    first: Metric
    second: Metric
    difference: Metric

    @property
    def verdict(self) -> str:
        """What the difference's interval says of the second model: "better", "worse", or "undecided"."""
        low, high = self.difference.low, self.difference.high
        if self.name in NEITHER_IS_BETTER or low is None or high is None or low <= 0 <= high:
            return "undecided"
        return "better" if (low > 0) != (self.name in LOWER_IS_BETTER) else "worse"

    def to_json(self) -> dict[str, Any]:
        """{"first", "second", "difference", "verdict"}."""
        metrics = {"first": self.first, "second": self.second, "difference": self.difference}
        return {name: metric.to_json() for name, metric in metrics.items()} | {"verdict": self.verdict}


def paired_texts(
    first: Sequence[Prediction], second: Sequence[Prediction], labels: Sequence[str] | None, seed: int = 0
) -> list[Paired]:
    """Every metric of two models' answers to the same samples, in the same order, all with their truth."""
    counting = free_text if labels is None else matches
    tables: list[Mapping[str, Counted]] = [counting(predictions) for predictions in (first, second)]
    found = [
        Paired(name, one.metric(seed), tables[1][name].metric(seed), _difference(one, tables[1][name], seed))
        for name, one in tables[0].items()
        if name in tables[1]
    ]
    if labels is not None:
        scored = [score_texts(predictions, labels, seed) for predictions in (first, second)]
        places = [label_places(predictions, labels) for predictions in (first, second)]
        outside = [Counted((place[:, 1] == len(labels)).astype(np.float64)) for place in places]
        differences = {
            "macro_f1": macro_f1_difference(places[0][:, 0], places[0][:, 1], places[1][:, 1], len(labels), seed),
            "outside_labels": _difference(outside[0], outside[1], seed),
        }
        found += [Paired(n, scored[0].metrics[n], scored[1].metrics[n], d) for n, d in differences.items()]
    return found


def _difference(first: Counted, second: Counted, seed: int) -> Metric:
    if first.wholes is None or second.wholes is None:
        return mean((second.parts - first.parts).tolist(), seed, bounds=(-1.0, 1.0))
    return ratio_difference((first.parts, first.wholes), (second.parts, second.wholes), seed)


def paired_objects(
    first: Sequence[ObjectPrediction], second: Sequence[ObjectPrediction], classes: Sequence[str], seed: int = 0
) -> list[Paired]:
    """AP and AP50 of boxes, and of masks where both models draw them, on the same images in the same order.

    All with their truth. The differences' intervals come from the same halves of the images (`ap_intervals`).
    """
    truths, sizes = [p.truth for p in first if p.truth is not None], [p.size for p in first]
    found = [[p.target for p in predictions] for predictions in (first, second)]
    kinds: list[tuple[Kind, str]] = [("boxes", "box")]
    if have_masks(truths) and all(draw_masks(truths, targets) for targets in found):
        kinds.append(("masks", "mask"))
    made = []
    for kind, prefix in kinds:
        pairs = [coco_pair(truths, targets, sizes, classes, kind) for targets in found]
        figures = [curves(pair).figures() for pair in pairs]
        halves = [halved(pair, HALVES, seed)[0] for pair in pairs]
        for name, of_halves in (("ap", [h.mean(axis=1) for h in halves]), ("ap50", [h[:, 0] for h in halves])):
            values = [one[name] for one in figures]
            one, other = (Metric(value, None, None, len(truths)) for value in values)
            made.append(Paired(f"{prefix}_{name}", one, other, _of_halves(values, of_halves, len(truths))))
    return made


def _of_halves(values: Sequence[float | None], of_halves: Sequence[NDArray[np.float64]], images: int) -> Metric:
    first, second = values
    if first is None or second is None:
        return Metric(None, None, None, 0)
    return difference_of_halves(second - first, of_halves[1] - of_halves[0], images)


def paired_responses(first: Sequence[PredictedSession], second: Sequence[PredictedSession]) -> list[Paired]:
    """Every metric of two models' rates of the same units in the same bins, drawn over the same stimuli."""
    return [Paired(name, *metrics) for name, metrics in response_differences(first, second).items()]
