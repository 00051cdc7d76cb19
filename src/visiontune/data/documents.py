"""What the documents of all rows are, measured once, in parallel: lengths, pages, scripts, missing glyphs, signatures.

A chunk of rows is a pure function of its texts, the page spec and its fonts. With a store, each chunk's facts are kept
there under a name made of the texts' hashes and the spec, so that a killed preparation goes on where it stopped.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
from visiontune.data.split import keyed
from visiontune.data.windows import answer_span, window
from visiontune.data.workers import Engine, parallel
from visiontune.errors import DataError
from visiontune.files import written_whole
from visiontune.machine import cores
from visiontune.progress import progress

SCAN_VERSION = 2
CHUNK_ROWS = 64
CHARACTERS_FOR_WORKERS = 4_000_000
SAMPLED = 200

# One entry a row; nothing but hashes and the length where `error` says why the document cannot be shown. `whole` is the
# hash of the source's text, all else is said of what is shown of it: its characters `start`..`end` where it is cut.
SCHEMA = pa.schema(
    [
        ("code", pa.string()),
        ("error", pa.string()),
        ("fix", pa.string()),
        ("sha256", pa.string()),
        ("whole", pa.string()),
        ("start", pa.int32()),
        ("end", pa.int32()),
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
Pages = PageSpec | Mapping[str, object]  # a whole spec, or some of its fields
# Makes a spec for texts (a sample of them) from the one that they would be shown by.
Fit = Callable[[PageSpec, Fonts, Sequence[str]], PageSpec]
_Task = tuple[list["Shown"], "Rendering", Path | None]


@dataclass(frozen=True)
class Shown:
    """A document and, of a question about it, the `answer`: what a long text is cut around, `draw` in [0, 1) how."""

    text: str
    answer: str | None = None
    draw: float = 0.0


@dataclass(frozen=True)
class Rendering:
    """How documents become pages: the spec and the files (with the faces) of its fonts, in the spec's order.

    `most_pages` is how many pages a document may have, None for any number.
    """

    spec: PageSpec
    files: tuple[FontFile, ...]
    most_pages: int | None = None

    @classmethod
    def of(cls, dataset: Dataset) -> "Rendering | None":
        """How the documents of a dataset become pages; None where it holds images."""
        spec = dataset.info.pages
        if spec is None:
            return None
        files = tuple((font_path(dataset.path, font), font.face) for font in spec.fonts)
        return cls(spec, files, dataset.info.max_pages)

    def fonts(self) -> Fonts:
        """The fonts, loaded."""
        return _fonts(self.files)

    @classmethod
    def chosen(
        cls,
        texts: Sequence[str],
        pages: Pages | None,
        fonts: Sequence[Path | FontFile] | None,
        earlier: Dataset | None = None,
        most_pages: int | None = None,
        fit: Fit | None = None,
    ) -> "Rendering":
        """How to show these texts: as `pages` says, or as the earlier dataset does, or by default.

        The default is a page of 1024 x 1024 pixels in the given fonts (paths, or paths with the number of a face), else
        in those of the earlier dataset, else in the one of this package; Markdown is shown where the texts look like
        it. Fields alone ({"font_size": 24}) change this or the earlier dataset's spec, and `fit` has the last word.
        Raises DataError where a font cannot be read or is not the one of the spec, and for fields that no spec has.
        """
        whole = pages if isinstance(pages, PageSpec) else None
        stood = earlier.info.pages if earlier is not None and fonts is None else None
        if fonts is not None:
            given = [font if isinstance(font, tuple) else (Path(font), None) for font in fonts]
            named = whole.fonts if whole is not None and len(whole.fonts) == len(given) else None
            faces = [font.face for font in named] if named else [0] * len(given)
            files = tuple((path, own if face is None else face) for (path, face), own in zip(given, faces, strict=True))
        elif earlier is not None and stood is not None:
            kept = [(font_path(earlier.path, font), font.face) for font in (whole or stood).fonts]
            files = tuple(kept) if all(path.is_file() for path, _ in kept) else ((DEFAULT_FONT, 0),)
        else:
            files = ((DEFAULT_FONT, 0),)
        loaded = _fonts(files)
        spec = whole or stood or PageSpec(fonts=loaded.refs, markdown=looks_like_markdown(texts))
        if isinstance(pages, Mapping):
            spec = spec.with_changes(pages)
        if fit is not None:
            spec = fit(spec, loaded, [texts[i] for i in sampled(len(texts))])
        spec.check(loaded)
        return cls(spec, files, most_pages)


def sampled(count: int) -> list[int]:
    """The places of at most 200 of `count` documents, evenly spread, the first among them."""
    return [k * count // min(count, SAMPLED) for k in range(min(count, SAMPLED))]


def looks_like_markdown(texts: Sequence[str]) -> bool:
    """Whether at least half of the texts (of a sample of 200, evenly spread) have a heading or a fence of Markdown."""
    some = [texts[i] for i in sampled(len(texts))]
    return bool(some) and 2 * sum(_MARKDOWN.search(text) is not None for text in some) >= len(some)


def text_sha256(text: str) -> str:
    """The SHA-256 of a text in UTF-8, hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def workers_for_documents(rows: Sequence[SourceRow]) -> int:
    """How many processes to use: all cores, or one where the work is done sooner than they have started."""
    return cores() if sum(len(row.document or "") for row in rows) >= CHARACTERS_FOR_WORKERS else 1


