"""Columns are known by their names, however these are written; else the message says what to type."""

from pathlib import Path
from typing import Any

import pytest

from tests.written_tables import table
from visiontune.cli.command_line import main
from visiontune.data import formats
from visiontune.data.inspect import inspect
from visiontune.errors import DataError


@pytest.fixture
def place(tmp_path: Path, encode: Any, picture: Any) -> Path:
    """A folder with two pictures 0.png and 1.png."""
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(encode(picture(i)))
    return tmp_path


@pytest.mark.parametrize(
    "header", ["Image;Question;Answer;ID", "IMAGE , question, Answer,Id", "image\tQuestion \t ANSWER\tid"]
)
def test_names_in_capitals_and_with_blanks_are_known(place: Path, header: str) -> None:
    mark = next(mark for mark in ";\t," if mark in header)
    lines = [header, *(mark.join((f"{i}.png", "What is it?", "A blob.", f"r{i}")) for i in range(2))]
    (place / "rows.csv").write_text("\n".join(lines))
    listing = formats.read(place / "rows.csv")
    assert (listing.format, listing.faults) == ("prompt_answer", [])
    assert [(row.id, row.names, row.prompt, row.answer) for row in listing.rows] == [
        (f"r{i}", (f"{i}.png",), "What is it?", "A blob.") for i in range(2)
    ]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_a_label_in_capitals_is_a_class_and_messages_are_turns(place: Path, name: str) -> None:
    source = table(place / name, [{"Image": f"{i}.png", "Label": "cat", "Split": "train"} for i in range(2)])
    assert inspect(source).labels == {"cat": 2}
    turns = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A blob."}]
    source = table(place / f"turns-{name}", [{"Messages": turns, "Images": ["0.png"]}])
    assert formats.read(source).format == "messages" and formats.read(source).rows[0].names == ("0.png",)


def test_long_texts_and_metadata_beside_images_may_have_capitals(place: Path) -> None:
    (place / "metadata.csv").write_text("File_Name,Label\n0.png,cat\n1.png,dog\n")
    assert [row.answer for row in formats.read(place).rows] == ["cat", "dog"]
    texts = table(place / "texts.jsonl", [{"Article": "A long text.", "Summary ": "short", "ID": "x"}])
    (row,) = formats.read(texts).rows
    assert (row.id, row.document, row.answer) == ("x", "A long text.", "short")


def test_a_name_written_exactly_goes_before_one_that_only_reads_so_and_of_two_none_is_guessed(place: Path) -> None:
    rows = [{"image": "0.png", "Answer": "the other", "answer": "this one"}]
    assert formats.read(table(place / "rows.jsonl", rows)).rows[0].answer == "this one"
    rows = [{"image": "0.png", "Answer": "the other", "ANSWER": "this one"}]
    with pytest.raises(DataError, match="several columns could be the answer: Answer, ANSWER") as caught:
        formats.read(table(place / "rows.jsonl", rows))
    assert str(caught.value.fix).startswith("say which one it is: --columns answer=Answer (in Python")
    assert formats.read(place / "rows.jsonl", {"answer": "ANSWER"}).rows[0].answer == "this one"


def test_of_odd_names_both_kinds_of_table_are_told_and_what_is_typed_works(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = table(place / "rows.csv", [{"photo": f"{i}.png", "ask": "What?", "reply": "A blob."} for i in range(2)])
    with pytest.raises(DataError, match=r"there is no column for the document; .* photo, ask, reply") as caught:
        formats.read(source)
    fix = str(caught.value.fix)
    typed = "--columns image=photo,prompt=ask,answer=reply"
    assert typed in fix and "--columns document=body,answer=tldr" in fix
    with pytest.raises(SystemExit) as stopped:
        main(["inspect", str(source), *typed.split()])
    assert stopped.value.code == 0 and "2 samples" in capsys.readouterr().out
    with pytest.raises(DataError, match="nothing called 'image'") as caught:
        formats.read(source, {"image": "photo"})
    assert "of images with texts: image, prompt, answer" in str(caught.value.fix)


@pytest.mark.parametrize(("ends", "cells"), [(",", ","), (",,", ",,"), (", ,", ",,"), (",,", "")])
def test_empty_columns_without_a_name_at_the_end_are_not_read_and_told(tmp_path, ends, cells):
    (tmp_path / "t.csv").write_text(f"question,answer{ends}\na,b{cells}\nc,d{cells}\n")
    listing = formats.read(tmp_path / "t.csv")
    assert [(row.prompt, row.answer) for row in listing.rows] == [("a", "b"), ("c", "d")]
    (fault,) = listing.faults
    assert (fault.code, fault.found) == ("unknown-columns", "unknown columns, not read: those without a name")


def test_a_value_behind_the_last_name_is_told_with_its_line(tmp_path):
    (tmp_path / "t.csv").write_text("question,answer,,\na,b,,\nwell, what?,d,\n")
    listing = formats.read(tmp_path / "t.csv")
    assert [(row.prompt, row.answer) for row in listing.rows] == [("a", "b")]
    (fault,) = [one for one in listing.faults if one.severity == "drop"]
    assert (fault.where, fault.found) == ("t.csv, line 3", "a value stands behind the last column that has a name")
