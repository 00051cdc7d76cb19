"""Dataset: the prepared samples on disk, Parquet files read by row group, described by dataset.json."""

import copy
import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from visiontune.data.dataset_info import DatasetInfo, ShardInfo, read_info
from visiontune.data.folder import font_name
from visiontune.data.objects import Objects, from_text
from visiontune.data.pages import DEFAULT_FONT, FontRef, Fonts, load_fonts
from visiontune.data.remote import fetch, is_url, local_name, without_password
from visiontune.data.responses import Responses
from visiontune.data.sample import Document, ImageFile, Images, Sample, Text
from visiontune.data.split import SPLITS
from visiontune.data.turns import Turns
from visiontune.data.turns import from_text as turns_from_text
from visiontune.errors import DataError
from visiontune.files import file_sha256
from visiontune.progress import note

CACHE_BYTES = 16 * 1024 * 1024
OPEN_SHARDS = 64

_SEEN_COLUMNS = ["id", "images", "document", "turns", "prompt", "answer"]
_INDEX_COLUMNS = ["id", "turns", "prompt", "answer", "widths", "heights", "characters", "pages", "content"]


@dataclass(frozen=True)
class Index:
    """One split without what is seen, row by row. `widths[i]` and `heights[i]` list the images of row i, in pixels.

    `documents[i]` is the number of characters of row i's document and `pages[i]` that of its pages under the dataset's
    page spec; both are empty lists where images are seen. `turns` has what was said before each answer, (rows,), and is
    empty where no row says more than the images and a prompt. `classes` names the classes of the objects, None where
    the target is a text; `looked_for` as Objects has it.
    """

    ids: list[str]
    prompts: list[str | None]
    answers: list[str]
    widths: list[list[int]]
    heights: list[list[int]]
    contents: list[str]
    documents: list[int] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)
    classes: tuple[str, ...] | None = None
    turns: list[Turns] = field(default_factory=list)
    looked_for: NDArray[np.bool_] | None = None

    def target(self, i: int) -> Text | Objects | Responses:
        """What is to be said of row i."""
        if self.classes is None:
            return self.text(i)
        return from_text(self.answers[i], self.classes, self.looked_for)

    def text(self, i: int) -> Text:
        """What is to be written about row i, where the target is a text."""
        return Text(answer=self.answers[i], prompt=self.prompts[i], turns=self.turns[i] if self.turns else ())

    def size(self, i: int) -> tuple[int, int]:
        """(height, width) of the first image of row i, in pixels, upright."""
        return self.heights[i][0], self.widths[i][0]


