"""Tables of images and texts: JSON Lines, JSON arrays, CSV and Parquet, one file or a folder of them.

A row is a conversation (`messages`; LLaVA's `conversations`), a pair of Roboflow's (`image`, `prefix`, `suffix`), or a
question and an answer in columns of their own. Its images are paths beside the table, or lie in the table itself.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from visiontune.data import faults
from visiontune.data.faults import Fault
from visiontune.data.format_names import Layout
from visiontune.data.formats.conversations import (
    Brought,
    asked,
    conversation,
    said_in_llava,
    said_in_messages,
)
from visiontune.data.formats.lines import (
    Line,
    columns_of,
    kind_of,
    parquet,
    plain,
    readable,
    rows_of,
)
from visiontune.data.formats.rows import Listing, RowError, SourceRow
from visiontune.data.formats.tables import (
    Columns,
    columns_called,
    naming,
    split_written,
    tables_inside,
    tables_of,
    with_own_ids,
)
from visiontune.data.image_places import ImagePlace, Inside
from visiontune.data.images import SUFFIXES as SUFFIXES_OF_IMAGES
from visiontune.errors import DataError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
_OF_FOLDERS = ("metadata.jsonl", "metadata.csv")  # read with the images that they lie beside

_LAST_RESORT = ("caption", "text", "label")  # answers where no other column is one
ROLES: dict[str, tuple[str, ...]] = {
    "image": ("images", "image", "image_path", "image_paths", "file_name"),
    "prompt": ("prompt", "question", "instruction", "query", "prefix"),
    "answer": ("answer", "response", "completion", "output", "target", "suffix", *_LAST_RESORT),
    "id": ("id",),
    "split": ("split",),
}
_TURNS = {"messages": "messages", "llava": "conversations"}
_LABELS = ("label",)
FIX = (
    "give each row `messages` (or LLaVA's `conversations`) and `images`, or an image with a prompt and an answer: "
    f"columns {', '.join(ROLES['image'])}; {', '.join(ROLES['prompt'])}; {', '.join(ROLES['answer'])}; "
    f"or name them: {naming(image='photo', prompt='ask', answer='reply')}"
)
# How the text of an image begins that is written as plain base64: JPEG, PNG, WebP, GIF, BMP, TIFF.
_BASE64 = ("/9j/", "iVBOR", "UklGR", "R0lGOD", "Qk", "SUkq", "TU0AK")


def layout_of(columns: Sequence[str], named: Columns | None = None) -> Layout | None:
    """The layout of a table with these columns; None where it says nothing about images, or is one of long texts."""
    there = set(map(plain, columns))
    if "messages" in there:
        return "messages"
    if "conversations" in there:
        return "llava"
    if {"prefix", "suffix"} <= there:
        return "roboflow"
    named = named or {}
    if "document" in named:
        return None
    answers = "answer" in named or there & set(ROLES["answer"])
    documents = {"article", "document", "content", "input", "text"} & there
    if answers and ("image" in named or there & set(ROLES["image"])):
        return "prompt_answer"
    return "prompt_answer" if there & set(ROLES["prompt"]) and answers and not documents else None


def detect(source: Path, named: Columns | None = None) -> bool:
    """Whether this is a table of images and texts, or a folder with one in it."""
    tables = (path for path, _ in tables_of(source, SUFFIXES) if path.name not in _OF_FOLDERS)
    return any(layout_of(_columns(path), named) is not None for path in tables)


def read(source: Path, named: Columns | None = None, layout: Layout | None = None) -> Listing:
    """List the rows of a file or of a folder of files; DataError where a table has no column for answers.

    In a folder, a file or a folder called train, validation or test (also _annotations.train.jsonl) gives its rows
    their split. Rows without an id are called by file and line. `layout` reads every table as that.
    """
    _check_names(named or {})
    found: list[Fault] = []
    rows: list[tuple[str, SourceRow]] = []
    layouts: set[str] = set()
    root = source.resolve() if source.is_dir() else source.resolve().parent
    for path, name, split in tables_inside(source, SUFFIXES, found):
        if path.name in _OF_FOLDERS:
            continue
        chosen = layout or layout_of(_columns(path), named)
        if chosen is None:
            found += faults.stray_files([name])
            continue
        layouts.add(chosen)
        table = _Table(path, name, chosen, named or {}, split, root, found)
        rows += [(name, row) for row in table.rows()]
    if source.is_dir():
        found += faults.no_label(_unseen(source, rows), "no row that can be used shows them")
    return Listing(", ".join(sorted(layouts)), sorted(with_own_ids(rows), key=lambda row: row.id), found)


def _unseen(folder: Path, rows: Iterable[tuple[str, SourceRow]]) -> list[str]:
    """The image files of a folder that no row shows, by their names."""
    shown = {
        name for _, row in rows for place, name in zip(row.images, row.names, strict=True) if isinstance(place, Path)
    }
    files = (name for _, name in tables_of(folder, tuple(SUFFIXES_OF_IMAGES)))
    return [name for name in files if name not in shown]


def _columns(path: Path) -> list[str]:
    """The names of a table's columns, of all its rows; nothing where it cannot be read."""
    try:
        with readable(path):
            if path.suffix.lower() == ".parquet":
                return pq.read_schema(path).names
            return columns_of(path) or []
    except DataError:  # whoever reads it says so
        return []


