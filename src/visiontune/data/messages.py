"""A dataset of images and texts as `messages`, the form that other trainers read: Parquet with the images inside, or
JSON lines beside image files.

They lie in `messages/`, a file a split, and follow from the dataset alone.
"""

import json
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from visiontune.data.dataset import Dataset
from visiontune.data.folder import MESSAGES_NAME
from visiontune.data.sample import Images, Sample
from visiontune.data.split import SPLITS
from visiontune.data.turns import Turn, question, to_messages
from visiontune.errors import DataError
from visiontune.files import folder_written_whole, write_json
from visiontune.progress import progress

MessagesFormat = Literal["parquet", "jsonl"]
FORMATS: tuple[MessagesFormat, ...] = get_args(MessagesFormat)
WRITTEN_NAME = ".written.json"  # no table: whoever reads the folder passes it by
GROUP_ROWS = 256
_CONTENT = pa.struct([("type", pa.string()), ("text", pa.string())])
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.list_(_CONTENT))]))),
    ],
    metadata={
        "huggingface": json.dumps({"info": {"features": {"images": {"feature": {"_type": "Image"}, "_type": "List"}}}})
    },
)


def write_messages(dataset: Dataset, format: MessagesFormat) -> Path:
    """Write the samples as `messages`, whole or not at all, and return the folder; what stands there is kept where it
    is of this dataset. Raises DataError for another format, and for a dataset of anything but images with texts."""
    check_messages(format, dataset.info.seen == "images" and dataset.info.target == "text")
    folder, made_of = dataset.path / MESSAGES_NAME, {"content_hash": dataset.info.content_hash, "format": format}
    written = folder / WRITTEN_NAME
    if written.is_file() and json.loads(written.read_text("utf-8")) == made_of:
        return folder
    with folder_written_whole(folder) as aside, progress("writing messages", len(dataset), "rows") as advance:
        for split in (split for split in SPLITS if dataset.count(split)):
            rows = (dataset.sample(split, i) for i in range(dataset.count(split)))
            for count in (_parquet if format == "parquet" else _jsonl)(aside, split, rows):
                advance(count)
        write_json(aside / WRITTEN_NAME, made_of)
    return folder


def check_messages(format: str, images_with_texts: bool) -> None:
    """Raise DataError for a format that is none of FORMATS, and for data of another kind."""
    if format not in FORMATS:
        raise DataError(f"there is no form {format!r} of messages", where="--messages", fix=f"use {', '.join(FORMATS)}")
    if not images_with_texts:
        raise DataError(
            "only images with texts are written as messages", where="--messages", fix="leave this option out"
        )


def remove_messages(dataset: Dataset) -> None:
    """Remove the messages of an earlier preparation."""
    shutil.rmtree(dataset.path / MESSAGES_NAME, ignore_errors=True)


def messages_of(sample: Sample) -> list[dict[str, Any]]:
    """All that is said about a sample; without a prompt of its own the question is its images alone."""
    text, images = sample.text, sample.seen.files if isinstance(sample.seen, Images) else ()
    turns = text.turns or question(text.prompt or "", len(images))
    if not text.turns and not text.prompt:
        turns = (Turn("user", turns[0].content[:-1]),)
    return to_messages((*turns, Turn("assistant", (text.answer,))))


def _parquet(folder: Path, split: str, rows: Iterator[Sample]) -> Iterator[int]:
    with pq.ParquetWriter(folder / f"{split}.parquet", SCHEMA) as writer:
        while group := list(islice(rows, GROUP_ROWS)):
            writer.write_table(pa.Table.from_pylist([_row(sample) for sample in group], schema=SCHEMA))
            yield len(group)


def _row(sample: Sample) -> dict[str, Any]:
    images = [{"bytes": file.data, "path": file.path} for file in _files(sample)]
    return {"id": sample.id, "images": images, "messages": messages_of(sample)}


def _jsonl(folder: Path, split: str, rows: Iterator[Sample]) -> Iterator[int]:
    """Image files are called by the number of their row; ids may hold what no file system takes."""
    (folder / "images" / split).mkdir(parents=True)
    with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as lines:
        for number, sample in enumerate(rows):
            names = []
            for i, file in enumerate(_files(sample)):
                suffix = Path(file.path).suffix.lower() or ".img"
                names.append(f"images/{split}/{number:06d}-{i}{suffix}")
                (folder / names[-1]).write_bytes(file.data)
            row = {"id": sample.id, "images": names, "messages": messages_of(sample)}
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
            yield 1


def _files(sample: Sample) -> tuple[Any, ...]:
    return sample.seen.files if isinstance(sample.seen, Images) else ()
