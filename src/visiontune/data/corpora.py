"""Known corpora of long texts with summaries or with questions and answers: where they lie and which column holds what.

`open_corpus` writes one as Parquet files that `prepare` reads. The table was written from the corpora's cards without a
connection to the hub: a corpus that has moved says so when it is opened.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from visiontune.data.split import SPLITS
from visiontune.errors import DataError, MachineError, VisiontuneError
from visiontune.files import written_whole

GROUP_ROWS = 256
# A script of a dataset is no longer run by anyone; the hub keeps what the script made on this branch.
CONVERTED = "refs/convert/parquet"
_SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "document", "prompt", "answer")])
_BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Corpus:
    """A corpus on the hub. `splits` maps ours to its own; a path ("answers.text.0") or a function finds each column.

    `converted`: the files lie on the branch that the hub converted from a script. `licence` is what its card says: read
    it before you train.
    """

    hub: str
    config: str | None
    document: str | Callable[[Row], Any]
    answer: str | Callable[[Row], Any]
    licence: str
    prompt: str | None = None
    id: str | None = None
    splits: Mapping[str, str] = field(default_factory=lambda: {name: name for name in SPLITS})
    converted: bool = False
    language: str = "English"

    def to_json(self) -> dict[str, Any]:
        """What `prepare --list` says of it; where a function finds a column, what that function's docstring says."""
        places = {"document": self.document, "prompt": self.prompt, "answer": self.answer}
        columns = {role: place if isinstance(place, str) else place.__doc__ for role, place in places.items() if place}
        return {
            "hub": self.hub,
            "config": self.config,
            "language": self.language,
            "columns": columns,
            "splits": list(self.splits),
            "licence": self.licence,
        }


def _natural_document(row: Row) -> str:
    """A page of Natural Questions: its words without the marks of HTML."""
    words, marks = _value(row, "document.tokens.token"), _value(row, "document.tokens.is_html")
    return " ".join(word for word, mark in zip(words, marks, strict=True) if not mark)


def _natural_answer(row: Row) -> str | None:
    """The short answer of the first annotator who gave one; None where nobody did."""
    for found in _value(row, "annotations.short_answers") or []:
        if texts := _value({"found": found}, "found.text"):
            return ", ".join(texts)
    return None


_TRAIN_AND_TEST = {"train": "train", "test": "test"}
_TRAIN_AND_VALIDATION = {"train": "train", "validation": "validation"}
_NEWS = "research only: the articles belong to their publishers"
_XLSUM = (
    *("amharic", "arabic", "azerbaijani", "bengali", "burmese", "chinese_simplified", "chinese_traditional", "english"),
    *("french", "gujarati", "hausa", "hindi", "igbo", "indonesian", "japanese", "kirundi", "korean", "kyrgyz"),
    *("marathi", "nepali", "oromo", "pashto", "persian", "pidgin", "portuguese", "punjabi", "russian"),
    *("scottish_gaelic", "serbian_cyrillic", "serbian_latin", "sinhala", "somali", "spanish", "swahili", "tamil"),
    *("telugu", "thai", "tigrinya", "turkish", "ukrainian", "urdu", "uzbek", "vietnamese", "welsh", "yoruba"),
)

CORPORA: dict[str, Corpus] = {
    **{
        f"mlsum-{code}": Corpus("reciTAL/mlsum", code, "text", "summary", _NEWS, converted=True, language=language)
        for code, language in (("de", "German"), ("es", "Spanish"), ("fr", "French"))
    },
    "cnn-dailymail": Corpus("abisee/cnn_dailymail", "3.0.0", "article", "highlights", "Apache-2.0", id="id"),
    "xsum": Corpus("EdinburghNLP/xsum", None, "document", "summary", _NEWS, id="id"),
    "arxiv": Corpus(
        "ccdv/arxiv-summarization", "document", "article", "abstract", "none given: each paper has its own"
    ),
    "pubmed": Corpus(
        "ccdv/pubmed-summarization", "document", "article", "abstract", "none given: each paper has its own"
    ),
    "billsum": Corpus("FiscalNote/billsum", None, "text", "summary", "CC0-1.0", splits=_TRAIN_AND_TEST),
    "samsum": Corpus("knkarthick/samsum", None, "dialogue", "summary", "CC-BY-NC-ND-4.0", id="id"),
    **{
        f"xlsum-{language}": Corpus(
            "csebuetnlp/xlsum",
            language,
            "text",
            "summary",
            "CC-BY-NC-SA-4.0",
            id="id",
            converted=True,
            language=language.replace("_", " ").title(),
        )
        for language in _XLSUM
    },
    "natural-questions": Corpus(
        "google-research-datasets/natural_questions",
        "default",
        _natural_document,
        _natural_answer,
        "CC-BY-SA-3.0",
        prompt="question.text",
        id="id",
        splits=_TRAIN_AND_VALIDATION,
    ),
    "ms-marco": Corpus(
        "microsoft/ms_marco",
        "v2.1",
        "passages.passage_text",
        "answers.0",
        "research only; see the terms on its site",
        prompt="query",
        id="query_id",
        splits=_TRAIN_AND_VALIDATION,
    ),
    "squad-fr": Corpus(
        "qwant/squad_fr",
        None,
        "context",
        "answers.text.0",
        "CC-BY-4.0",
        prompt="question",
        id="id",
        splits=_TRAIN_AND_VALIDATION,
        converted=True,
        language="French",
    ),
    "piaf": Corpus(
        "AgentPublic/piaf",
        None,
        "context",
        "answers.text.0",
        "MIT",
        prompt="question",
        id="id",
        splits={"train": "train"},
        language="French",
    ),
}


