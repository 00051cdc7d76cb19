"""Rows without a question, where others bring theirs, are told; so is a question that a run was never trained on."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.written_tables import jsonl, table
from visiontune.api.answer_verbs import tell_question
from visiontune.data.faults import Fault
from visiontune.data.formats import read
from visiontune.data.inspect import inspect
from visiontune.data.prepare import prepare
from visiontune.data.survey import usable
from visiontune.machine import hardware
from visiontune.training.plan import derive


@pytest.fixture
def place(tmp_path: Path, encode: Any, picture: Any) -> Path:
    """A folder with four pictures 0.png, 1.png, ..."""
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(encode(picture(i)))
    return tmp_path


def rows(*questions: str | None) -> list[dict[str, Any]]:
    return [{"image": f"{i}.png", "question": asked, "answer": "a"} for i, asked in enumerate(questions)]


def told(source: Path) -> list[Fault]:
    return [fault for fault in usable(read(source), None, 0).faults if fault.code == "rows-without-question"]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet"])
def test_blank_questions_are_told_with_their_rows_where_others_ask(place: Path, name: str) -> None:
    source = table(place / name, rows("What is it?", "", " ", "How many?"))
    (fault,) = told(source)
    first = 3 if name.endswith(".csv") else 2  # lines, the header among them
    assert (fault.severity, fault.where) == ("warning", f"{name}:{first}, {name}:{first + 1}")
    assert fault.found.startswith("2 of 4 rows without a question")


def test_null_questions_are_told_too_and_captions_are_not(place: Path) -> None:
    assert len(told(jsonl(place / "rows.jsonl", rows("What is it?", None)))) == 1
    assert told(jsonl(place / "rows.jsonl", rows(None, ""))) == [], "captions: no row asks"
    assert told(jsonl(place / "rows.jsonl", rows("What is it?", "How many?"))) == []


def test_blank_questions_beside_images_and_about_texts_are_told(place: Path, tmp_path_factory: Any) -> None:
    beside = [{"file_name": f"{i}.png", "question": asked, "text": "a"} for i, asked in enumerate(("What?", " ", ""))]
    (place / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in beside))
    assert [fault.where for fault in told(place)] == ["1.png, 2.png"]
    texts = [{"text": f"A text {i}.", "question": asked, "answer": "a"} for i, asked in enumerate(("What?", " ", ""))]
    source = jsonl(tmp_path_factory.mktemp("texts") / "texts.jsonl", texts)
    assert [fault.found[:6] for fault in told(source)] == ["2 of 3"]


def test_the_fault_stands_in_an_inspection(place: Path) -> None:
    source = jsonl(place / "rows.jsonl", rows("What is it?", "", "How many?", "Why?"))
    assert "rows-without-question" in [fault.code for fault in inspect(source).faults]


def test_a_question_that_was_never_trained_on_is_told_before_it_is_asked(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, questions, warned in (("own", ("What is it?",) * 4, True), ("captions", (None,) * 4, False)):
        source = jsonl(place / f"{name}.jsonl", [{**row, "split": "train"} for row in rows(*questions)])
        recipe = derive([prepare(source, place / name, workers=1)], [None], "tiny/smolvlm", hardware("cpu"))
        capsys.readouterr()
        tell_question(recipe)
        said = capsys.readouterr().err
        assert ("never trained on" in said and recipe.data.prompt in said and "--prompt" in said) == warned
