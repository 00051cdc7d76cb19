"""Sample (what is seen and its target) and Prediction, its mirror: the types that every part of visiontune speaks."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visiontune.data.objects import Objects, from_entries, to_entries
from visiontune.data.responses import Clip, Responses
from visiontune.data.turns import Turns


@dataclass(frozen=True)
class ImageFile:
    """One encoded image (JPEG, PNG, ...) as it stands on disk, and the path it came from (for people to see)."""

    data: bytes
    path: str


@dataclass(frozen=True)
class Images:
    """What is seen: no, one or several images, in order."""

    files: tuple[ImageFile, ...]


@dataclass(frozen=True)
class Document:
    """What is seen: a text that is laid out and rendered as pages when it is needed, every character of it."""

    text: str


@dataclass(frozen=True)
class Text:
    """A text to be written about what is seen: a class name, a caption, an answer.

    `prompt` is the question of this very sample; None means that the run's own prompt is asked. `turns` is all that was
    said before the answer, the question last, where that is more than the images and then the prompt: earlier turns
    (their answers are learned too), a system message, images in other places. `prompt` is then the text of the last
    question.
    """

    answer: str
    prompt: str | None = None
    turns: Turns = ()

    @property
    def answers(self) -> tuple[str, ...]:
        """All answers of the conversation, the last one last."""
        return (*(turn.text for turn in self.turns if turn.role == "assistant"), self.answer)


@dataclass(frozen=True)
class Sample:
    """One thing to learn from: what is seen and its target. `id` is unique inside a dataset."""

    id: str
    seen: Images | Document | Clip
    target: Text | Objects | Responses

    @property
    def text(self) -> Text:
        """The target of a sample whose target is a text; TypeError otherwise."""
        if not isinstance(self.target, Text):
            raise TypeError(f"the target of {self.id} is no text")
        return self.target


LABELS_WRITTEN = 10


@dataclass(frozen=True, eq=False)
class LabelProbabilities:
    """The probability of each label of a closed set: (labels,) float64, summing to one."""

    names: tuple[str, ...]
    values: NDArray[np.float64]

    def to_json(self) -> dict[str, float]:
        """The most probable labels (at most ten), most probable first."""
        order = np.argsort(-self.values, kind="stable")[:LABELS_WRITTEN]
        return {self.names[c]: round(float(self.values[c]), 6) for c in order}

    @staticmethod
    def from_json(value: dict[str, float]) -> "LabelProbabilities":
        """Read back what `to_json` wrote; labels that were not written are not there."""
        return LabelProbabilities(tuple(value), np.array(list(value.values()), np.float64))


@dataclass(frozen=True, eq=False)
class ObjectPrediction:
    """The objects that a model finds in one image; their scores stand with them.

    `classes` are the names that class numbers stand for, in `target` and `truth`. `size` is (height, width) of the
    upright image in pixels. `truth` is what people drew, where that is known.
    """

    id: str
    source: tuple[str, ...]
    target: Objects
    classes: tuple[str, ...]
    size: tuple[int, int]
    truth: Objects | None = None

    def to_json(self) -> dict[str, Any]:
        """The one JSON form of predictions: `kind` names the target, and the key of that name holds it. Where not all
        classes were looked for, `looked_for` names those that were, beside the true objects."""
        truth: dict[str, Any] | None = None
        if self.truth is not None:
            truth = {"objects": to_entries(self.truth, self.classes)}
            if (asked := self.truth.looked_for) is not None:
                truth["looked_for"] = [self.classes[c] for c in np.flatnonzero(asked).tolist()]
        return {
            "id": self.id,
            "source": list(self.source),
            "kind": "objects",
            "size": list(self.size),
            "objects": to_entries(self.target, self.classes),
            "truth": truth,
        }

    @staticmethod
    def from_json(value: dict[str, Any], classes: tuple[str, ...] | None = None) -> "ObjectPrediction":
        """Read back what `to_json` wrote; without `classes`, those that occur, in their first order."""
        truth = None if value["truth"] is None else value["truth"]["objects"]
        found = dict.fromkeys(entry["category"] for entry in [*value["objects"], *(truth or [])])
        names = tuple(found) if classes is None else classes
        listed = (value["truth"] or {}).get("looked_for")
        asked = None if listed is None else np.array([name in listed for name in names], np.bool_)
        return ObjectPrediction(
            id=value["id"],
            source=tuple(value["source"]),
            target=from_entries(value["objects"], names),
            classes=names,
            size=tuple(value["size"]),
            truth=None if truth is None else from_entries(truth, names, asked),
        )


@dataclass(frozen=True)
class Prediction:
    """The text that a model writes about one sample, with scores.

    `scores` holds named numbers of the prediction; `confidence` in [0, 1] is there for every kind of target.
    `truth` is the target where one is known. `labels` is there where labels were scored, `abstained` where a threshold
    on the confidence is known.
    """

    id: str
    source: tuple[str, ...]
    target: Text
    scores: dict[str, float] = field(default_factory=dict)
    truth: Text | None = None
    labels: LabelProbabilities | None = None
    abstained: bool | None = None

    def to_json(self) -> dict[str, Any]:
        """The one JSON form of predictions: `kind` names the target, and the key of that name holds it."""
        return {
            "id": self.id,
            "source": list(self.source),
            "kind": "text",
            "text": self.target.answer,
            "prompt": self.target.prompt,
            "scores": {name: round(score, 6) for name, score in self.scores.items()},
            "truth": None if self.truth is None else {"text": self.truth.answer},
            "labels": None if self.labels is None else self.labels.to_json(),
            "abstained": self.abstained,
        }

    @staticmethod
    def from_json(value: dict[str, Any]) -> "Prediction":
        """Read back what `to_json` wrote."""
        truth = value["truth"]
        return Prediction(
            id=value["id"],
            source=tuple(value["source"]),
            target=Text(answer=value["text"], prompt=value["prompt"]),
            scores=dict(value["scores"]),
            truth=None if truth is None else Text(answer=truth["text"]),
            labels=None if value["labels"] is None else LabelProbabilities.from_json(value["labels"]),
            abstained=value["abstained"],
        )
