"""What a document model must beat: the figures that keep a summary from being taken for more than it is.

Beside the model's own answers stand, for the same samples: the first three sentences (no model at all), the model shown
blank pages, the model shown another document's pages, and the same decoder given the text itself as tokens, whole and
cut to as many tokens as its pages take. Each comes with the paired difference to the model's ROUGE-L.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import regex
import torch

from visiontune.data.sample import Document, Images, Prediction, Sample, Text
from visiontune.errors import DataError
from visiontune.metrics.intervals import Metric, mean
from visiontune.metrics.rouge import NAMES, rouge
from visiontune.models.adapter import ModelAdapter
from visiontune.progress import progress
from visiontune.recipe import Recipe
from visiontune.training.precision import autocast

SENTENCES = 3
JUDGED_BY = "rougeL"

# A sentence ends with its stop and what closes behind it, before a blank; CJK stops need none; so does a blank line.
_SENTENCE = regex.compile(r".+?(?:[.!?…]+[\p{Pe}\p{Pf}\"']*(?=\s|$)|[。！？｡]+|(?=\n\s*\n)|$)", regex.S)


def lead(text: str, sentences: int = SENTENCES) -> str:
    """The first sentences of a text, headings of Markdown among them."""
    found = (match.strip() for match in _SENTENCE.findall(text))
    return " ".join([sentence for sentence in found if sentence][:sentences])


@dataclass(frozen=True)
class Baseline:
    """What stands beside the model: ROUGE of `n` samples, and the model's ROUGE-L minus its own on the same samples.

    `left_out` counts the samples that it could not answer, such as texts longer than the context.
    """

    name: str
    metrics: dict[str, Metric]
    ahead: Metric
    left_out: int

    def to_json(self) -> dict[str, Any]:
        """{"name", "metrics", "ahead", "left_out"}."""
        metrics = {name: metric.to_json() for name, metric in self.metrics.items()}
        return {"name": self.name, "metrics": metrics, "ahead": self.ahead.to_json(), "left_out": self.left_out}


def compare(
    adapter: ModelAdapter,
    samples: Sequence[Sample],
    predictions: Sequence[Prediction],
    recipe: Recipe,
    device: torch.device,
) -> list[Baseline]:
    """The baselines of samples whose predictions, in the same order, are the model's own."""
    own = [rouge(s.target.answer, p.target.answer)[JUDGED_BY] for s, p in zip(samples, predictions, strict=True)]
    others = [*samples[1:], *samples[:1]]
    asked: dict[str, Callable[[int], Sample]] = {
        "blank page": lambda i: replace(samples[i], seen=Document(" ")),
        "exchanged pages": lambda i: replace(samples[i], seen=others[i].seen),
        "text input": lambda i: _as_text(adapter, samples[i], recipe, cut=False),
        "truncated text": lambda i: _as_text(adapter, samples[i], recipe, cut=True),
    }
    answers: dict[str, list[str | None]] = {"first three sentences": [lead(_text(sample)) for sample in samples]}
    with progress("baselines", len(asked) * len(samples), "answers") as advance:
        for name, made in asked.items():
            answers[name] = []
            for i in range(len(samples)):
                answers[name].append(_answer(adapter, made(i), recipe, device))
                advance(1)
    truths = [sample.target.answer for sample in samples]
    return [_baseline(name, truths, found, own) for name, found in answers.items()]


def _baseline(name: str, truths: Sequence[str], answers: Sequence[str | None], own: Sequence[float]) -> Baseline:
    both = [(rouge(truth, a), mine) for truth, a, mine in zip(truths, answers, own, strict=True) if a is not None]
    metrics = {kind: mean([scores[kind] for scores, _ in both]) for kind in NAMES}
    # Differences lie in [-1, 1]; halved and moved they are values in [0, 1], as the bootstrap wants them.
    moved = mean([(mine - scores[JUDGED_BY] + 1) / 2 for scores, mine in both])
    ahead = Metric(_apart(moved.value), _apart(moved.low), _apart(moved.high), moved.n)
    return Baseline(name, metrics, ahead, len(answers) - len(both))


def _apart(moved: float | None) -> float | None:
    return None if moved is None else 2 * moved - 1


def _text(sample: Sample) -> str:
    assert isinstance(sample.seen, Document)
    return sample.seen.text


def _as_text(adapter: ModelAdapter, sample: Sample, recipe: Recipe, *, cut: bool) -> Sample:
    """The sample with its text in the question and nothing to see; cut to as many tokens as its pages take."""
    question, text = sample.target.prompt or recipe.data.prompt, _text(sample)
    if cut:
        text = adapter.encoder.cut(text, adapter.encoder.encode(sample, with_answer=False).image_features)
    return replace(sample, seen=Images(()), target=Text(sample.target.answer, f"{text}\n\n{question}"))


def _answer(adapter: ModelAdapter, sample: Sample, recipe: Recipe, device: torch.device) -> str | None:
    try:
        batch = adapter.encoder.collate([adapter.encoder.encode(sample, with_answer=False)], pad_left=True)
    except DataError:
        return None  # longer than the context: counted as left out
    with torch.no_grad(), autocast(device, recipe.machine.precision):
        ((text, _),) = adapter.generate(batch.to(device), recipe.evaluation.max_new_tokens)
    return text