def known_corpus(name: str) -> str | None:
    """The name in CORPORA that is meant, "mlsum:fr" and "cnn_dailymail" among them; None for what is no corpus."""
    plain = name.replace(":", "-").replace("_", "-").lower()
    return plain if plain in CORPORA else None


def open_corpus(name: str, folder: Path, *, limit: int | None = None, files: Mapping[str, Path] | None = None) -> Path:
    """Write a known corpus, one Parquet file a split, into a folder of its own inside `folder`, and return that folder.

    `prepare` reads it as it is. `limit` takes the first so many rows of each split. `files` maps our splits to local
    files of the corpus's own form (Parquet, JSON Lines, CSV), read instead of the hub. A split that was written whole
    is not fetched again. Raises DataError for an unknown name, MachineError where the hub cannot be reached.
    """
    if name not in CORPORA:
        raise DataError(f"there is no corpus called {name!r}", where="corpus", fix=f"use one of {', '.join(CORPORA)}")
    corpus = CORPORA[name]
    place = Path(folder) / (name if limit is None else f"{name}-first-{limit}")
    for split in files or corpus.splits:
        path = place / f"{split}.parquet"
        if not path.is_file():
            with written_whole(path) as aside, pq.ParquetWriter(aside, _SCHEMA, compression="zstd") as writer:
                rows = (_stored(row, corpus, i) for i, row in enumerate(islice(_read(name, split, files), limit)))
                for group in _groups(rows):
                    writer.write_table(pa.Table.from_pylist(group, schema=_SCHEMA))
    return place


def _read(name: str, split: str, files: Mapping[str, Path] | None) -> Iterator[Row]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise MachineError("corpora are read with the package `datasets`", fix="pip install datasets") from error
    corpus = CORPORA[name]
    if files is not None:
        path = Path(files[split])
        if path.suffix not in _BUILDERS or not path.is_file():
            raise DataError("there is no such table", where=str(path), fix=f"give a {', '.join(_BUILDERS)} file")
        yield from load_dataset(_BUILDERS[path.suffix], data_files=str(path), split="train", streaming=True)
        return
    theirs = corpus.splits[split]
    try:
        if corpus.converted:
            place = f"hf://datasets/{corpus.hub}@{CONVERTED}/{corpus.config or 'default'}/{theirs}/*.parquet"
            yield from load_dataset("parquet", data_files=place, split="train", streaming=True)
        else:
            yield from load_dataset(corpus.hub, corpus.config, split=theirs, streaming=True)
    except VisiontuneError:
        raise
    except Exception as error:  # what cannot be reached is an error of datasets, of the hub's client or of httpx
        raise MachineError(
            f"the corpus cannot be read: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            where=f"{corpus.hub} on the hub, split {theirs}",
            fix='check the connection, or give local files: open_corpus(name, folder, files={"train": PATH})',
        ) from error


def _stored(row: Row, corpus: Corpus, number: int) -> dict[str, str | None]:
    """The row as four texts; None where there is none, which `prepare` leaves out and counts."""
    found = {
        "id": None if corpus.id is None else _value(row, corpus.id),
        "document": _value(row, corpus.document),
        "prompt": None if corpus.prompt is None else _value(row, corpus.prompt),
        "answer": _value(row, corpus.answer),
    }
    texts = {key: None if value is None else _text(value) for key, value in found.items()}
    return texts | {"id": texts["id"] or str(number)}


def _text(value: Any) -> str:
    return "\n\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _value(row: Row, place: str | Callable[[Row], Any]) -> Any:
    """What lies at a path: names of columns, numbers of entries; a name asks each entry of a list. None: nothing."""
    if not isinstance(place, str):
        return place(row)
    value: Any = row
    for step in place.split("."):
        if value is None:
            return None
        if isinstance(value, list):
            if step.isdigit():
                value = value[int(step)] if int(step) < len(value) else None
            else:
                value = [entry[step] for entry in value]
        elif step not in value:
            raise DataError(f"a row has no {place}", where=", ".join(value), fix="the corpus has changed: tell us")
        else:
            value = value[step]
    return value


def _groups(rows: Iterable[dict[str, str | None]]) -> Iterator[list[dict[str, str | None]]]:
    rows = iter(rows)
    while group := list(islice(rows, GROUP_ROWS)):
        yield group
