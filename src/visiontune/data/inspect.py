"""What data are, and what is wrong with them: of a raw source or of a prepared dataset, in the same form."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from visiontune.data import formats
from visiontune.data.dataset import Dataset, Index
from visiontune.data.dataset_info import INFO_NAME, DocumentSummary, ImageSummary, ObjectSummary, Range
from visiontune.data.documents import FontFile, Pages, Rendering, Shown, document_facts, sampled, workers_for_documents
from visiontune.data.faults import Fault
from visiontune.data.format_names import Format
from visiontune.data.images import read_header
from visiontune.data.pages import LEGIBLE_X_HEIGHT, x_height, x_heights
from visiontune.data.prepare import dataset_faults
from visiontune.data.sample import Document, Images
from visiontune.data.scan import fingerprints, workers_for
from visiontune.data.split import SPLITS, spread
from visiontune.data.survey import Earlier, counted, image_sizes, image_summary, object_summary, survey, usable
from visiontune.data.turns import Turns
from visiontune.errors import DataError

SEED = 0


@dataclass(frozen=True)
class Reading:
    """What a model makes of documents. `side` is that of its square page and `x_height` that of a letter on it, pixels.

    `page_tokens` vision tokens stand for a page. `sampled` documents have `text_tokens` in the model's tokenizer and
    `vision_tokens` as pages; None for a tiny model, which has no tokenizer before it is built.
    """

    model: str
    side: int
    x_height: float
    page_tokens: int
    characters_a_token: float
    sampled: int | None = None
    text_tokens: int | None = None
    vision_tokens: int | None = None

    @property
    def ratio(self) -> float | None:
        """Text tokens / vision tokens of the sampled documents: how much shorter they are as pages."""
        if self.text_tokens is None or self.vision_tokens is None:
            return None
        return self.text_tokens / self.vision_tokens

    def to_json(self) -> dict[str, Any]:
        """All fields and the ratio."""
        ratio = None if self.ratio is None else round(self.ratio, 2)
        rounded = {"x_height": round(self.x_height, 2), "characters_a_token": round(self.characters_a_token, 2)}
        return asdict(self) | rounded | {"ratio": ratio}


@dataclass(frozen=True)
class TextReading:
    """What a model makes of images with texts, as a run would derive it: `image_longest_edge` pixels, cut into tiles or
    not, sequences of at most `max_tokens`; and the ranges of the tokens of a sample and of its images among them."""

    model: str
    image_longest_edge: int
    image_splitting: bool
    max_tokens: int
    tokens: Range
    image_tokens: Range

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        ranges = {name: getattr(self, name).model_dump(mode="json") for name in ("tokens", "image_tokens")}
        return asdict(self) | ranges


@dataclass(frozen=True)
class Inspection:
    """The facts of some data, sample by sample in one order.

    `labels` counts the classes of a closed set (None for free text), `prompts` holds each sample's question or None,
    `widths` and `heights` are in pixels with one entry an image: (images,), int32. `splits` counts the samples of each
    split: those that stand, or those that `prepare` would make with its own seed. `characters` and `page_counts` are
    the lengths of the documents: (samples,), int32, empty where images are seen. `ids`, `turns` (see `sample.Text`) and
    `images_each`, the number of images, are those of each sample. `rendering` says how documents become
    pages, `some` holds at most 200 of them, evenly spread, each with its pages; `reading` is what a named model makes
    of them.
    """

    splits: dict[str, int]
    labels: dict[str, int] | None
    answers: list[str]
    prompts: list[str | None]
    widths: np.ndarray
    heights: np.ndarray
    images: ImageSummary | None
    faults: list[Fault]
    documents: DocumentSummary | None = None
    characters: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    page_counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    rendering: Rendering | None = None
    some: list[tuple[str, int]] = field(default_factory=list)
    reading: Reading | None = None
    objects: ObjectSummary | None = None
    ids: list[str] = field(default_factory=list)
    turns: list[Turns] = field(default_factory=list)
    images_each: list[int] = field(default_factory=list)
    text_reading: TextReading | None = None

    def index(self) -> Index:
        """The samples as those of one split, of images with texts."""
        bounds = np.cumsum([0, *self.images_each]).tolist()
        sizes = [[values[a:b].tolist() for a, b in pairwise(bounds)] for values in (self.heights, self.widths)]
        return Index(self.ids, self.prompts, self.answers, sizes[1], sizes[0], [""] * len(self.ids), turns=self.turns)

    @property
    def samples(self) -> int:
        """The number of usable samples."""
        return len(self.answers)

    @property
    def kind(self) -> str:
        """What answering these samples is called."""
        if self.labels is not None:
            return "classification"
        if any(self.turns):
            return "conversation"
        if any(prompt is not None for prompt in self.prompts):
            return "question answering"
        return "captioning" if self.documents is None else "summarisation"

    @property
    def compression(self) -> np.ndarray:
        """Characters seen for each character of the answer: (samples,), float64; empty where images are seen."""
        if self.documents is None:
            return np.zeros(0)
        return self.characters / np.array([len(answer) for answer in self.answers])

    @property
    def trains(self) -> list[dict[str, str]]:
        """What could be trained on these data."""
        if not self.samples:
            return []
        if self.objects is None:
            return [{"target": "text", "kind": self.kind}]
        found = [{"target": "boxes", "kind": "detection"}] if self.objects.count else []
        return found + ([{"target": "masks", "kind": "segmentation"}] if self.objects.masks else [])

    def to_json(self) -> dict[str, Any]:
        """The one JSON form of an inspection."""
        targets = {}
        if self.objects is not None:
            targets["objects"] = self.objects.model_dump(mode="json")
        elif self.samples:
            lengths = np.array([len(answer) for answer in self.answers])
            targets["text"] = {
                "samples": self.samples,
                "labels": self.labels,
                "answer_characters": Range.of(lengths).model_dump(mode="json"),
                "prompts": sum(prompt is not None for prompt in self.prompts),
            }
        return {
            "targets": targets,
            "samples": self.samples,
            "splits": self.splits,
            "images": None if self.images is None else self.images.model_dump(mode="json"),
            "documents": self._documents_json(),
            "faults": [fault.to_json() for fault in self.faults],
            "trains": self.trains,
        } | ({} if self.text_reading is None else {"model": self.text_reading.to_json()})

    def _documents_json(self) -> dict[str, Any] | None:
        if self.documents is None or self.rendering is None:
            return None
        ratios = self.compression
        spec, fonts = self.rendering.spec, self.rendering.fonts()
        resized = x_heights(spec, fonts)
        return self.documents.model_dump(mode="json") | {
            "characters_a_page": round(self.documents.characters_a_page, 1),
            "compression": {
                "min": round(float(ratios.min()), 1),
                "median": round(float(np.median(ratios)), 1),
                "max": round(float(ratios.max()), 1),
            },
            "page": {"width": spec.width, "height": spec.height, "font_size": spec.font_size},
            "x_height": {
                "drawn": round(x_height(spec, fonts), 2),
                "resized": {str(side): round(height, 2) for side, height in resized.items()},
                "illegible": [side for side, height in resized.items() if height < LEGIBLE_X_HEIGHT],
                "limit": LEGIBLE_X_HEIGHT,
            },
            "model": None if self.reading is None else self.reading.to_json(),
        }


def inspect(
    source: Path,
    *,
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    format: Format | None = None,
    pages: Pages | None = None,
    fonts: Sequence[Path | FontFile] | None = None,
) -> Inspection:
    """Inspect images, texts or a prepared dataset; `limit` looks at that many samples, spread over the classes.

    `columns`, `format`, `pages` and `fonts` are those of `prepare`; a prepared dataset has its own. Nothing is
    written. Raises DataError when there is nothing that can be read, and for options that do not fit the data.
    """
    source = Path(source)
    if (source / INFO_NAME).is_file():
        if not (columns is format is pages is fonts is None):
            raise DataError(
                "a prepared dataset has its own pages, and columns are those of tables",
                where=str(source),
                fix="leave these options out, or inspect the source",
            )
        return _of_dataset(Dataset.open(source), limit)
    listing = usable(formats.read(source, columns, called=format), limit, SEED)
    if listing.seen == "images" and not (pages is fonts is None):
        raise DataError(
            "these are images; a page spec and fonts are for texts", where=str(source), fix="leave these options out"
        )
    marks = fingerprints(listing.rows)
    rendering, workers = None, workers_for(marks)
    if listing.seen == "documents":
        rendering = Rendering.chosen([row.document or "" for row in listing.rows], pages, fonts)
        workers = workers_for_documents(listing.rows)
    found = survey(listing, marks, seed=SEED, earlier=Earlier(), workers=workers, store=None, rendering=rendering)
    nothing = np.zeros(0, np.int32)
    counts = nothing if rendering is None else found.facts["pages"].combine_chunks().to_numpy()
    widths, heights = image_sizes(found.facts) if rendering is None else (nothing, nothing)
    return Inspection(
        splits={split: found.splits.count(split) for split in SPLITS},
        labels=found.labels,
        answers=[row.answer for row in found.rows],
        prompts=[row.prompt for row in found.rows],
        widths=widths,
        heights=heights,
        images=found.images,
        faults=found.faults,
        documents=found.documents,
        characters=nothing if rendering is None else found.facts["characters"].combine_chunks().to_numpy(),
        page_counts=counts,
        rendering=rendering,
        objects=object_summary((row.answer for row in found.rows), listing.classes),
        some=[(found.rows[i].document or "", int(counts[i])) for i in sampled(len(counts))],
        ids=[row.id for row in found.rows],
        turns=[row.turns for row in found.rows],
        images_each=[len(row.images) for row in found.rows],
    )


def _of_dataset(dataset: Dataset, limit: int | None) -> Inspection:
    indexes = {split: dataset.index(split) for split in SPLITS}
    places = [(split, i) for split, index in indexes.items() for i in range(len(index.ids))]
    images, documents, stored = dataset.info.images, dataset.info.documents, dataset.info.objects
    if limit is not None:
        if limit < 1:
            raise DataError(f"a limit of {limit} samples leaves nothing", where="--limit", fix="use 1 or more")
        closed = dataset.info.labels is not None
        classes = [indexes[split].answers[i] if closed else "" for split, i in places]
        chosen = spread(classes, [indexes[split].ids[i] for split, i in places], limit, dataset.info.split_seed)
        places = [places[k] for k in chosen]
        if dataset.info.seen == "documents":
            documents = _read_again(dataset, places)
        else:
            images = _looked_at(dataset, places)
    answers = [indexes[split].answers[i] for split, i in places]
    counts = _numbers(indexes[split].pages[i] for split, i in places if indexes[split].pages)
    rendering = Rendering.of(dataset)
    return Inspection(
        splits={split: sum(name == split for name, _ in places) for split in SPLITS},
        labels=None if dataset.info.labels is None else counted(answers),
        answers=answers,
        prompts=[indexes[split].prompts[i] for split, i in places],
        widths=np.array([width for split, i in places for width in indexes[split].widths[i]], np.int32),
        heights=np.array([height for split, i in places for height in indexes[split].heights[i]], np.int32),
        images=images,
        faults=dataset_faults(dataset.info),
        documents=documents,
        characters=_numbers(indexes[split].documents[i] for split, i in places if indexes[split].documents),
        page_counts=counts,
        rendering=rendering,
        objects=object_summary(answers, None if stored is None else tuple(stored.classes)),
        some=[(_text(dataset, places[k]), int(counts[k])) for k in sampled(len(counts))],
        ids=[indexes[split].ids[i] for split, i in places],
        turns=[indexes[split].turns[i] if indexes[split].turns else () for split, i in places],
        images_each=[len(indexes[split].widths[i]) for split, i in places],
    )


def _looked_at(dataset: Dataset, places: list[tuple[str, int]]) -> ImageSummary | None:
    seen = [dataset.sample(split, i).seen for split, i in places]
    files = [file for one in seen if isinstance(one, Images) for file in one.files]
    headers = [read_header(file.data) for file in files]
    return image_summary(
        np.array([header.width for header in headers]),
        np.array([header.height for header in headers]),
        np.array([len(file.data) for file in files]),
        [header.format for header in headers],
    )


def _read_again(dataset: Dataset, places: list[tuple[str, int]]) -> DocumentSummary | None:
    spec, fonts = dataset.info.pages, dataset.fonts()
    seen = [dataset.sample(split, i).seen for split, i in places]
    facts = [
        document_facts(Shown(one.text), spec, fonts) for one in seen if isinstance(one, Document) and spec is not None
    ]
    scripts = Counter[str]()
    for fact in facts:
        scripts.update(json.loads(fact["scripts"]))
    return DocumentSummary.of(
        _numbers(fact["characters"] for fact in facts),
        _numbers(fact["pages"] for fact in facts),
        sum(fact["missing"] for fact in facts),
        scripts,
    )


def _text(dataset: Dataset, place: tuple[str, int]) -> str:
    seen = dataset.sample(*place).seen
    return seen.text if isinstance(seen, Document) else ""


def _numbers(values: Iterable[int]) -> np.ndarray:
    return np.array(list(values), np.int32)
