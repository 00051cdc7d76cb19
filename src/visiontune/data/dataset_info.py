"""What dataset.json says of a dataset, and how it is read."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from visiontune.data.faults import Fault
from visiontune.data.objects import Objects
from visiontune.data.pages import PageSpec
from visiontune.errors import DataError

INFO_NAME = "dataset.json"
SCHEMA_VERSION = 3


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Provenance(_Model):
    """Where a dataset came from. `source` is the folder's name alone; `fingerprint` covers names, sizes and times.

    `sources` has the rows that each of them gave; of several, `source` lists the names. `corpora` are those among them
    that are known corpora, `hub` datasets of the hub: hub:OWNER/NAME:CONFIG@COMMIT.
    """

    source: str
    sources: dict[str, int] = {}
    corpora: tuple[str, ...] = ()
    hub: tuple[str, ...] = ()
    format: str
    created_by: str
    fingerprint: str


class LeftOut(_Model):
    """A row that was not taken, why, and what to do about it."""

    id: str
    code: str
    found: str
    fix: str


class ShardInfo(_Model):
    """One file: its rows (of an array its bins), its size in bytes and the SHA-256 of its bytes."""

    rows: int
    bytes: int
    sha256: str


class Range(_Model):
    """The smallest, the median and the largest of some number."""

    min: int
    median: float
    max: int

    @staticmethod
    def of(values: np.ndarray) -> "Range":
        """The range of whole numbers, at least one."""
        return Range(min=int(values.min()), median=float(np.median(values)), max=int(values.max()))


class ImageSummary(_Model):
    """The images of a dataset: how many, their bytes as encoded, formats with counts, sizes in pixels."""

    count: int
    bytes: int
    formats: dict[str, int]
    width: Range
    height: Range


class DocumentSummary(_Model):
    """The documents of a dataset: how many, their lengths in characters and in pages, and what they are written in.

    `missing_glyphs` counts the characters that are drawn as boxes because no font has them. `scripts` counts
    characters; signs that belong to no script (spaces, digits, punctuation) are not among them.
    """

    count: int
    characters: Range
    pages: Range
    total_characters: int
    total_pages: int
    missing_glyphs: int
    scripts: dict[str, int]

    @property
    def characters_a_page(self) -> float:
        """How many characters stand on a page, on average."""
        return self.total_characters / self.total_pages

    @staticmethod
    def of(
        characters: np.ndarray, pages: np.ndarray, missing_glyphs: int, scripts: Counter[str]
    ) -> "DocumentSummary | None":
        """Summarise documents, None where there are none; `characters` and `pages` are (documents,), int."""
        if not len(characters):
            return None
        return DocumentSummary(
            count=len(characters),
            characters=Range.of(characters),
            pages=Range.of(pages),
            total_characters=int(characters.sum()),
            total_pages=int(pages.sum()),
            missing_glyphs=missing_glyphs,
            scripts=dict(sorted(scripts.items(), key=lambda item: (-item[1], item[0]))),
        )


class ObjectSummary(_Model):
    """The objects of a dataset. `classes` counts the objects of each class, in the order of the classes.

    `sides` is the range of the square root of a box's area, in whole pixels; groups marked as crowds are left out of
    all counts but `crowds`. `negatives` are images without any object.
    """

    count: int
    classes: dict[str, int]
    masks: int
    crowds: int
    negatives: int
    on_an_image: Range
    sides: Range | None

    @staticmethod
    def of(objects: Sequence[Objects], classes: Sequence[str]) -> "ObjectSummary":
        """Summarise the objects of images, one entry each; there may be no image."""
        single = [~one.crowd for one in objects]
        kept = list(zip(objects, single, strict=True))
        places = np.concatenate([np.zeros(0, np.int64), *(one.classes[keep] for one, keep in kept)])
        boxes = np.concatenate([np.zeros((0, 4)), *(one.boxes[keep] for one, keep in kept)])
        counts = np.bincount(places, minlength=len(classes)).tolist()
        sides = np.sqrt(boxes[:, 2] * boxes[:, 3]).round().astype(int)
        return ObjectSummary(
            count=len(places),
            classes=dict(zip(classes, counts, strict=True)),
            masks=sum(
                mask is not None for one, keep in kept for mask, single in zip(one.masks, keep, strict=True) if single
            ),
            crowds=sum(int(one.crowd.sum()) for one in objects),
            negatives=sum(not len(one) for one in objects),
            on_an_image=Range.of(np.array([int(keep.sum()) for keep in single] or [0])),
            sides=Range.of(sides) if len(sides) else None,
        )


class RecordingSummary(_Model):
    """The recording of a dataset whose samples are clips.

    `rate` is in bins a second; `stimulus` is the dtype of the frames on disk. `kinds` counts the trials of each kind of
    stimulus. `bins` and `seconds` say what stands in each split. `valid` is the share of counts that are valid, in the
    bins of all trials. What models are fitted with comes from the valid bins of the train split alone:
    `stimulus_mean` and `stimulus_std` over pixels, `behaviour_mean` and `behaviour_std` of each channel, `mean_counts`
    of each unit in a bin.
    """

    name: str
    subject: str | None
    rate: float
    bins: dict[str, int]
    height: int
    width: int
    stimulus: str
    units: tuple[str, ...]
    kinds: dict[str, int]
    behaviour_names: tuple[str, ...]
    eye: bool
    seconds: dict[str, float]
    valid: float
    stimulus_mean: float
    stimulus_std: float
    behaviour_mean: tuple[float, ...]
    behaviour_std: tuple[float, ...]
    mean_counts: tuple[float, ...]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the frames in pixels."""
        return self.height, self.width

    @property
    def unit_keys(self) -> tuple[str, ...]:
        """The names of the units among those of other sessions: session/unit."""
        return tuple(f"{self.name}/{unit}" for unit in self.units)


