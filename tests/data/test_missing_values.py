"""Values that a data frame writes down as NaN are no values: nothing is trained on the text "nan"."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.written_tables import table
from visiontune.data import formats
from visiontune.data.formats.rows import Listing
from visiontune.data.survey import usable

NAN = math.nan


@pytest.fixture
def place(tmp_path, encode, picture) -> Path:
    """A folder with three pictures 0.png, 1.png, 2.png."""
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(encode(picture(i)))
    return tmp_path


def read(source: Path) -> Listing:
    return usable(formats.read(source), None, 0)


def told(listing: Listing) -> list[tuple[str, str, str]]:
    return [(fault.code, fault.where, fault.found) for fault in listing.faults if fault.severity == "drop"]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
def test_an_answer_of_nan_is_told_as_no_answer(place: Path, name: str) -> None:
    rows: list[dict[str, Any]] = [{"image": f"{i}.png", "question": "How many?", "answer": 1.5} for i in range(3)]
    told_of: dict[str, object] = {}
    for nothing in (NAN, None):
        rows[1]["answer"] = nothing
        listing = read(table(place / name, rows))
        assert [row.answer for row in listing.rows] == ["1.5", "1.5"]
        told_of[str(nothing)] = [(fault.code, fault.where, fault.found, fault.fix) for fault in listing.faults]
        assert told(listing) == [(
            "empty-answer", f"{name}, {'line' if name.endswith('l') else 'row'} 2", "there is no answer"
        )]  # fmt: skip
    assert told_of["nan"] == told_of["None"]


def test_gaps_in_other_columns_of_a_table_of_images_are_read_as_nulls(place: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"image": f"{i}.png", "question": question, "answer": "a", "id": name, "split": split}
        for i, (question, name, split) in enumerate(((7.5, NAN, "train"), (NAN, 2.5, NAN), (7.5, 3.5, NAN)))
    ]
    listing = read(table(place / "rows.jsonl", rows))
    assert [(row.id, row.prompt, row.split) for row in listing.rows] == [
        ("2.5", None, None),
        ("3.5", "7.5", None),
        ("rows.jsonl:1", "7.5", "train"),
    ]


def test_documents_questions_and_ids_of_nan_are_none(tmp_path: Path) -> None:
    name = "rows.jsonl"
    rows: list[dict[str, Any]] = [
        {"text": "A long text.", "question": "Of what?", "summary": "a", "id": "first"},
        {"text": "Another text.", "question": NAN, "summary": "b", "id": NAN},
    ]
    listing = read(table(tmp_path / name, rows))
    assert [(row.id, row.prompt) for row in listing.rows] == [("first", "Of what?"), (f"{name}:2", None)]
    for column, code in (("text", "empty-document"), ("summary", "empty-answer")):
        (tmp_path / name).unlink()
        lacking = [rows[0], rows[1] | {column: NAN}]
        assert [fault[0] for fault in told(read(table(tmp_path / name, lacking)))] == [code]


def test_a_folder_of_images_whose_metadata_says_nan_leaves_these_out(place: Path) -> None:
    rows = [{"file_name": f"{i}.png", "label": label} for i, label in enumerate((1, NAN, 2))]
    (place / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    listing = read(place)
    assert [row.answer for row in listing.rows] == ["1", "2"]
    assert told(listing) == [("empty-answer", "1.png", "the answer is empty")]
