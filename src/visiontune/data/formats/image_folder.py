"""Folders of images: one folder a class, or metadata.jsonl / metadata.csv beside the images (ImageFolder)."""

import os
import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from visiontune.data import faults
from visiontune.data.faults import Fault
from visiontune.data.formats.conversations import asked
from visiontune.data.formats.lines import csv_rows, jsonl, plain
from visiontune.data.formats.rows import Listing, RowError, SourceRow
from visiontune.data.images import SUFFIXES
from visiontune.data.split import SPLIT_NAMES, SPLITS
from visiontune.errors import DataError

NAME = "image_folder"
LAYOUTS = (
    "lay the images out as FOLDER/CLASS/IMAGE, as FOLDER/train|validation|test/CLASS/IMAGE, "
    "or put a metadata.jsonl or metadata.csv with the columns file_name and label (or text) beside them; "
    f"images end in {', '.join(sorted(SUFFIXES))}"
)

_METADATA = ("metadata.jsonl", "metadata.csv")
_ANSWERS = ("label", "text", "caption", "answer")
_PROMPTS = ("prompt", "question")
_COLUMNS = ("file_name", *_ANSWERS, *_PROMPTS, "id", "split")
_IGNORED = frozenset({"__macosx", "thumbs.db", "desktop.ini"})


@dataclass
class _Files:
    """What lies in a folder, as paths relative to it with forward slashes, sorted."""

    images: list[str] = field(default_factory=list)
    metadata: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    links: set[str] = field(default_factory=set)
    faults: list[Fault] = field(default_factory=list)


def detect(root: Path) -> bool:
    """Whether there is an image or a metadata file anywhere in the folder."""
    return any(kind == "image" or _is_metadata(name) for kind, name in _walk(root, root.resolve()) if kind != "link")


def has_metadata(root: Path) -> bool:
    """Whether a metadata file lies in the folder, or in that of a split."""
    return any(_is_metadata(name) for kind, name in _walk(root, root.resolve()) if kind != "link")


def read(root: Path) -> Listing:
    """List the images of a folder with their labels or texts; DataError where the layout says nothing about them."""
    files = _Files()
    for kind, name in _walk(root, root.resolve()):
        if kind == "image":
            files.images.append(name)
        elif kind == "link":
            files.links.add(name)
            files.faults.append(faults.outside_folder(_shown(name), _shown(name)))
        elif _is_metadata(name):
            files.metadata.append(name)
        else:
            files.others.append(name)
    rows = _metadata_rows(root, files) if files.metadata else _class_rows(root, files)
    files.faults.extend(faults.stray_files([_shown(name) for name in files.others]))
    rows.sort(key=lambda row: row.id)
    return Listing(NAME, rows, files.faults)


def _is_metadata(name: str) -> bool:
    """Whether this is a metadata file in the root or in a split's folder."""
    folder, base = posixpath.split(name)
    return base in _METADATA and (folder == "" or folder.casefold() in SPLIT_NAMES)


def _walk(folder: Path, real_root: Path, prefix: str = "") -> Iterator[tuple[str, str]]:
    """("image" | "other" | "link", relative path) of all files, sorted. A "link" leads to no file inside."""
    try:
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"the folder cannot be read: {error.strerror}", where=str(folder)) from error
    for entry in listed:
        name = prefix + entry.name
        if entry.name.startswith(".") or entry.name.casefold() in _IGNORED:
            continue
        if entry.is_symlink() and not _leads_inside(Path(entry.path), real_root):
            yield "link", name
        elif entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), real_root, name + "/")
        else:
            yield ("image" if entry.is_file() and posixpath.splitext(name)[1].lower() in SUFFIXES else "other"), name


def _leads_inside(path: Path, real_root: Path) -> bool:
    """Whether a path is a file inside the folder. Links to folders are not followed: they can make circles."""
    real = Path(os.path.realpath(path))  # `resolve` raises where a link leads to itself
    return real.is_file() and real.is_relative_to(real_root)


