"""Scores of predicted texts: exact match, and per class where the answers come from a closed label set."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visiontune.data.sample import Prediction
from visiontune.errors import DataError, RecipeError
from visiontune.metrics.answers import free_text, matches, with_truth
from visiontune.metrics.intervals import Metric, class_metrics, proportion

OTHER = "(other)"
PER_CLASS = ("precision", "recall", "f1")
RATIOS = ("cer", "wer", "length_ratio", "compression")  # they may pass 1; every other metric is a share


@dataclass(frozen=True)
class ClassScores:
    """How one class came out; `support` is its number of samples."""

    label: str
    support: int
    precision: Metric
    recall: Metric
    f1: Metric

    def to_json(self) -> dict[str, Any]:
        """{"label", "support", "precision", "recall", "f1"}."""
        rates = {"precision": self.precision, "recall": self.recall, "f1": self.f1}
        return {"label": self.label, "support": self.support} | {name: rate.to_json() for name, rate in rates.items()}


@dataclass(frozen=True)
class Confusion:
    """Counts of shape (classes, classes + 1): rows truth, columns answers, the last one answers outside the labels."""

    labels: tuple[str, ...]
    counts: NDArray[np.int64]

    def to_json(self) -> dict[str, Any]:
        """{"labels", "counts"}; the last column's name, "(other)", is not among the labels."""
        return {"labels": list(self.labels), "counts": self.counts.tolist()}


@dataclass(frozen=True)
class TextScores:
    """The scores of `n` predictions. `classes` and `confusion` are there where the answers come from a label set.

    `metrics` holds exact_match, normalised_match (the same after `answers.normalised`) and, where all predictions say
    so, at_length_limit (the share of answers that were cut at their greatest length); for free text also rouge1,
    rouge2, rougeL and repetition, and as ratios over all samples cer and wer (the character and word error rates: wrong
    ones / those of the truth; lower is better, and they are not capped: an answer far too long passes 1), length_ratio
    (characters of the answers / of the truths), and compression (characters of the documents / of the answers) where
    all predictions say how long their document was. With a label set it holds accuracy, macro_f1 and outside_labels
    (the share of answers that are no label), and where predictions may abstain answered (the share that did not) and
    accuracy_answered. What has nothing to count has the value None.
    """

    n: int
    metrics: dict[str, Metric]
    classes: tuple[ClassScores, ...] | None = None
    confusion: Confusion | None = None

    def to_json(self) -> dict[str, Any]:
        """{"n", "metrics", "classes", "confusion"}, the last two null without a label set."""
        return {
            "n": self.n,
            "metrics": {name: metric.to_json() for name, metric in self.metrics.items()},
            "classes": None if self.classes is None else [scores.to_json() for scores in self.classes],
            "confusion": None if self.confusion is None else self.confusion.to_json(),
        }

    def metric(self, name: str) -> Metric:
        """A metric by its name, one of a class as `f1.cat`; raises RecipeError for a name that is not there."""
        if name in self.metrics:
            return self.metrics[name]
        kind, _, label = name.partition(".")
        for scores in self.classes or ():
            if scores.label == label and kind in PER_CLASS:
                return {"precision": scores.precision, "recall": scores.recall, "f1": scores.f1}[kind]
        available = list(self.metrics)
        if self.classes:
            labels = ", ".join(scores.label for scores in self.classes[:20]) + (
                ", ..." if len(self.classes) > 20 else ""
            )
            available += [f"{kind}.LABEL" for kind in PER_CLASS] + [f"with LABEL one of {labels}"]
        raise RecipeError(f"There is no metric '{name}'.", fix=f"metrics: {', '.join(available)}")


def score_texts(predictions: Sequence[Prediction], labels: Sequence[str] | None = None, seed: int = 0) -> TextScores:
    """Score the predictions that have a truth; white space around answers does not count.

    `labels` is the closed label set, or None where answers are free text. Values equal scikit-learn's with
    zero_division=0, except that a rate with nothing to divide by is None here. `seed` is the bootstrap's. Raises
    DataError for a truth outside the labels.
    """
    if labels is None:
        counted = free_text(predictions)
        n = len(counted["exact_match"].parts)
        return TextScores(n, {name: one.metric(seed) for name, one in counted.items()})
    counts = label_counts(predictions, labels)
    n = int(counts.sum())
    rates = class_metrics(counts, seed)
    classes = zip(labels, counts.sum(axis=1).tolist(), rates.precision, rates.recall, rates.f1, strict=True)
    matched = {name: one.metric(seed) for name, one in matches(predictions).items()}
    metrics = {
        "accuracy": matched["exact_match"],
        **matched,
        "macro_f1": rates.macro_f1,
        "outside_labels": proportion(int(counts[:, -1].sum()), n, seed),
    }
    answered = [p for p in predictions if p.truth is not None and p.abstained is False]
    if any(p.abstained is not None for p in predictions):
        right = sum(p.truth is not None and p.truth.answer.strip() == p.target.answer.strip() for p in answered)
        metrics["answered"] = proportion(len(answered), n, seed)
        metrics["accuracy_answered"] = proportion(right, len(answered), seed)
    return TextScores(n, metrics, tuple(ClassScores(*row) for row in classes), Confusion(tuple(labels), counts))


def label_places(predictions: Sequence[Prediction], labels: Sequence[str]) -> NDArray[np.int64]:
    """The label of each truth and of each answer as its place among the labels: (n, 2); an answer that is none has
    their number. Raises DataError for a truth outside the labels.
    """
    place = {label.strip(): c for c, label in enumerate(labels)}
    found = np.zeros((len(pairs := with_truth(predictions)), 2), dtype=np.int64)
    for i, (prediction, truth, answer) in enumerate(pairs):
        if truth not in place:
            raise DataError(
                f"The true answer '{truth}' is not among the {len(labels)} labels.",
                where=prediction.id,
                fix="evaluate on a dataset with the labels that the model was trained on",
            )
        found[i] = place[truth], place.get(answer, len(labels))
    return found


def label_counts(predictions: Sequence[Prediction], labels: Sequence[str]) -> NDArray[np.int64]:
    """How often each label was answered with which: (labels, labels + 1), rows truth, the last column no label."""
    counts = np.zeros((len(labels), len(labels) + 1), dtype=np.int64)
    np.add.at(counts, tuple(label_places(predictions, labels).T), 1)
    return counts
