"""The pages of a dataset's documents as image files beside its shards, for tools that draw no text themselves.

They lie in `pages/SPLIT/`, with a `metadata.jsonl` in each split as Hugging Face's ImageFolder reads it, and follow
from the dataset alone. `pages/drawn.json` is written last and says which dataset they show. A chunk of documents whose
pages are all there is noted in the preparation's working folder, so that a killed one goes on where it stopped.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from PIL import Image

from visiontune.data.dataset import Dataset
from visiontune.data.documents import Rendering
from visiontune.data.folder import PAGES_NAME, WORK_NAME
from visiontune.data.pages import engine as drawing_engine
from visiontune.data.pages import pages
from visiontune.data.sample import Document
from visiontune.data.split import SPLITS
from visiontune.data.workers import Engine, parallel
from visiontune.errors import DataError
from visiontune.files import write_json, write_text, written_whole
from visiontune.progress import note, progress

ImageFormat = Literal["png", "webp"]
FORMATS: tuple[ImageFormat, ...] = get_args(ImageFormat)
DRAWN_NAME = "drawn.json"
METADATA_NAME = "metadata.jsonl"
CHUNK_ROWS = 16
WEBP_SIDE = 16383  # pixels; more than its header can say
_WRITING: dict[ImageFormat, dict[str, Any]] = {"png": {}, "webp": {"lossless": True}}

# Not so long that a page's number no longer fits, nothing that means something to a file system, and no capitals: some
# file systems do not tell them from small letters.
_PLAIN_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")


@dataclass(frozen=True)
class _Chunk:
    """Documents of one split to draw: rows from `start` on, by their file names and numbers of pages."""

    dataset: Path
    format: ImageFormat
    split: str
    start: int
    names: list[str]
    counts: list[int]
    done: Path


def check_format(format: str) -> None:
    """Raise DataError for a format that is none of FORMATS."""
    if format not in FORMATS:
        raise DataError(
            f"pages are not written as '{format}'", where="--materialise", fix=f"formats: {', '.join(FORMATS)}"
        )


def file_stem(id: str) -> str:
    """A file name for an id, of letters, digits and `._-~`; ids that differ have names that differ, in capitals too.

    An id that is such a name already stays as it is. Any other ends in ~ and 64 bits of its hash.
    """
    if _PLAIN_ID.fullmatch(id):
        return id
    readable = re.sub(r"[^a-z0-9._-]+", "_", id.lower()).lstrip("._-")[:60]
    return f"{readable}~{hashlib.sha256(id.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


def write_pages(dataset: Dataset, format: ImageFormat, workers: int = 1, engine: Engine = "processes") -> Path:
    """Write the pages of all documents and return their folder; what is there already is not drawn again.

    A page is `pages/SPLIT/ID-001.png`: grey, 8 bits, the very pixels that training sees (WebP, lossless, is read as
    RGB). Raises DataError where the dataset holds images, or pages too large for the format.
    """
    check_format(format)
    spec = dataset.info.pages
    if spec is None:
        raise DataError("the samples of this dataset are images, not documents", where=str(dataset.path))
    if format == "webp" and max(spec.width, spec.height) > WEBP_SIDE:
        raise DataError(
            f"a WebP file has at most {WEBP_SIDE} pixels a side, a page {spec.width} x {spec.height}",
            where="--materialise webp",
            fix="--materialise png",
        )
    folder = dataset.path / PAGES_NAME
    shown = _shown(dataset, format)
    if _drawn(folder) == shown and all(_is_whole(folder / split) for split in _splits(dataset)):
        return folder
    (folder / DRAWN_NAME).unlink(missing_ok=True)
    (dataset.path / WORK_NAME).mkdir(exist_ok=True)
    _forget_others(dataset.path / WORK_NAME, {chunk.done for chunk in _chunks(dataset, format, shown)})
    for split in _splits(dataset):
        (folder / split).mkdir(parents=True, exist_ok=True)
    total = dataset.info.documents.total_pages if dataset.info.documents else 0
    with progress("drawing the pages", total, "pages") as advance:
        lines: dict[str, list[dict[str, Any]]] = {split: [] for split in _splits(dataset)}
        for split, drawn in parallel(_draw, _chunks(dataset, format, shown), workers, engine):
            lines[split] += drawn
            advance(len(drawn))
    for split, described in lines.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in described)
        write_text(folder / split / METADATA_NAME, text)
    _remove_others(folder, {split: {line["file_name"] for line in described} for split, described in lines.items()})
    write_json(folder / DRAWN_NAME, shown)
    return folder


def remove_stale_pages(dataset: Dataset) -> None:
    """Remove pages that show another state of the dataset, or not all of it."""
    folder = dataset.path / PAGES_NAME
    if folder.is_dir() and (_drawn(folder) or {}).get("content_hash") != dataset.info.content_hash:
        shutil.rmtree(folder)
        note(f"removed {folder}: it did not show the dataset as it is now; --materialise draws the pages again")


def _splits(dataset: Dataset) -> list[str]:
    return [split for split in SPLITS if dataset.count(split)]


def _shown(dataset: Dataset, format: ImageFormat) -> dict[str, Any]:
    """What the files depend on. The content hash covers the texts, the page spec and its fonts."""
    return {"content_hash": dataset.info.content_hash, "format": format, "engine": drawing_engine()}


def _drawn(folder: Path) -> dict[str, Any] | None:
    file = folder / DRAWN_NAME
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _is_whole(split: Path) -> bool:
    metadata = split / METADATA_NAME
    if not metadata.is_file():
        return False
    with metadata.open(encoding="utf-8") as lines:
        named = {json.loads(line)["file_name"] for line in lines}
    return named == {path.name for path in split.iterdir()} - {METADATA_NAME}


def _chunks(dataset: Dataset, format: ImageFormat, shown: dict[str, Any]) -> Iterator[_Chunk]:
    for split in _splits(dataset):
        index = dataset.index(split)
        for start in range(0, len(index.ids), CHUNK_ROWS):
            some = slice(start, start + CHUNK_ROWS)
            key = hashlib.sha256(json.dumps([shown, split, start, CHUNK_ROWS]).encode()).hexdigest()
            yield _Chunk(
                dataset=dataset.path,
                format=format,
                split=split,
                start=start,
                names=[file_stem(id) for id in index.ids[some]],
                counts=index.pages[some],
                done=dataset.path / WORK_NAME / f"pages-{split}-{start:08d}-{key[:16]}",
            )


def _forget_others(work: Path, known: set[Path]) -> None:
    """Remove the notes of chunks that show something else: their files have the names of those to be drawn now."""
    for done in work.glob("pages-*"):
        if done not in known:
            done.unlink()


def _draw(chunk: _Chunk) -> tuple[str, list[dict[str, Any]]]:
    """Write the pages of some documents and say what metadata.jsonl says of them."""
    dataset = Dataset.open(chunk.dataset)
    rendering = Rendering.of(dataset)
    if rendering is None:
        raise DataError("the samples of this dataset are images, not documents", where=str(chunk.dataset))
    spec, fonts = rendering.spec, rendering.fonts()
    spec.check(fonts)
    folder = chunk.dataset / PAGES_NAME / chunk.split
    files = [_file_names(chunk, k) for k in range(len(chunk.names))]
    there = chunk.done.is_file() and all((folder / file).is_file() for some in files for file in some)
    lines = []
    for k, some in enumerate(files):
        sample = dataset.sample(chunk.split, chunk.start + k)
        if not there and isinstance(sample.seen, Document):
            for file, page in zip(some, pages(sample.seen.text, spec, fonts), strict=True):
                with written_whole(folder / file) as aside:
                    Image.fromarray(page).save(aside, chunk.format, **_WRITING[chunk.format])
        lines += [
            {
                "file_name": file,
                "id": sample.id,
                "page": number,
                "pages": len(some),
                "prompt": sample.text.prompt,
                "answer": sample.text.answer,
            }
            for number, file in enumerate(some, start=1)
        ]
    if not there:
        write_text(chunk.done, "")
    return chunk.split, lines


def _file_names(chunk: _Chunk, k: int) -> list[str]:
    return [f"{chunk.names[k]}-{number:03d}.{chunk.format}" for number in range(1, chunk.counts[k] + 1)]


def _remove_others(folder: Path, files: dict[str, set[str]]) -> None:
    """Leave in the folder the splits with these files and their metadata."""
    for path in folder.iterdir():
        if path.name not in files:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for split, names in files.items():
        for path in (folder / split).iterdir():
            if path.name not in names and path.name != METADATA_NAME:
                path.unlink()
