"""What the documents of all rows are, measured once, in parallel: lengths, pages, scripts, missing glyphs, signatures.

A chunk of rows is a pure function of its texts, the page spec and its fonts. With a store, each chunk's facts are kept
there under a name made of the texts' hashes and the spec, so that a killed preparation goes on where it stopped.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from visiontune.data.dataset import Dataset, font_path
from visiontune.data.dataset_info import DocumentSummary
from visiontune.data.formats.rows import SourceRow
from visiontune.data.near_texts import signature
from visiontune.data.pages import Fonts, PageSpec, lay_out, load_fonts
from visiontune.data.pages.fonts import DEFAULT_FONT, PACKAGES
from visiontune.data.pages.layout import MISSING_LIMIT
from visiontune.data.pages.properties import code_points, properties
from visiontune.data.workers import parallel
from visiontune.errors import DataError
from visiontune.files import written_whole
from visiontune.machine import cores
from visiontune.progress import progress

SCAN_VERSION = 1
CHUNK_ROWS = 64
CHARACTERS_FOR_WORKERS = 4_000_000
SAMPLED = 200

# One entry a row; nothing but the hash and the length where `error` says why the document cannot be shown.
SCHEMA = pa.schema(
    [
        ("code", pa.string()),
        ("error", pa.string()),
        ("fix", pa.string()),
        ("sha256", pa.string()),
        ("characters", pa.int32()),
        ("bytes", pa.int64()),
        ("pages", pa.int32()),
        ("missing", pa.int32()),
        ("scripts", pa.string()),
        ("signature", pa.binary(512)),
    ]
)
_NO_SCRIPT = ("Common", "Inherited", "Unknown")
_MARKDOWN = re.compile(r"^ {0,3}(?:#{1,6}[ \t]+\S|```|~~~)", re.MULTILINE)

FontFile = tuple[Path, int]
_Task = tuple[list[str], "Rendering", Path | None]


@dataclass(frozen=True)
class Rendering:
    """How documents become pages: the spec and the files (with the faces) of its fonts, in the spec's order."""

    spec: PageSpec
    files: tuple[FontFile, ...]

    @classmethod
    def chosen(
        cls,
        texts: Sequence[str],
        pages: PageSpec | None,
        fonts: Sequence[Path | FontFile] | None,
        earlier: Dataset | None = None,
    ) -> "Rendering":
        """How to show these texts: as `pages` says, or as the earlier dataset does, or by default.

        The default is a page of 1024 x 1024 pixels in the given fonts (paths, or paths with the number of a face), else
        in those of the earlier dataset, else in the one of this package; Markdown is shown where the texts look like
        it. Raises DataError where a font cannot be read or is not the one of the spec.
        """
        if fonts is not None:
            given = [font if isinstance(font, tuple) else (Path(font), None) for font in fonts]
            named = pages.fonts if pages is not None and len(pages.fonts) == len(given) else None
            faces = [font.face for font in named] if named else [0] * len(given)
            files = tuple((path, own if face is None else face) for (path, face), own in zip(given, faces, strict=True))
        elif earlier is not None and earlier.info.pages is not None:
            pages = pages or earlier.info.pages
            kept = [(font_path(earlier.path, font), font.face) for font in pages.fonts]
            files = tuple(kept) if all(path.is_file() for path, _ in kept) else ((DEFAULT_FONT, 0),)
        else:
            files = ((DEFAULT_FONT, 0),)
        loaded = _fonts(files)
        spec = pages or PageSpec(fonts=loaded.refs, markdown=looks_like_markdown(texts))
        spec.check(loaded)
        return cls(spec, files)


