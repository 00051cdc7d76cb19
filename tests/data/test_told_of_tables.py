"""What is said of tables of images and texts that are not as they should be: where it stands, and what to do."""

import json

import pytest

from tests.written_tables import jsonl
from visiontune.data import formats
from visiontune.errors import DataError

SAID = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A blob."}]


@pytest.fixture
def place(tmp_path, encode, picture):
    """A folder with four pictures 00.png, 01.png, ... in `images/`."""
    (tmp_path / "images").mkdir()
    for i in range(4):
        (tmp_path / f"images/{i:02d}.png").write_bytes(encode(picture(i)))
    return tmp_path


def test_rows_of_a_json_array_are_called_rows_though_the_file_is_one_line(place):
    rows = [{"image": f"images/{i:02d}.png", "answer": answer} for i, answer in enumerate(("a", "", {"x": 1}))]
    source = place / "rows.json"
    source.write_text(json.dumps(rows))
    assert [fault.where for fault in formats.read(source).faults if fault.severity == "drop"] == [
        "rows.json, row 2",
        "rows.json, row 3",
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('[{"image": "images/00.png", "answer": "a"},]', "line 1 column"),
        ('[\n{"image": "images/00.png", "answer": "a"}', "line 2 column"),
        ('{"images": [', "line 1 column"),
        ("", "line 1 column 1"),
    ],
)
def test_a_json_file_that_is_broken_is_called_so_with_its_place(place, text, found):
    source = place / "rows.json"
    source.write_text(text)
    with pytest.raises(DataError, match="this is not JSON") as caught:
        formats.read(source)
    assert found in caught.value.found and caught.value.where == str(source)
    assert caught.value.fix is not None and len(caught.value.fix) < 100


def test_of_several_answers_none_is_chosen_and_the_fix_says_to_write_one(place):
    rows = [{"image": "images/00.png", "answer": "a"}, {"image": "images/01.png", "answer": ["a", "b"]}]
    (fault,) = [f for f in formats.read(jsonl(place / "rows.jsonl", rows)).faults if f.severity == "drop"]
    assert fault.found == "answer is a list of 2, not a text"
    assert "one text" in fault.fix and "list" not in fault.fix


@pytest.mark.parametrize("prompt", ["question", "prefix"])
@pytest.mark.parametrize("cell", [None, ""])
def test_questions_whose_cell_for_the_image_is_empty_are_told_where_others_show_one(place, cell, prompt):
    answer = {"question": "answer", "prefix": "suffix"}[prompt]
    rows = [{"image": f"images/{i:02d}.png", prompt: f"{i}?", answer: f"{i}."} for i in range(4)]
    rows[1]["image"] = cell
    del rows[2]["image"]
    rows[3]["image"] = []
    listing = formats.read(jsonl(place / "rows.jsonl", rows))
    assert [len(row.images) for row in listing.rows] == [1, 0, 0, 0], "they are kept"
    (fault,) = listing.faults
    assert (fault.code, fault.severity) == ("rows-without-image", "warning")
    assert fault.where == "rows.jsonl:2, rows.jsonl:3" and "2 of 4 rows" in fault.found
    for row in rows:
        row["image"] = cell
    assert formats.read(jsonl(place / "rows.jsonl", rows)).faults == [], "a table of questions alone"


def test_conversations_without_images_beside_others_are_no_fault(place):
    rows = [{"messages": SAID, "images": ["images/00.png"]}, {"messages": SAID, "images": None}]
    assert formats.read(jsonl(place / "rows.jsonl", rows)).faults == []