class Dataset:
    """A prepared dataset. Cheap to open, picklable, and usable after a fork: each process opens its own files.

    `classes` are the names that class numbers of its objects stand for, None where the target is another; `looked_for`
    as Objects has it, the same in all its images.
    """

    def __init__(self, path: Path, info: DatasetInfo) -> None:
        self.path = path
        self.info = info
        self.classes = None if info.objects is None else self.listed
        self.looked_for: NDArray[np.bool_] | None = None
        self._reader: _Reader | None = None

    @classmethod
    def open(cls, path: Path | str) -> "Dataset":
        """Open the dataset in the folder `path`; DataError when it is none, is newer, or lacks a file.

        A dataset at a URL is fetched first, into a folder named after it in the current one.
        """
        if isinstance(path, str) and is_url(path):
            folder = Path(local_name(path))
            note(f"fetching {without_password(path)} into {folder}")
            path = fetch(path, folder)
        path = Path(path)
        info = read_info(path)
        for name, shard in info.files.items():
            file = path / name
            size = file.stat().st_size if file.is_file() else None
            if size != shard.bytes:
                found = "is missing" if size is None else f"has {size} bytes instead of {shard.bytes}"
                raise DataError(
                    f"a file of the dataset {found}",
                    where=str(file),
                    fix="copy the whole folder again, or delete it and prepare anew",
                )
        for font in info.pages.fonts if info.pages is not None else ():
            if not font_path(path, font).is_file():
                raise DataError(
                    f"the font {font.name} of the dataset's pages is missing",
                    where=str(font_path(path, font)),
                    fix="copy the whole folder again, or delete it and prepare anew",
                )
        return cls(path, info)

    def __getstate__(self) -> dict[str, Any]:
        names = ("path", "info", "classes", "looked_for")
        return {name: getattr(self, name) for name in names} | {"_reader": None}

    @property
    def listed(self) -> tuple[str, ...]:
        """The classes that it lists itself, in its order, whatever they are counted in; none without objects."""
        return () if self.info.objects is None else tuple(self.info.objects.classes)

    def among(self, classes: Sequence[str]) -> "Dataset":
        """The same objects with their classes counted in `classes`, of which it may lack some: those are not
        `looked_for` here. Raises DataError where it holds no objects, or a class that is not among them."""
        if self.info.objects is None:
            raise DataError("This dataset holds no objects.", where=str(self.path), fix="give boxes or masks")
        if unknown := [name for name in self.listed if name not in classes]:
            raise DataError(
                f"Its class '{unknown[0]}' is not among {', '.join(classes)}.",
                where=str(self.path),
                fix="use data of these classes, or rename the class in the data",
            )
        looked_for = np.array([name in self.listed for name in classes])
        other = copy.copy(self)
        other.classes, other._reader = tuple(classes), None
        other.looked_for = None if looked_for.all() else looked_for
        return other

    def __len__(self) -> int:
        return sum(self.info.splits.values())

    def count(self, split: str) -> int:
        """The number of samples in a split; DataError when there is no such split."""
        if split not in self.info.splits:
            raise DataError(f"there is no split {split!r}", where=str(self.path), fix=f"use one of {', '.join(SPLITS)}")
        return self.info.splits[split]

    def shards(self, split: str) -> dict[str, ShardInfo]:
        """The files of a split, in the order of its rows."""
        self.count(split)
        return {name: shard for name, shard in sorted(self.info.files.items()) if name.startswith(f"{split}-")}

    def index(self, split: str) -> Index:
        """Everything but the images and documents of a split, in memory."""
        columns: dict[str, list[Any]] = {name: [] for name in _INDEX_COLUMNS}
        for name in self.shards(split):
            table = pq.read_table(self.path / name, columns=_INDEX_COLUMNS, use_threads=False)
            for column, values in columns.items():
                values.extend(table.column(column).to_pylist())
        return Index(
            ids=columns["id"],
            prompts=columns["prompt"],
            answers=columns["answer"],
            widths=columns["widths"],
            heights=columns["heights"],
            contents=columns["content"],
            documents=columns["characters"] if self.info.seen == "documents" else [],
            pages=columns["pages"] if self.info.seen == "documents" else [],
            classes=self.classes,
            looked_for=self.looked_for,
            turns=[turns_from_text(text) for text in columns["turns"]] if any(columns["turns"]) else [],
        )

    def sample(self, split: str, i: int) -> Sample:
        """Sample `i` of a split, read from disk; IndexError outside 0 .. count(split) - 1."""
        if not 0 <= i < self.count(split):
            raise IndexError(f"sample {i} of {self.count(split)} in split {split!r}")
        if self._reader is None or self._reader.process != os.getpid():
            self._reader = _Reader(self)
        row = self._reader.row(split, i)
        target = Text(answer=row["answer"], prompt=row["prompt"], turns=turns_from_text(row["turns"]))
        if self.classes is not None:
            target = from_text(row["answer"], self.classes, self.looked_for)
        if row["document"] is not None:
            return Sample(row["id"], Document(row["document"]), target)
        files = tuple(ImageFile(data=image["bytes"], path=image["path"]) for image in row["images"])
        return Sample(row["id"], Images(files), target)

    def scores(self, split: str) -> dict[str, NDArray[np.float64]]:
        """Scores of the samples of a split by which a curriculum may draw them, by name; (rows,) each."""
        return {}

    def fonts(self) -> Fonts:
        """The fonts of the page spec, loaded; DataError where the dataset holds no documents or a font was changed."""
        spec = self.info.pages
        if spec is None:
            raise DataError("the samples of this dataset are images, not documents", where=str(self.path))
        fonts = load_fonts([(font_path(self.path, font), font.face) for font in spec.fonts])
        spec.check(fonts)
        return fonts

    def verify(self) -> None:
        """Read every file and compare its hash with dataset.json; DataError names the first that differs."""
        for name, shard in self.info.files.items():
            if file_sha256(self.path / name) != shard.sha256:
                raise DataError(
                    "a file of the dataset was changed",
                    where=str(self.path / name),
                    fix="copy it again, or delete the folder and prepare anew",
                )


class _Reader:
    """The open files of a dataset and the row groups read last. It belongs to the process that made it."""

    def __init__(self, dataset: Dataset) -> None:
        self.process = os.getpid()
        self._folder = dataset.path
        self._names = {split: list(dataset.shards(split)) for split in SPLITS}
        self._starts = {
            split: [0, *accumulate(shard.rows for shard in dataset.shards(split).values())] for split in SPLITS
        }
        self._files: OrderedDict[str, tuple[pq.ParquetFile, list[int]]] = OrderedDict()
        self._groups: OrderedDict[tuple[str, int], pa.Table] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def row(self, split: str, i: int) -> dict[str, Any]:
        shard = bisect_right(self._starts[split], i) - 1
        row = i - self._starts[split][shard]
        with self._lock:
            name = self._names[split][shard]
            file, starts = self._file(name)
            group = bisect_right(starts, row) - 1
            table = self._group(name, file, group)
        return table.slice(row - starts[group], 1).to_pylist()[0]

    def _file(self, name: str) -> tuple[pq.ParquetFile, list[int]]:
        if name not in self._files:
            file = pq.ParquetFile(self._folder / name)
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            self._files[name] = (file, [0, *accumulate(sizes)])
            if len(self._files) > OPEN_SHARDS:
                self._files.popitem(last=False)[1][0].close()
        self._files.move_to_end(name)
        return self._files[name]

    def _group(self, name: str, file: pq.ParquetFile, group: int) -> pa.Table:
        key = (name, group)
        if key not in self._groups:
            self._groups[key] = file.read_row_group(group, columns=_SEEN_COLUMNS, use_threads=False)
            self._bytes += self._groups[key].nbytes
            while self._bytes > CACHE_BYTES and len(self._groups) > 1:
                self._bytes -= self._groups.popitem(last=False)[1].nbytes
        self._groups.move_to_end(key)
        return self._groups[key]


@cache
def _default_font_sha256() -> str:
    return file_sha256(DEFAULT_FONT)


def font_path(folder: Path, font: FontRef) -> Path:
    """Where the file of a font lies: the default font in this package, any other inside the dataset's folder."""
    return DEFAULT_FONT if font.sha256 == _default_font_sha256() else folder / font_name(font)
