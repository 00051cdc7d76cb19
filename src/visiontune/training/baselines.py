"""What a document model must beat: the figures that keep a summary from being taken for more than it is.

Beside the model's own answers stand, for the same samples: the first three sentences (no model at all), the model shown
blank pages, the model shown another document's pages, and the same decoder given the text itself as tokens, whole and
cut to as many tokens as its pages take. Each comes with the paired difference to the model's ROUGE-L.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

import regex
import torch

from visiontune.data.sample import Document, Images, Prediction, Sample, Text
from visiontune.metrics.intervals import Metric, mean
from visiontune.metrics.rouge import NAMES, rouge
from visiontune.models.text import TextAdapter
from visiontune.progress import progress
from visiontune.recipe import Recipe
from visiontune.training.answers import replies

SENTENCES = 3
JUDGED_BY = "rougeL"
LEAD, BLANK, EXCHANGED = "first three sentences", "blank page", "exchanged pages"
TEXT, TRUNCATED = "text input", "truncated text"

# A sentence ends with its stop (of any script, as Unicode has them) and what closes behind it, before a blank; CJK
# stops need none; so does a blank line.
_SENTENCE = regex.compile(
    r".+?(?:[\p{Sentence_Terminal}…]+[\p{Pe}\p{Pf}\"']*(?=\s|$)|[。！？｡]+|(?=\n\s*\n)|$)", regex.S
)


def lead(text: str, sentences: int = SENTENCES) -> str:
    """The first sentences of a text, headings of Markdown among them."""
    found = (match.strip() for match in _SENTENCE.findall(text))
    return " ".join([sentence for sentence in found if sentence][:sentences])


@dataclass(frozen=True)
class Baseline:
    """What stands beside the model: ROUGE of the samples that it answered, and the model's ROUGE-L minus its own on
    those of them that the model answered too.

    `left_out` counts the samples that it could not answer, such as texts longer than the context.
    """

    name: str
    metrics: dict[str, Metric]
    ahead: Metric
    left_out: int

    def to_json(self) -> dict[str, Any]:
        """{"name", "metrics", "ahead", "left_out"}."""
        return {
            "name": self.name,
            "metrics": {name: metric.to_json() for name, metric in self.metrics.items()},
            "ahead": self.ahead.to_json(),
            "left_out": self.left_out,
        }


def compare(
    adapter: TextAdapter,
    samples: Sequence[Sample],
    predictions: Sequence[Prediction],
    recipe: Recipe,
    device: torch.device,
) -> list[Baseline]:
    """The baselines of samples whose predictions, in the same order, are the model's own.

    Without two documents that differ there is nothing to exchange, and no baseline of that.
    """
    asked: dict[str, Iterable[Sample]] = {
        BLANK: (blank(sample) for sample in samples),
        EXCHANGED: exchanged(samples),
        TEXT: (as_text(sample, recipe) for sample in samples),
        TRUNCATED: (_cut_as_its_pages(adapter, sample, recipe) for sample in samples),
    }
    if len({text_of(sample) for sample in samples}) < 2:
        del asked[EXCHANGED]
    answers: dict[str, list[str | None]] = {LEAD: [lead(text_of(sample)) for sample in samples]}
    with progress("baselines", len(asked) * len(samples), "answers") as advance:
        for name, made in asked.items():
            found = replies(adapter, adapter.encoder, made, recipe, device, advance)
            answers[name] = [reply.text for reply in found]
    truths = [sample.text.answer for sample in samples]
    own = [prediction.target.answer for prediction in predictions]
    return [baseline(name, truths, found, own) for name, found in answers.items()]


def baseline(name: str, truths: Sequence[str], answers: Sequence[str | None], own: Sequence[str | None]) -> Baseline:
    """What the answers of a baseline are worth beside the model's own, one a sample; None where there is none."""
    metrics = {kind: mean(scores) for kind, scores in rouges(truths, answers).items()}
    return Baseline(name, metrics, ahead(truths, own, answers), sum(answer is None for answer in answers))


def rouges(truths: Sequence[str], answers: Sequence[str | None]) -> dict[str, list[float]]:
    """ROUGE-1, ROUGE-2 and ROUGE-L of each answer that there is."""
    found = [rouge(truth, answer) for truth, answer in zip(truths, answers, strict=True) if answer is not None]
    return {kind: [scores[kind] for scores in found] for kind in NAMES}


def ahead(truths: Sequence[str], first: Sequence[str | None], second: Sequence[str | None]) -> Metric:
    """By how much the ROUGE-L of `first` is above that of `second`, in [-1, 1], on the samples that both answered."""
    differences = [
        rouge(truth, one)[JUDGED_BY] - rouge(truth, other)[JUDGED_BY]
        for truth, one, other in zip(truths, first, second, strict=True)
        if one is not None and other is not None
    ]
    return mean(differences, bounds=(-1, 1))


def text_of(sample: Sample) -> str:
    """The text of a document."""
    assert isinstance(sample.seen, Document)
    return sample.seen.text


def blank(sample: Sample) -> Sample:
    """The sample with one page that shows nothing."""
    return replace(sample, seen=Document(" "))


def exchanged(samples: Sequence[Sample]) -> Iterator[Sample]:
    """Each sample with the document of the next one, cyclically, that has another; those without any are not there."""
    for i, sample in enumerate(samples):
        others = (other.seen for other in chain(samples[i + 1 :], samples[:i]) if other.seen != sample.seen)
        yield from (replace(sample, seen=seen) for seen in islice(others, 1))


def as_text(sample: Sample, recipe: Recipe, text: str | None = None) -> Sample:
    """The sample with its text (or the one given) in front of its question, and nothing to see."""
    question = sample.text.prompt or recipe.data.prompt
    text = text_of(sample) if text is None else text
    return replace(sample, seen=Images(()), target=Text(sample.text.answer, f"{text}\n\n{question}"))


def _cut_as_its_pages(adapter: TextAdapter, sample: Sample, recipe: Recipe) -> Sample:
    """The sample as text of as many tokens as its pages take."""
    tokens = adapter.encoder.encode(sample, with_answer=False).image_features
    return as_text(sample, recipe, adapter.encoder.cut(text_of(sample), tokens))