def _shown(name: str) -> str:
    """A file name as text: bytes that are no UTF-8 are written as escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _class_rows(root: Path, files: _Files) -> list[SourceRow]:
    tops: dict[str, list[str]] = defaultdict(list)
    for name in files.images:
        tops[name.partition("/")[0] if "/" in name else ""].append(name)
    folders = [top for top in tops if top]
    split_folders = [top for top in folders if top.casefold() in SPLIT_NAMES]
    nested = [top for top in split_folders if any(name.count("/") > 1 for name in tops[top])]
    in_splits = bool(nested) and len(split_folders) == len(folders)
    named = {SPLIT_NAMES[top.casefold()] for top in nested}
    # One such folder among others may well be a class: trains are vehicles.
    if not in_splits and "train" in named and len(named) > 1:
        raise DataError(
            f"some folders are splits ({', '.join(nested)}), others are not "
            f"({', '.join(_shown(top) for top in folders if top not in nested)})",
            where=str(root),
            fix="move the others away, or rename the folders that are classes",
        )
    if not in_splits and folders and len(split_folders) == len(folders):
        raise DataError(f"the images in {', '.join(folders)} lie in no class folder", where=str(root), fix=LAYOUTS)
    depth = 1 if in_splits else 0
    rows, unlabelled = [], []
    for name in files.images:
        parts = name.split("/")
        if len(parts) <= depth + 1:
            unlabelled.append(_shown(name))
            continue
        split = SPLIT_NAMES[parts[0].casefold()] if in_splits else None
        rows.append(_row(root, name, _shown(name), None, _shown(parts[depth]), True, split))
    if not rows:
        raise DataError(
            "the images lie directly in the folder, and nothing says what they show", where=str(root), fix=LAYOUTS
        )
    files.faults.extend(faults.left_out("no-class-folder", name, "it lies in no class folder") for name in unlabelled)
    return rows


def _row(
    root: Path, name: str, row_id: str, prompt: str | None, answer: str, is_label: bool, split: str | None
) -> SourceRow:
    return SourceRow(row_id, (root / name,), (_shown(name),), prompt, answer, is_label, split)


def _metadata_rows(root: Path, files: _Files) -> list[SourceRow]:
    folders = Counter(posixpath.dirname(name) for name in files.metadata)
    if twice := [folder or "." for folder, count in folders.items() if count > 1]:
        raise DataError(
            "there are a metadata.jsonl and a metadata.csv", where=str(root / twice[0]), fix="keep one of them"
        )
    reader = _MetadataReader(root, set(files.images), files.links)
    rows = [row for name in files.metadata for row in reader.rows(name)]
    files.faults.extend(reader.faults)
    files.others = [name for name in files.others if name not in reader.listed]
    unlisted = [_shown(name) for name in files.images if name not in reader.listed]
    files.faults.extend(faults.no_label(unlisted, "no metadata file lists them"))
    return rows


class _MetadataReader:
    """Rows of one source's metadata files; one answer column for all of them."""

    def __init__(self, root: Path, images: set[str], links: set[str]) -> None:
        self.root = root
        self.real_root = root.resolve()
        self.images = images
        self.links = links
        self.answer: str | None = None
        self.listed: Counter[str] = Counter()
        self.faults: list[Fault] = []

    def rows(self, metadata: str) -> Iterator[SourceRow]:
        """The rows of one metadata file; faults go to `faults`."""
        unknown: dict[str, None] = {}
        path = self.root / metadata
        for line, values in jsonl(path) if metadata.endswith(".jsonl") else csv_rows(path, "file_name"):
            try:
                if isinstance(values, str):
                    raise _LineError(values)
                values = {plain(column) if plain(column) in _COLUMNS else column: values[column] for column in values}
                unknown |= dict.fromkeys(column for column in values if column not in _COLUMNS)
                row = self._row(metadata, line, values)
            except _LineError as error:
                self.faults.append(faults.broken_line(metadata, line, str(error)))
            else:
                if row is not None:
                    yield row
        self.faults.extend(faults.unknown_columns(metadata, list(unknown), _COLUMNS))

    def _row(self, metadata: str, line: int, values: dict[str, Any]) -> SourceRow | None:
        folder = posixpath.dirname(metadata)
        written = _text(values, "file_name")
        if not written:
            raise _LineError("there is no file_name")
        name = posixpath.normpath(posixpath.join(folder, written))
        where = f"{metadata}, line {line}"
        if name in self.links:  # a fault already
            return None
        if posixpath.isabs(written) or posixpath.commonpath([folder, name]) != folder or name.split("/")[0] == "..":
            self.faults.append(faults.outside_folder(where, written))
            return None
        if name not in self.images and not _leads_inside(self.root / name, self.real_root):
            there = (self.root / name).is_file()
            self.faults.append((faults.outside_folder if there else faults.missing_file)(where, written))
            return None
        answer = self._answer(metadata, values)
        split = self._split(name, _text(values, "split"))
        # The same file may be listed several times, with a question each.
        self.listed[name] += 1
        again = f"#{self.listed[name]}" if self.listed[name] > 1 else ""
        row_id = _text(values, "id") or name + again
        prompts = [text for column in _PROMPTS if (text := _text(values, column) or "").strip()]
        if len(prompts) > 1:
            raise _LineError("there are a prompt and a question; keep one")
        try:
            said = asked(prompts[0] if prompts else None, answer, [written])
        except RowError as error:
            self.faults.append(faults.left_out(error.code, where, error.found))
            return None
        row = _row(self.root, name, row_id, said.prompt, answer, self.answer == "label", split)
        return replace(row, turns=said.turns)

    def _answer(self, metadata: str, values: dict[str, Any]) -> str:
        there = [column for column in _ANSWERS if column in values]
        if self.answer is None and len(there) != 1:
            found = f"several answers: {', '.join(there)}" if there else "no answer"
            raise DataError(
                f"a row has {found}; the columns are {', '.join(values)}",
                where=str(self.root / metadata),
                fix=f"keep exactly one of the columns {', '.join(_ANSWERS)}",
            )
        self.answer = self.answer or there[0]
        if there and there != [self.answer]:
            raise _LineError(f"the answer is in {' and '.join(there)} here, in {self.answer} elsewhere")
        return _text(values, self.answer) or ""

    def _split(self, name: str, written: str | None) -> str | None:
        if written:
            if written.strip().casefold() not in SPLIT_NAMES:
                raise _LineError(f"{written!r} is no split ({', '.join(SPLITS)})")
            return SPLIT_NAMES[written.strip().casefold()]
        top, slash, _ = name.partition("/")
        return SPLIT_NAMES.get(top.casefold()) if slash else None


class _LineError(Exception):
    """What is wrong with one line of a metadata file."""


def _text(values: dict[str, Any], column: str) -> str | None:
    value = values.get(column)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return str(value)
    raise _LineError(f"{column} is a {type(value).__name__}, not a text")