def _check_names(named: Columns) -> None:
    if unknown := [role for role in named if role not in ROLES]:
        raise DataError(
            f"there is nothing called {', '.join(map(repr, unknown))} to name a column for",
            where="columns",
            fix=f"of images with texts: {', '.join(ROLES)}; of long texts: document, answer, prompt, id, split",
        )


@dataclass
class _Table:
    """One file's rows. What is wrong goes to `faults`."""

    path: Path
    name: str
    layout: Layout
    named: Columns
    split: str | None
    root: Path
    faults: list[Fault]
    kinds: dict[str, Counter[str]] = field(default_factory=dict)
    placed: list[str] = field(default_factory=list)
    taken: int = 0
    unseen: list[str] = field(default_factory=list)

    def rows(self) -> Iterator[SourceRow]:
        with readable(self.path):
            if self.path.suffix.lower() == ".parquet":
                file = pq.ParquetFile(self.path)
                schema = file.schema_arrow
                chosen = self._chosen(schema.names)
                names = _class_names(schema, chosen.get("answer"))
                lines: Iterable[Line] = parquet(file, _leaves(file, chosen))
                empty = file.metadata.num_rows == 0
            else:
                there, lines = columns_of(self.path), rows_of(self.path)
                chosen, names = self._chosen(there) if there else {}, None
                empty = there is None
            if empty:
                self.faults.append(faults.empty_table(self.name))
            for number, values in lines:
                try:
                    row = self._row(number, values, chosen, names)
                except RowError as error:
                    self.faults.append(faults.row_left_out(error.code, self.name, number, error.found))
                    continue
                self.taken += 1
                self.unseen += [row.id] if self._lacks_image(values, chosen) else []
                yield row
        self.faults += faults.mixed_types(self.name, self.kinds)
        if len(self.unseen) < self.taken:
            self.faults += faults.rows_without_image(self.unseen, self.taken)
        self.faults += faults.placed_images(self.placed)

    def _chosen(self, there: Sequence[str]) -> dict[str, str]:
        """The column of each role that has one; unknown columns are a fault, a missing or a second one an error."""
        roles = ["image", "id", "split"]
        chosen: dict[str, str] = {}
        if self.layout in _TURNS:
            chosen["turns"] = self._require(_TURNS[self.layout], there)
        elif self.layout == "roboflow":
            for role, column in (("prompt", "prefix"), ("answer", "suffix")):
                chosen[role] = self._require(column, there)
        else:
            roles += ["prompt", "answer"]
        named = {role: self._require(self.named[role], there) for role in roles if role in self.named}
        for role in roles:
            if role in named:
                chosen[role] = named[role]
                continue
            free = [column for column in there if column not in (*named.values(), *chosen.values())]
            candidates = columns_called(ROLES[role], free)
            if candidates and plain(candidates[0]) not in _LAST_RESORT:
                candidates = [name for name in candidates if plain(name) not in _LAST_RESORT]
            if len(candidates) > 1:
                raise DataError(
                    f"several columns could be the {role}: {', '.join(candidates)}",
                    where=str(self.path),
                    fix=f"say which one it is: {naming(**{role: candidates[0]})}",
                )
            chosen |= {role: candidates[0]} if candidates else {}
        if self.layout == "prompt_answer" and "answer" not in chosen:
            raise DataError(
                f"there is no column for the answer; the columns are {_some(there)}", where=str(self.path), fix=FIX
            )
        if unread := [column for column in there if column not in chosen.values()]:
            self.faults += faults.unknown_columns(self.name, unread, list(chosen.values()))
        return chosen

    def _require(self, column: str, there: Sequence[str]) -> str:
        """The column of this name as the table writes it."""
        if not (found := columns_called([column], there)):
            raise DataError(
                f"there is no column called {column!r}; the columns are {_some(there)}", where=str(self.path), fix=FIX
            )
        return found[0]

    def _row(
        self, number: int, values: dict[str, Any] | str, chosen: Mapping[str, str], names: Sequence[str] | None
    ) -> SourceRow:
        if isinstance(values, str):
            raise RowError("broken-line", values)
        if not chosen:
            raise RowError("broken-line", "the object is empty")
        written = self._text(values, chosen.get("id"))
        row_id = written or f"{self.name}:{number}"
        beside = _listed(values.get(chosen["image"])) if "image" in chosen else []
        if "turns" in chosen:
            said = (said_in_messages if self.layout == "messages" else said_in_llava)(values.get(chosen["turns"]))
            found = conversation(said, beside)
        else:
            found = asked(
                self._text(values, chosen.get("prompt")), self._answer(values, chosen["answer"], names), beside
            )
        if found.placed:
            self.placed.append(row_id)
        images = [self._place(one, i, number, values, chosen) for i, one in enumerate(found.images)]
        return SourceRow(
            id=row_id,
            images=tuple(place for place, _ in images),
            names=tuple(name for _, name in images),
            prompt=found.prompt,
            answer=found.answer,
            is_label=names is not None or self._is_label(values, chosen.get("answer")),
            split=split_written(self._text(values, chosen.get("split"))) or self.split,
            turns=found.turns,
        )

    def _answer(self, values: Mapping[str, Any], column: str, names: Sequence[str] | None) -> str:
        if names is not None:
            place = values.get(column)
            if not isinstance(place, int) or not 0 <= place < len(names):
                raise RowError("empty-answer", f"{column} is {place}, and the classes are 0 to {len(names) - 1}")
            return names[place]
        listed = values.get(column)
        if isinstance(listed, list) and len(listed) == 1:  # as sets with several right answers write one
            values = {column: listed[0]}
        answer = self._text(values, column)
        if answer is None or not answer.strip():
            raise RowError("empty-answer", f"there is no {column}" if answer is None else f"{column} is blank")
        return answer

    def _lacks_image(self, values: dict[str, Any] | str, chosen: Mapping[str, str]) -> bool:
        """Whether a question's cell for its image is empty. Of conversations the text says where images belong."""
        if "turns" in chosen or "image" not in chosen or isinstance(values, str):
            return False
        return values.get(chosen["image"]) in (None, "")

    def _is_label(self, values: Mapping[str, Any], column: str | None) -> bool:
        return column is not None and plain(column) in _LABELS and not isinstance(values.get(column), list)

    def _text(self, values: Mapping[str, Any], column: str | None) -> str | None:
        """A column's text; numbers are written out, and counted."""
        value = None if column is None else values.get(column)
        if column is None or value is None:
            return None
        self.kinds.setdefault(column, Counter())[kind_of(value)] += 1
        if isinstance(value, str):
            return value
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        found = f"a list of {len(value)}" if isinstance(value, list) else kind_of(value)
        raise RowError("not-a-text", f"{column} is {found}, not a text")

    def _place(
        self, written: Any, i: int, number: int, values: Mapping[str, Any], chosen: Mapping[str, str]
    ) -> tuple[ImagePlace, str]:
        """Where an image lies and its name for people. Raises RowError where there is none, or none that is read."""
        keys: tuple[str | int, ...]
        if isinstance(written, Brought):
            keys, value = (chosen["turns"], *written.keys), written.value
        else:
            column = chosen["image"]
            keys, value = (column, i) if isinstance(values.get(column), list) else (column,), written
        shown = f"{self.name}:{number}/{i}"
        is_parquet = self.path.suffix.lower() == ".parquet"
        if isinstance(value, dict):  # {"bytes": ..., "path": ...}
            name = value.get("path") if isinstance(value.get("path"), str) else None
            if is_parquet and "bytes" not in value:  # left unread on purpose
                return Inside(self.path, number - 1, keys), name or shown
            if value.get("bytes") is not None:
                return self._inside(number, keys), name or shown
            value = name
        if isinstance(value, bytes):
            return self._inside(number, keys), shown
        if not isinstance(value, str) or not value.strip():
            raise RowError("missing-file", f"image {i + 1} is {kind_of(value) if value != '' else 'an empty path'}")
        if value.startswith("data:") or (len(value) > 200 and value.startswith(_BASE64)):
            return self._inside(number, keys), shown
        if value.startswith(("http://", "https://")):
            raise RowError("remote-image", f"image {i + 1} is at {value[:100]}")
        return self._file(value.removeprefix("file://"))

    def _inside(self, number: int, keys: tuple[str | int, ...]) -> Inside:
        suffix = self.path.suffix.lower()
        if suffix in (".csv", ".json"):
            raise RowError("image-inside", f"an image stands inside a {suffix} file")
        return Inside(self.path, number - 1 if suffix == ".parquet" else number, keys)

    def _file(self, written: str) -> tuple[Path, str]:
        """An image file: beside the table, in the source's folder, or in a folder `images` of either."""
        folders = dict.fromkeys((self.path.parent, self.root))
        tried = [folder / inner / written for folder in folders for inner in ("", "images")]
        try:
            path = next((one for one in tried if one.is_file()), None)
        except OSError as error:  # the name is too long
            raise RowError("missing-file", f"there is no file {written[:100]} ...: {error.strerror}") from error
        if path is None:
            raise RowError("missing-file", f"there is no file {written}")
        real = path.resolve()
        if not real.is_relative_to(self.root):
            raise RowError("outside-folder", f"{written} leads to no file inside the folder of the data")
        return path, real.relative_to(self.root).as_posix()


