"""The rows of a prepared dataset on disk: Parquet files of images or documents, and of what is to be said of them."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from visiontune.data.dataset_info import ObjectSummary, ShardInfo
from visiontune.data.pages import PageSpec
from visiontune.data.turns import Turns
from visiontune.data.turns import to_text as turns_to_text
from visiontune.files import file_sha256, written_whole

# A random row costs one row group: small enough to read quickly, large enough that Parquet's overhead does not count.
GROUP_BYTES = 512 * 1024
GROUP_ROWS = 256

_INT_LIST = {"feature": {"dtype": "int32", "_type": "Value"}, "_type": "List"}
_STRING = {"dtype": "string", "_type": "Value"}
_INT = {"dtype": "int32", "_type": "Value"}
_FEATURES = {
    "id": _STRING,
    "images": {"feature": {"_type": "Image"}, "_type": "List"},
    "document": _STRING,
    "turns": _STRING,
    "prompt": _STRING,
    "answer": _STRING,
    "widths": _INT_LIST,
    "heights": _INT_LIST,
    "characters": _INT,
    "pages": _INT,
    "content": _STRING,
    "seen": {"feature": _STRING, "_type": "List"},
}
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
        ("document", pa.string()),
        ("turns", pa.string()),
        ("prompt", pa.string()),
        ("answer", pa.string()),
        ("widths", pa.list_(pa.int32())),
        ("heights", pa.list_(pa.int32())),
        ("characters", pa.int32()),
        ("pages", pa.int32()),
        ("content", pa.string()),
        ("seen", pa.list_(pa.string())),
    ],
    # What `datasets.load_dataset("parquet", ...)` reads to show the images as images.
    metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})},
)
_OTHER_LEAVES = (
    "id",
    "images.list.element.path",
    "document",
    "turns",
    "prompt",
    "answer",
    "widths.list.element",
    "heights.list.element",
    "characters",
    "pages",
)
_WRITING: dict[str, Any] = {
    # Encoded images and hashes do not compress: leaving them alone makes a row group cheap to read.
    "compression": dict.fromkeys(("images.list.element.bytes", "content", "seen.list.element"), "NONE")
    | dict.fromkeys(_OTHER_LEAVES, "ZSTD"),
    "use_dictionary": False,
    "write_statistics": False,
}


@dataclass(frozen=True)
class StoredRow:
    """One row as it is written. `images` holds (encoded bytes, path) pairs; sizes are in pixels, upright.

    `pages` is the number of pages of the `document` under the dataset's page spec. `seen` has the SHA-256 of each
    image's bytes, or of the whole document's text; empty: it was not computed.
    """

    id: str
    images: list[tuple[bytes, str]]
    prompt: str | None
    answer: str
    widths: list[int]
    heights: list[int]
    content: str
    document: str | None = None
    pages: int | None = None
    turns: Turns = ()
    seen: Sequence[str] = ()

    @property
    def size(self) -> int:
        """The bytes of what is seen."""
        return sum(len(data) for data, _ in self.images) + len((self.document or "").encode())


def write_shard(path: Path, rows: Iterable[StoredRow]) -> ShardInfo:
    """Write rows, in their order, as one Parquet file, whole or not at all; one row group is held in memory."""
    count = 0
    with written_whole(path) as aside:
        with pq.ParquetWriter(
            aside,
            SCHEMA,
            **_WRITING,
        ) as writer:
            group: list[StoredRow] = []
            size = 0
            for row in rows:
                if (group and size + row.size > GROUP_BYTES) or len(group) == GROUP_ROWS:
                    writer.write_table(_table(group))
                    count += len(group)
                    group, size = [], 0
                group.append(row)
                size += row.size
            if group:
                writer.write_table(_table(group))
                count += len(group)
        return ShardInfo(rows=count, bytes=aside.stat().st_size, sha256=file_sha256(aside))


def _table(rows: list[StoredRow]) -> pa.Table:
    values = [
        {
            "id": row.id,
            "images": [{"bytes": data, "path": path} for data, path in row.images],
            "document": row.document,
            "turns": turns_to_text(row.turns),
            "prompt": row.prompt,
            "answer": row.answer,
            "widths": row.widths,
            "heights": row.heights,
            "characters": None if row.document is None else len(row.document),
            "pages": row.pages,
            "content": row.content,
            "seen": list(row.seen),
        }
        for row in rows
    ]
    return pa.Table.from_pylist(values, schema=SCHEMA)


def content_of(seen_sha256s: Iterable[str], prompt: str | None, answer: str, turns: Turns = ()) -> str:
    """What a sample holds, as one SHA-256: over the hashes of its images' bytes or its text, its prompt, its answer,
    and what was said before."""
    said = [turns_to_text(turns)] if turns else []
    text = json.dumps([list(seen_sha256s), prompt, answer, *said], ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def content_hash(
    rows: Iterable[tuple[str, str, str]], pages: PageSpec | None = None, objects: ObjectSummary | None = None
) -> str:
    """SHA-256 over the sorted (split, id, content) of all rows, the page spec, and the classes that are listed without
    an object: no row names these, and all images are taught and scored as showing none. It knows nothing of files."""
    digest = hashlib.sha256()
    if objects is not None and (empty := sorted(name for name, count in objects.classes.items() if not count)):
        digest.update(f"classes {json.dumps(empty, ensure_ascii=False)}\n".encode("utf-8", "surrogatepass"))
    if pages is not None:
        digest.update(f"pages {pages.hash}\n".encode())
    for row in sorted(rows):
        digest.update(json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()