def scan_documents(
    rows: Sequence[SourceRow],
    rendering: Rendering,
    workers: int,
    store: Path | None = None,
    seed: int = 0,
    engine: Engine = "processes",
) -> pa.Table:
    """The facts of all rows' documents, in their order, as a table of SCHEMA; `seed` decides where windows are cut."""
    tables = []
    with progress("laying the documents out", len(rows), "rows") as advance:
        for table in parallel(_scan_chunk, _tasks(rows, rendering, store, seed), workers, engine):
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


def document_facts(shown: Shown, spec: PageSpec, fonts: Fonts, most_pages: int | None = None) -> dict[str, Any]:
    """What SCHEMA says of one document. Its signature is that of `near_texts`, of the whole text."""
    text = shown.text
    facts = _lengths(text) | {"whole": text_sha256(text), "signature": signature(text).tobytes()}
    try:
        pages = lay_out(text, spec, fonts, missing_limit=1.0)
        if most_pages is not None and len(pages) > most_pages:
            span = None if shown.answer is None else answer_span(text, shown.answer)
            cut = None if span is None else window(text, span, most_pages, shown.draw, pages, spec, fonts)
            if cut is None:
                why = "" if shown.answer is None else ", and no window of it holds the answer"
                found = f"the text takes {len(pages)} pages, and at most {most_pages} are allowed{why}"
                return facts | {"code": "too-many-pages", "error": found, "pages": len(pages)}
            text = text[slice(*cut)]
            pages = lay_out(text, spec, fonts, missing_limit=1.0)
            facts |= _lengths(text) | {"start": cut[0], "end": cut[1]}
    except DataError as error:
        return facts | {"code": "unreadable-document", "error": _sentence(error.found), "fix": error.fix}
    missing = sum((page.missing for page in pages), Counter[str]())
    facts |= {"pages": len(pages), "missing": missing.total(), "scripts": json.dumps(scripts_of(text))}
    if missing.total() > MISSING_LIMIT * len(text):
        facts |= {"code": "missing-glyphs", "error": _missing(missing, len(text)), "fix": _fix(missing)}
    return facts


def _lengths(text: str) -> dict[str, Any]:
    return {"sha256": text_sha256(text), "characters": len(text), "bytes": len(text.encode())}


def as_shown(rows: Sequence[SourceRow], facts: pa.Table) -> list[SourceRow]:
    """The rows with what is shown of their documents: windows where the facts say that they are cut."""
    spans = zip(facts["start"].to_pylist(), facts["end"].to_pylist(), strict=True)
    return [
        row if start is None else replace(row, document=(row.document or "")[start:end])
        for row, (start, end) in zip(rows, spans, strict=True)
    ]


def scripts_of(text: str) -> dict[str, int]:
    """How many characters of each script a text has; signs that belong to none (digits, spaces) are not counted."""
    script = properties()["script"]
    counts = np.bincount(script.of[code_points(text)], minlength=len(script.names)).tolist()
    return {name: count for name, count in zip(script.names, counts, strict=True) if count and name not in _NO_SCRIPT}


def _tasks(rows: Sequence[SourceRow], rendering: Rendering, store: Path | None, seed: int) -> Iterator[_Task]:
    for start in range(0, len(rows), CHUNK_ROWS):
        some = [_shown(row, rendering, seed) for row in rows[start : start + CHUNK_ROWS]]
        kept = None
        if store is not None:
            seen = [(text_sha256(one.text), one.answer, one.draw) for one in some]
            key = json.dumps([SCAN_VERSION, rendering.spec.hash, rendering.most_pages, *seen])
            name = f"documents-{start // CHUNK_ROWS:05d}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.parquet"
            kept = store / name
        yield some, rendering, kept


def _shown(row: SourceRow, rendering: Rendering, seed: int) -> Shown:
    text = row.document or ""
    if rendering.most_pages is None or row.prompt is None:
        return Shown(text)
    # The id that the row has in its own source: other sources beside it do not move its window.
    drawn = int.from_bytes(keyed(seed, f"window {row.own_id}")[:6]) / 2**48
    return Shown(text, row.answer, drawn)


@lru_cache(maxsize=2)
def _fonts(files: tuple[FontFile, ...]) -> Fonts:
    return load_fonts(files)


def _scan_chunk(task: _Task) -> pa.Table:
    some, rendering, kept = task
    if kept is not None and kept.is_file():
        return pq.read_table(kept, use_threads=False)
    fonts, spec, most = rendering.fonts(), rendering.spec, rendering.most_pages
    table = pa.Table.from_pylist([document_facts(one, spec, fonts, most) for one in some], schema=SCHEMA)
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
