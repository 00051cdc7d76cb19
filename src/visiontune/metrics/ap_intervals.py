"""95 % intervals of average precision, from halves of the images.

Halves are drawn at random and their precision-recall curves counted, which needs no new matching: whether a detection
is right depends on its own image alone. The AP of halves varies as that of sets of n images does (the jackknife that
leaves d = n / 2 out; Shao and Wu 1989), which gives the standard deviation.

Halves also tell how far AP is too high. It takes the best precision at or beyond a recall, so that it gains from luck,
the more the fewer images there are; with many classes that is more than the deviation. The gain is taken to fall as
n ** (-2 / 3), about what was measured, so the halves' own gain beyond that of all images gives the size of it. The
interval reaches 1.96 deviations to either side of the value less its gain, and holds the value. The bootstrap knows
nothing of the gain: `bench/evaluate_boxes.py` counts how often either holds the AP of far more images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visiontune.metrics.average_precision import IOU_THRESHOLDS, MOST_DETECTIONS, RECALLS, CocoPair
from visiontune.metrics.intervals import NOTHING_COUNTED, Metric, widest_error_rate

HALVES = 200
DEVIATIONS = 1.96
GAIN_FALLS = 2 / 3

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RankedDetections:
    """The d detections of one class in all n images, best first, and what they found.

    image: (d,) int64. right, wrong: (10 IoU thresholds, d) bool; a detection that is ignored is neither. truths: (n,)
    int64, the true objects of each image.
    """

    image: NDArray[np.int64]
    right: NDArray[np.bool_]
    wrong: NDArray[np.bool_]
    truths: NDArray[np.int64]


def ranked_detections(pair: CocoPair) -> list[RankedDetections]:
    """The detections of each class, matched at each IoU threshold, of objects of all sizes."""
    evaluator = pair.evaluator()
    parameters = evaluator.params
    parameters.area_rng, parameters.area_rng_lbl = [parameters.area_rng[0]], ["all"]
    parameters.max_dets = [MOST_DETECTIONS[-1]]
    evaluator.evaluate()
    of_class: list[list[dict]] = [[] for _ in range(pair.classes)]
    for found in evaluator.eval_imgs:
        if found is not None:
            of_class[found["category_id"] - 1].append(found)
    return [_ranked(found, pair.images) for found in of_class]


def average_precisions(ranked: RankedDetections, chosen: NDArray[np.bool_]) -> Floats:
    """AP of a class at each IoU threshold in some of the images: (resamples, 10), NaN where those hold no truth.

    chosen: (resamples, images) bool.
    """
    found = np.full((len(chosen), len(IOU_THRESHOLDS)), np.nan)
    for resample, images in enumerate(chosen):
        truths = int(ranked.truths[images].sum())
        if truths == 0:
            continue
        detections = images[ranked.image]
        right = np.cumsum(ranked.right[:, detections], axis=1)
        wrong = np.cumsum(ranked.wrong[:, detections], axis=1)
        precision = right / np.maximum(right + wrong, 1)
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        # COCO reads each recall at the first detection that reaches it; precision is 0 where none does.
        reached = np.concatenate([precision, np.zeros((len(precision), 1))], axis=1)
        needed = np.searchsorted(np.arange(truths + 1) / truths, RECALLS)  # so many hits
        row = np.arange(len(right))[:, None]
        apart = row * (truths + 1)  # makes one ascending row of all, for one search
        first = np.searchsorted((right + apart).ravel(), needed + apart) - row * right.shape[1]
        found[resample] = reached[row, first].mean(axis=1)
    return found


def ap_intervals(
    pair: CocoPair, values: Sequence[tuple[float | None, float | None]], halves: int, seed: int
) -> list[tuple[Metric, Metric]]:
    """AP and AP50 with their 95 % intervals: of all classes, then of each.

    `values` are the figures themselves, in that order. A figure's `n` is the number of images, of a class that of the
    images in which it was looked for. Takes about 1.5 s for 200 halves of 1,000 images with 60,000 detections.
    """
    images = [pair.images, *pair.asked.sum(axis=1).tolist()]
    return [
        (_metric(ap, found.mean(axis=1), n), _metric(ap50, found[:, 0], n))
        for (ap, ap50), found, n in zip(values, halved(pair, halves, seed), images, strict=True)
    ]


def halved(pair: CocoPair, halves: int, seed: int) -> Floats:
    """AP of random halves of the images, which depend on the seed and the number of images alone.

    (1 + classes, halves, 10 IoU thresholds): of all classes, then of each; NaN where a half holds no truth. The halves
    of a class that was not looked for in all images are halves of those in which it was.
    """
    order = np.random.default_rng(seed).random((halves, pair.images)).argsort(axis=1)
    chosen, ranked = order < pair.images // 2, ranked_detections(pair)
    of_class = np.stack([average_precisions(one, chosen) for one in ranked])
    mean = _mean_over_classes(of_class)
    for c in np.flatnonzero(~pair.asked.all(axis=1)).tolist():
        own = np.flatnonzero(pair.asked[c])
        chosen = np.zeros_like(chosen)
        chosen[:, own] = order[:, own].argsort(axis=1).argsort(axis=1) < len(own) // 2
        of_class[c] = average_precisions(ranked[c], chosen)
    return np.concatenate([mean[None], of_class])


def difference_of_halves(value: float, of_halves: Floats, images: int) -> Metric:
    """A difference of two APs with its interval, from those of the same halves: (halves,).

    What either gains from luck is left alone: it is of the same size in both.
    """
    reach = _reach(of_halves, images)
    if reach is None:
        share = widest_error_rate(images)
        return Metric(value, value - share * (value + 1), value + share * (1 - value), images)
    return Metric(value, max(-1.0, value - reach), min(1.0, value + reach), images)


def _ranked(found: list[dict], images: int) -> RankedDetections:
    image = np.concatenate([np.zeros(0, np.int64), *(np.full(len(f["dtScores"]), f["image_id"] - 1) for f in found)])
    scores = np.concatenate([np.zeros(0), *(np.asarray(f["dtScores"], np.float64) for f in found)])
    matched, ignored = (_joined([f[name] for f in found]) for name in ("dtMatched", "dtIgnore"))
    truths = np.zeros(images, np.int64)
    for f in found:
        truths[f["image_id"] - 1] = f["gtIgnore"].count(False)
    order = np.argsort(-scores, kind="stable")
    return RankedDetections(image[order], (matched & ~ignored)[:, order], (~matched & ~ignored)[:, order], truths)


def _joined(parts: list[list[list[bool]]]) -> NDArray[np.bool_]:
    rows = len(IOU_THRESHOLDS)
    return np.concatenate([np.zeros((rows, 0), np.bool_), *(np.array(p, np.bool_).reshape(rows, -1) for p in parts)], 1)


def _mean_over_classes(of_class: Floats) -> Floats:
    """The mean over the classes that have a truth: (classes, resamples, 10) to (resamples, 10)."""
    known = ~np.isnan(of_class[..., 0]).all(axis=0)
    found = np.full(of_class.shape[1:], np.nan)
    found[known] = np.nanmean(of_class[:, known], axis=0)
    return found


def _metric(value: float | None, of_halves: Floats, images: int) -> Metric:
    if value is None:
        return NOTHING_COUNTED
    reach = _reach(of_halves, images)
    if reach is None:
        # Halves that never vary claim no certainty: a share of the images could still be anything (intervals.mean).
        share = widest_error_rate(images)
        return Metric(value, value - share * value, value + share * (1 - value), images)
    half = images // 2
    gain = (float(np.nanmean(of_halves)) - value) / ((images / half) ** GAIN_FALLS - 1)
    low, high = min(value, value - gain - reach), max(value, value - gain + reach)
    return Metric(value, max(0.0, low), min(1.0, high), images)


def _reach(of_halves: Floats, images: int) -> float | None:
    """How far an interval reaches to either side of a figure, from that of halves; None where those never vary."""
    of_halves = of_halves[~np.isnan(of_halves)]
    if len(of_halves) < 2 or np.ptp(of_halves) < 1e-12:
        return None
    half = images // 2
    return DEVIATIONS * float(of_halves.std(ddof=1)) * (half / (images - half)) ** 0.5