def looks_like_markdown(texts: Sequence[str]) -> bool:
    """Whether at least half of the texts (of a sample of 200, evenly spread) have a heading or a fence of Markdown."""
    some = texts[:: max(1, len(texts) // SAMPLED)]
    return bool(some) and 2 * sum(_MARKDOWN.search(text) is not None for text in some) >= len(some)


def text_sha256(text: str) -> str:
    """The SHA-256 of a text in UTF-8, hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def workers_for_documents(rows: Sequence[SourceRow]) -> int:
    """How many processes to use: all cores, or one where the work is done sooner than they have started."""
    return cores() if sum(len(row.document or "") for row in rows) >= CHARACTERS_FOR_WORKERS else 1


def scan_documents(
    rows: Sequence[SourceRow], rendering: Rendering, workers: int, store: Path | None = None
) -> pa.Table:
    """The facts of all rows' documents, in their order, as a table of SCHEMA."""
    tables = []
    with progress("laying the documents out", len(rows), "rows") as advance:
        for table in parallel(_scan_chunk, _tasks(rows, rendering, store), workers):
            tables.append(table)
            advance(table.num_rows)
    return pa.concat_tables(tables).combine_chunks() if tables else SCHEMA.empty_table()


def document_summary(facts: pa.Table) -> DocumentSummary | None:
    """Summarise scanned documents that can all be shown; None where there are none."""
    scripts = Counter[str]()
    for text in facts["scripts"].to_pylist():
        scripts.update(json.loads(text))
    missing = int(sum(facts["missing"].to_pylist()))
    return DocumentSummary.of(
        facts["characters"].combine_chunks().to_numpy(), facts["pages"].combine_chunks().to_numpy(), missing, scripts
    )


def document_facts(text: str, spec: PageSpec, fonts: Fonts) -> dict[str, Any]:
    """What SCHEMA says of one document. Its signature is that of `near_texts`."""
    facts: dict[str, Any] = {
        "sha256": text_sha256(text),
        "characters": len(text),
        "bytes": len(text.encode()),
        "signature": signature(text).tobytes(),
    }
    try:
        pages = lay_out(text, spec, fonts, missing_limit=1.0)
    except DataError as error:
        return facts | {"code": "unreadable-document", "error": _sentence(error.found), "fix": error.fix}
    missing = sum((page.missing for page in pages), Counter[str]())
    facts |= {"pages": len(pages), "missing": missing.total(), "scripts": json.dumps(scripts_of(text))}
    if missing.total() > MISSING_LIMIT * len(text):
        facts |= {"code": "missing-glyphs", "error": _missing(missing, len(text)), "fix": _fix(missing)}
    return facts


def scripts_of(text: str) -> dict[str, int]:
    """How many characters of each script a text has; signs that belong to none (digits, spaces) are not counted."""
    script = properties()["script"]
    counts = np.bincount(script.of[code_points(text)], minlength=len(script.names)).tolist()
    return {name: count for name, count in zip(script.names, counts, strict=True) if count and name not in _NO_SCRIPT}


def _tasks(rows: Sequence[SourceRow], rendering: Rendering, store: Path | None) -> Iterator[_Task]:
    for start in range(0, len(rows), CHUNK_ROWS):
        texts = [row.document or "" for row in rows[start : start + CHUNK_ROWS]]
        kept = None
        if store is not None:
            key = json.dumps([SCAN_VERSION, rendering.spec.hash, *map(text_sha256, texts)])
            name = f"documents-{start // CHUNK_ROWS:05d}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.parquet"
            kept = store / name
        yield texts, rendering, kept


@lru_cache(maxsize=2)
def _fonts(files: tuple[FontFile, ...]) -> Fonts:
    return load_fonts(files)


def _scan_chunk(task: _Task) -> pa.Table:
    texts, rendering, kept = task
    if kept is not None and kept.is_file():
        return pq.read_table(kept, use_threads=False)
    fonts = _fonts(rendering.files)
    table = pa.Table.from_pylist([document_facts(text, rendering.spec, fonts) for text in texts], schema=SCHEMA)
    if kept is not None:
        with written_whole(kept) as aside:
            pq.write_table(table, aside)
    return table


def _sentence(found: str) -> str:
    return found[:1].lower() + found[1:].rstrip(".")


def _missing(missing: Counter[str], characters: int) -> str:
    shown = ", ".join(f"U+{ord(c):04X}" + (f" {c}" if c.isprintable() else "") for c, _ in missing.most_common(5))
    count = missing.total()
    return f"the fonts have no glyph for {count:,} of {characters:,} characters ({count / characters:.1%}): {shown}"


def _fix(missing: Counter[str]) -> str:
    script = properties()["script"]
    scripts = Counter[str]()
    for character, times in missing.items():
        scripts[script.names[script.of[ord(character)]]] += times
    packages = "; ".join(f"{name}: {PACKAGES.get(name, 'fonts-noto-core')}" for name, _ in scripts.most_common(4))
    return f"add a font that has them (Debian packages: {packages})"