def _some(columns: Sequence[str]) -> str:
    return ", ".join(columns[:20]) + (", ..." if len(columns) > 20 else "")


def _listed(value: Any) -> list[Any]:
    """The images of a row: none, one, or several; a CSV cell may hold a JSON list."""
    if value is None or value == "":
        return []
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise RowError("broken-line", f"a list of images that is no JSON: {error}") from error
    return list(value) if isinstance(value, list) else [value]


def _leaves(file: pq.ParquetFile, chosen: Mapping[str, str]) -> list[str]:
    """The columns to read; of images that lie in the table their paths alone, for their bytes are many."""
    inside = [file.schema.column(i).path for i in range(len(file.schema.names))]
    leaves = []
    for role, column in chosen.items():
        paths = [path for path in inside if path.startswith(f"{column}.") and path.endswith(".path")]
        leaves += paths if role == "image" and paths else [column]
    return leaves


def _class_names(schema: pa.Schema, column: str | None) -> list[str] | None:
    """The names of a column's classes, where `datasets` wrote them down."""
    written = (schema.metadata or {}).get(b"huggingface")
    if written is None or column is None:
        return None
    feature = json.loads(written).get("info", {}).get("features", {}).get(column, {})
    return feature.get("names") if feature.get("_type") == "ClassLabel" else None
