"""What each written answer counts for, sample by sample: the numbers that scores and comparisons are made of."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import regex
from numpy.typing import NDArray

from visiontune.data.sample import Prediction
from visiontune.metrics.edits import character_errors, word_errors
from visiontune.metrics.intervals import Metric, mean, proportion, ratio
from visiontune.metrics.rouge import NAMES as ROUGE_NAMES
from visiontune.metrics.rouge import repetition, rouge

# Among the scores of a prediction: the length of its document; 1 where the answer was cut at its greatest length.
DOCUMENT_CHARACTERS = "document_characters"
AT_LENGTH_LIMIT = "at_length_limit"

_ARTICLES = regex.compile(r"\b(a|an|the)\b")
_IN_A_NUMBER = regex.compile(r"(?<=\d)[.](?=\d)|(?<!\w)[-\u2212](?=[.]?\d)")
_PUNCTUATION = regex.compile(r"[\p{P}\p{S}]")


@dataclass(frozen=True, eq=False)
class Counted:
    """One metric of n samples: the mean of `parts`, or their sum over the sum of `wholes`; (n,) float64 each.

    Without wholes a part lies in [0, 1].
    """

    parts: NDArray[np.float64]
    wholes: NDArray[np.float64] | None = None

    def metric(self, seed: int = 0) -> Metric:
        """The value over all samples, with its interval."""
        if self.wholes is not None:
            return ratio(self.parts.tolist(), self.wholes.tolist(), seed)
        if np.isin(self.parts, (0, 1)).all():
            return proportion(int(self.parts.sum()), len(self.parts), seed)
        return mean(self.parts.tolist(), seed)


def normalised(text: str) -> str:
    """An answer without what does not make it wrong: case, punctuation, English articles, repeated blanks.

    The rule of SQuAD (Rajpurkar et al. 2016) for every script, but numbers keep their decimal point and their sign:
    3.5 is not 35, and -2 is not 2.
    """
    kept = _IN_A_NUMBER.sub(lambda found: "\ue000" if found[0] == "." else "\ue001", text.casefold())
    return " ".join(_ARTICLES.sub(" ", _PUNCTUATION.sub("", kept)).split()).translate({0xE000: ".", 0xE001: "-"})


def is_match(truth: str, answer: str) -> bool:
    """Whether two answers are the same once they are `normalised`; where that leaves nothing, as of signs and of
    articles alone, whether they are but for case and repeated blanks."""
    kept = normalised(truth)
    if kept != normalised(answer):
        return False
    return bool(kept) or truth.casefold().split() == answer.casefold().split()


def with_truth(predictions: Sequence[Prediction]) -> list[tuple[Prediction, str, str]]:
    """The predictions whose truth is known, each with the truth and the answer without white space around them."""
    return [(p, p.truth.answer.strip(), p.target.answer.strip()) for p in predictions if p.truth is not None]


def matches(predictions: Sequence[Prediction]) -> dict[str, Counted]:
    """exact_match, normalised_match, and at_length_limit where all predictions say whether they were cut."""
    pairs = with_truth(predictions)
    found = {
        "exact_match": _shares([truth == answer for _, truth, answer in pairs]),
        "normalised_match": _shares([is_match(truth, answer) for _, truth, answer in pairs]),
    }
    if (limits := _known(pairs, AT_LENGTH_LIMIT)) is not None:
        found["at_length_limit"] = _shares(limits)
    return found


def free_text(predictions: Sequence[Prediction]) -> dict[str, Counted]:
    """What is counted of answers in free text, by the names of `TextScores`."""
    pairs = with_truth(predictions)
    written = [rouge(truth, answer) for _, truth, answer in pairs]
    words = [word_errors(truth, answer) for _, truth, answer in pairs]
    truths, answers = _shares([len(truth) for _, truth, _ in pairs]).parts, [len(answer) for _, _, answer in pairs]
    found = matches(predictions)
    found |= {name: _shares([scores[name] for scores in written]) for name in ROUGE_NAMES}
    found["repetition"] = _shares([repetition(answer) for _, _, answer in pairs])
    found["cer"] = _ratio([character_errors(truth, answer) for _, truth, answer in pairs], truths)
    found["wer"] = _ratio([errors for errors, _ in words], [number for _, number in words])
    found["length_ratio"] = _ratio(answers, truths)
    if (documents := _known(pairs, DOCUMENT_CHARACTERS)) is not None:
        found["compression"] = _ratio(documents, answers)
    return found


def points(predictions: Sequence[Prediction], metric: str) -> list[float]:
    """What each answer counts for in [0, 1], by one of the metrics of texts that recipes name (`TextMetric`)."""
    counted = matches(predictions)
    counted["accuracy"] = counted["exact_match"]
    return (counted if metric in counted else free_text(predictions))[metric].parts.tolist()


def _known(pairs: Sequence[tuple[Prediction, str, str]], score: str) -> list[float] | None:
    found = [p.scores[score] for p, _, _ in pairs if score in p.scores]
    return found if found and len(found) == len(pairs) else None


def _shares(parts: Sequence[float]) -> Counted:
    return Counted(np.asarray(parts, np.float64))


def _ratio(parts: Sequence[float], wholes: Sequence[float] | NDArray[np.float64]) -> Counted:
    return Counted(np.asarray(parts, np.float64), np.asarray(wholes, np.float64))
