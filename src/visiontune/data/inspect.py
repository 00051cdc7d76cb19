"""What data are, and what is wrong with them: of a raw folder or of a prepared dataset, in the same form."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from visiontune.data import formats
from visiontune.data.dataset import INFO_NAME, Dataset, ImageSummary, Range
from visiontune.data.faults import Fault
from visiontune.data.images import read_header
from visiontune.data.prepare import dataset_faults
from visiontune.data.scan import fingerprints, workers_for
from visiontune.data.split import SPLITS, spread
from visiontune.data.survey import Earlier, counted, image_sizes, image_summary, survey, usable
from visiontune.errors import DataError

SEED = 0


@dataclass(frozen=True)
class Inspection:
    """The facts of some data, sample by sample in one order.

    `labels` counts the classes of a closed set (None for free text), `prompts` holds each sample's question or None,
    `widths` and `heights` are in pixels with one entry an image: (images,), int32. `splits` counts the samples of each
    split: those that stand, or those that `prepare` would make with its own seed.
    """

    splits: dict[str, int]
    labels: dict[str, int] | None
    answers: list[str]
    prompts: list[str | None]
    widths: np.ndarray
    heights: np.ndarray
    images: ImageSummary | None
    faults: list[Fault]

    @property
    def samples(self) -> int:
        """The number of usable samples."""
        return len(self.answers)

    @property
    def kind(self) -> str:
        """What answering these samples is called."""
        if self.labels is not None:
            return "classification"
        return "question answering" if any(prompt is not None for prompt in self.prompts) else "captioning"

    @property
    def trains(self) -> list[dict[str, str]]:
        """What could be trained on these data."""
        return [{"target": "text", "kind": self.kind}] if self.samples else []

    def to_json(self) -> dict[str, Any]:
        """The one JSON form of an inspection."""
        targets = {}
        if self.samples:
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
            "faults": [fault.to_json() for fault in self.faults],
            "trains": self.trains,
        }


def inspect(source: Path, *, limit: int | None = None) -> Inspection:
    """Inspect a folder of images or a prepared dataset; `limit` looks at that many samples, spread over the classes.

    Nothing is written. Raises DataError when the folder holds nothing that can be read.
    """
    source = Path(source)
    if (source / INFO_NAME).is_file():
        return _of_dataset(Dataset.open(source), limit)
    listing = usable(formats.read(source), limit, SEED)
    marks = fingerprints(listing.rows)
    found = survey(listing, marks, seed=SEED, earlier=Earlier(), workers=workers_for(marks), store=None)
    widths, heights = image_sizes(found.facts)
    return Inspection(
        splits={split: found.splits.count(split) for split in SPLITS},
        labels=found.labels,
        answers=[row.answer for row in found.rows],
        prompts=[row.prompt for row in found.rows],
        widths=widths,
        heights=heights,
        images=found.images,
        faults=found.faults,
    )


def _of_dataset(dataset: Dataset, limit: int | None) -> Inspection:
    indexes = {split: dataset.index(split) for split in SPLITS}
    places = [(split, i) for split, index in indexes.items() for i in range(len(index.ids))]
    images: ImageSummary | None = dataset.info.images
    if limit is not None:
        if limit < 1:
            raise DataError(f"a limit of {limit} samples leaves nothing", where="--limit", fix="use 1 or more")
        closed = dataset.info.labels is not None
        classes = [indexes[split].answers[i] if closed else "" for split, i in places]
        chosen = spread(classes, [indexes[split].ids[i] for split, i in places], limit, dataset.info.split_seed)
        places = [places[k] for k in chosen]
        images = _looked_at(dataset, places)
    answers = [indexes[split].answers[i] for split, i in places]
    return Inspection(
        splits={split: sum(name == split for name, _ in places) for split in SPLITS},
        labels=None if dataset.info.labels is None else counted(answers),
        answers=answers,
        prompts=[indexes[split].prompts[i] for split, i in places],
        widths=np.array([width for split, i in places for width in indexes[split].widths[i]], np.int32),
        heights=np.array([height for split, i in places for height in indexes[split].heights[i]], np.int32),
        images=images,
        faults=dataset_faults(dataset.info),
    )


def _looked_at(dataset: Dataset, places: list[tuple[str, int]]) -> ImageSummary | None:
    files = [file for split, i in places for file in dataset.sample(split, i).seen.files]
    headers = [read_header(file.data) for file in files]
    return image_summary(
        np.array([header.width for header in headers]),
        np.array([header.height for header in headers]),
        np.array([len(file.data) for file in files]),
        [header.format for header in headers],
    )