Seen = Literal["images", "documents", "clips"]


class DatasetInfo(_Model):
    """What dataset.json says. `labels` is the closed label set with counts, or None where answers are free text.

    `pages` says how documents become pages; `images`, `documents` and `recording` summarise what is seen. Of a
    recording, `splits` counts trials: how many clips they give depends on the clips' length. Where documents may have
    no more than `max_pages`, `windows` counts those of which a part around the answer is shown.
    """

    schema_version: Literal[3] = SCHEMA_VERSION
    content_hash: str
    seen: Seen = "images"
    target: Literal["text", "objects", "responses"] = "text"
    labels: dict[str, int] | None
    splits: dict[str, int]
    split_seed: int
    limit: int | None
    provenance: Provenance
    images: ImageSummary | None
    documents: DocumentSummary | None = None
    objects: ObjectSummary | None = None
    recording: RecordingSummary | None = None
    mended: int = 0
    pages: PageSpec | None = None
    max_pages: int | None = None
    windows: int = 0
    files: dict[str, ShardInfo]
    left_out: list[LeftOut]
    faults: list[Fault]


def read_info(path: Path) -> DatasetInfo:
    """What dataset.json of the folder `path` says; DataError where there is none, or one of another version."""
    file = path / INFO_NAME
    if not file.is_file():
        if (path / ".prepare").is_dir():
            found, fix = "the preparation of this dataset was interrupted", "run the same `visiontune prepare` again"
        elif path.is_dir():
            found, fix = "this folder is not a prepared dataset", "prepare it first with `visiontune prepare`"
        else:
            found, fix = "there is no such folder", "check the path"
        raise DataError(found, where=str(path), fix=fix)
    return parse_info(file.read_bytes(), str(file))


def parse_info(text: bytes, where: str) -> DatasetInfo:
    """What the text of a dataset.json says; DataError, which names the place `where`, for one of another version."""
    try:
        value = json.loads(text.decode("utf-8"))
    except ValueError as error:
        raise DataError(f"dataset.json is not JSON: {error}", where=where, fix="prepare the dataset again") from error
    version = value.get("schema_version") if isinstance(value, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise DataError(
            f"this dataset was made by a newer visiontune (schema {version}, this one reads up to {SCHEMA_VERSION})",
            where=where,
            fix="upgrade visiontune: pip install --upgrade visiontune",
        )
    if isinstance(version, int) and version < SCHEMA_VERSION:
        raise DataError(
            f"this dataset was made by an older visiontune (schema {version}, this one reads {SCHEMA_VERSION})",
            where=where,
            fix="delete the folder and prepare it again from its source: the same data and seed give the same split",
        )
    try:
        return DatasetInfo.model_validate(value)
    except ValidationError as error:
        raise DataError(
            f"dataset.json does not have the form that visiontune writes: {error.errors()[0]['msg']}",
            where=f"{where}, {'.'.join(map(str, error.errors()[0]['loc']))}",
            fix="prepare the dataset again",
        ) from error
