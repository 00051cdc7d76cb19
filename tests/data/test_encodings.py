"""A table that is not UTF-8 is one fault with its remedy; lines are listed in their order."""

import shlex
import subprocess
from pathlib import Path

import pytest

from visiontune.data import formats
from visiontune.data.faults import broken_line, ordered
from visiontune.errors import DataError

ROWS = "id,text,summary\n" + "".join(f"{i},Un café à côté numéro {i},été\n" for i in range(12))


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_table_in_another_encoding_is_one_fault_and_what_is_typed_mends_it(tmp_path: Path, encoding: str) -> None:
    source = tmp_path / "my rows.csv"
    source.write_bytes(ROWS.encode(encoding))
    with pytest.raises(DataError, match="the file is not UTF-8") as caught:
        formats.read(source)
    fix = str(caught.value.fix)
    assert caught.value.where == str(source) and "`CSV UTF-8`" in fix
    typed, new = fix.split("or: ", 1)[1].split(" > ")
    (tmp_path / shlex.split(new)[0]).write_bytes(
        subprocess.run(shlex.split(typed), cwd=tmp_path, check=True, capture_output=True).stdout
    )
    assert len(formats.read(tmp_path / "my rows-utf8.csv").rows) == 12


def test_json_lines_in_another_encoding_are_one_fault_too(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(
        "".join(f'{{"text": "é{i}", "summary": "à"}}\n' for i in range(3)).encode("latin-1")
    )
    with pytest.raises(DataError, match="3 lines are not"):
        formats.read(tmp_path / "rows.jsonl")


def test_a_broken_line_in_a_file_of_utf8_is_left_out_alone(tmp_path: Path) -> None:
    lines = ROWS.encode().splitlines(keepends=True)
    for i in (3, 5, 11):
        lines[i] = lines[i].decode().encode("latin-1")
    (tmp_path / "rows.csv").write_bytes(b"".join(lines))
    listing = formats.read(tmp_path / "rows.csv")
    assert len(listing.rows) == 9
    assert [fault.where for fault in ordered(listing.faults)] == [f"rows.csv, line {i}" for i in (4, 6, 12)]


def test_half_a_character_in_a_json_table_is_the_fault_of_its_row(tmp_path: Path) -> None:
    answers = (r"a \ud83d", r"a \ud83d\ude00", "a")
    rows = ", ".join(f'{{"question": "q", "answer": "{answer}"}}' for answer in answers)
    (tmp_path / "rows.json").write_text(f"[{rows}]")
    listing = formats.read(tmp_path / "rows.json")
    assert [row.answer for row in listing.rows] == ["a \U0001f600", "a"]
    assert [(fault.where, fault.found) for fault in listing.faults] == [("rows.json, row 1", "the text is not UTF-8")]


def test_faults_are_listed_in_the_order_of_their_lines() -> None:
    listed = ordered(broken_line("rows.csv", line, "odd") for line in (10, 2, 100, 1))
    assert [fault.where for fault in listed] == [f"rows.csv, line {line}" for line in (1, 2, 10, 100)]
