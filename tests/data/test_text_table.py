"""Tables of texts: columns are found by their names, texts arrive character for character, nothing goes in silence."""

from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.written_tables import jsonl, table
from visiontune.data import formats
from visiontune.errors import DataError

ODD = "  Zoë\t\r\nsaid: “naïve” 中文 العربية 😀\u2028end \x00\x0b "


def faults_of(listing):
    return [(fault.code, fault.where, fault.found) for fault in listing.faults]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet"])
def test_texts_arrive_character_for_character(tmp_path, name):
    long = "word " * 40_000  # more than csv takes by default
    rows = [{"id": "a", "text": ODD, "summary": ODD}, {"id": "b", "text": long, "summary": '"x", y'}]
    for source in (table(tmp_path / name, rows), tmp_path):
        listing = formats.read(source)
        assert (listing.format, listing.seen, listing.faults) == ("text_table", "documents", [])
        assert [(row.id, row.document, row.answer) for row in listing.rows] == [("a", ODD, ODD), ("b", long, '"x", y')]
        assert {(row.prompt, row.split, row.is_label, row.images) for row in listing.rows} == {(None, None, False, ())}


@pytest.mark.parametrize("document", ["text", "article", "document", "content", "input", "source"])
@pytest.mark.parametrize("answer", ["summary", "abstract", "highlights", "target", "output", "answer"])
def test_columns_are_known_by_their_names(tmp_path, document, answer):
    (row,) = formats.read(jsonl(tmp_path / "a.jsonl", [{answer: "short", document: "long"}])).rows
    assert (row.document, row.answer) == ("long", "short")


@pytest.mark.parametrize("prompt", ["question", "instruction", "prompt"])
def test_questions_ids_and_splits_are_read(tmp_path, prompt):
    rows = [
        {"id": 7, "text": "t", "answer": "a", prompt: "q?", "split": "dev"},
        {"text": "u", "answer": "b", prompt: ""},
    ]
    first, second = formats.read(jsonl(tmp_path / "a.jsonl", rows)).rows
    assert (first.id, first.prompt, first.split) == ("7", "q?", "validation")
    assert (second.id, second.prompt, second.split) == ("a.jsonl:2", None, None)


def test_columns_that_first_stand_far_down_are_read_as_those_at_the_top(tmp_path):
    plain = [{"text": f"t{i}", "summary": "s"} for i in range(300)]
    rows = [*plain, {"text": "u", "summary": "s", "id": "own", "question": "q?", "split": "test"}]
    for name, some in (("last.jsonl", rows), ("first.jsonl", rows[::-1])):
        (row,) = (row for row in formats.read(jsonl(tmp_path / name, some)).rows if row.document == "u")
        assert (row.id, row.prompt, row.split) == ("own", "q?", "test")


def test_columns_may_be_named(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", [{"body": "long", "tldr": "short", "text": "x", "key": "k"}])
    listing = formats.read(source, {"document": "body", "answer": "tldr", "id": "key"})
    assert [(row.id, row.document, row.answer) for row in listing.rows] == [("k", "long", "short")]
    assert faults_of(listing) == [("unknown-columns", "a.jsonl", "unknown columns, not read: text")]
    with pytest.raises(DataError, match="no column called 'bdy'; the columns are body, tldr, text, key"):
        formats.read(source, {"document": "bdy", "answer": "tldr"})
    with pytest.raises(DataError, match="nothing called 'body'"):
        formats.read(source, {"body": "document"})


def test_a_table_without_a_text_or_a_target_says_what_to_type(tmp_path):
    with pytest.raises(DataError, match="no column for the answer; the columns are text, title") as caught:
        formats.read(jsonl(tmp_path / "a.jsonl", [{"text": "long", "title": "t"}]))
    assert "columns=" in caught.value.fix
    with pytest.raises(DataError, match="several columns could be the document: text, content") as caught:
        formats.read(jsonl(tmp_path / "b.jsonl", [{"text": "x", "content": "y", "summary": "z"}]))
    assert 'columns={"document": "text"}' in caught.value.fix


def test_a_column_called_source_is_the_text_only_where_no_other_is(tmp_path):
    listing = formats.read(jsonl(tmp_path / "a.jsonl", [{"text": "long", "source": "cnn", "summary": "s"}]))
    assert listing.rows[0].document == "long"
    assert faults_of(listing) == [("unknown-columns", "a.jsonl", "unknown columns, not read: source")]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_lists_of_texts_are_joined_by_a_blank_line(tmp_path, name):
    (row,) = formats.read(table(tmp_path / name, [{"text": ["one", "two\n"], "abstract": ["a", "b"]}])).rows
    assert (row.document, row.answer) == ("one\n\ntwo\n", "a\n\nb")


def test_each_row_that_cannot_be_taken_is_named_with_its_reason(tmp_path):
    good = {"text": "long", "summary": "short"}
    lines = [
        good,
        {"summary": "s"},
        {"text": None, "summary": "s"},
        {"text": "", "summary": "s"},
        {"text": " \n\t ", "summary": "s"},
        {"text": 12, "summary": "s"},
        {"text": ["a", 1], "summary": "s"},
        {"text": "t", "summary": {"a": 1}},
        {"text": "t"},
        {"text": "t", "summary": "\u3000"},
        [1, 2],
        {**good, "split": "holdout"},
        {**good, "id": 1.5},
        {**good, "question": 5},
    ]
    source = jsonl(tmp_path / "a.jsonl", lines)
    with source.open("ab") as file:
        file.write(b'{"text": "cut o\n\n{"text": "\xff", "summary": "s"}\n{"text": "\\ud800", "summary": "s"}\n')
        file.write(b"[" * 100_000 + b"\n")
    listing = formats.read(source)
    assert [row.id for row in listing.rows] == ["a.jsonl:1"]
    found = faults_of(listing)
    reasons = {int(where.split()[-1]): (code, reason) for code, where, reason in found}
    assert all(where == f"a.jsonl, line {number}" for (_, where, _), number in zip(found, sorted(reasons), strict=True))
    assert reasons.pop(15)[1].startswith("not JSON: ")
    assert reasons.pop(19)[1].startswith("not JSON: ")
    assert reasons == {
        2: ("empty-document", "there is no text"),
        3: ("empty-document", "there is no text"),
        4: ("empty-document", "text is empty"),
        5: ("empty-document", "text is blank"),
        6: ("not-a-text", "text is a number, not a text"),
        7: ("not-a-text", "text is a list with a number in it"),
        8: ("not-a-text", "summary is an object, not a text"),
        9: ("empty-answer", "there is no summary"),
        10: ("empty-answer", "summary is blank"),
        11: ("broken-line", "not a JSON object"),
        12: ("broken-line", "'holdout' is no split (train, validation, test)"),
        13: ("broken-line", "id is 1.5, not a text or a whole number"),
        14: ("not-a-text", "question is a number, not a text"),
        17: ("broken-line", "the text is not UTF-8"),
        18: ("broken-line", "the text is not UTF-8"),
    }
    assert all(fault.severity == "drop" and fault.fix for fault in listing.faults)


def test_a_file_that_begins_with_many_broken_lines_is_read_to_its_end(tmp_path):
    source = tmp_path / "a.jsonl"
    source.write_text("oops\n" * 300 + '{"text": "t", "summary": "s"}\n')
    listing = formats.read(source)
    assert [row.id for row in listing.rows] == ["a.jsonl:301"]
    assert Counter(fault.code for fault in listing.faults) == {"broken-line": 300}


def test_broken_lines_of_csv(tmp_path):
    source = tmp_path / "a.csv"
    source.write_bytes(b'text,summary\n"two\nlines",s\nt,s,more\nt\n\n\xff,s\nu,s\n')
    listing = formats.read(source)
    assert [(row.id, row.document) for row in listing.rows] == [("a.csv:2", "two\nlines"), ("a.csv:8", "u")]
    assert faults_of(listing) == [
        ("broken-line", "a.csv, line 4", "3 cells instead of 2"),
        ("broken-line", "a.csv, line 5", "1 cell instead of 2"),
        ("broken-line", "a.csv, line 7", "the text is not UTF-8"),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_the_first_line_of_a_csv_says_what_parts_the_cells(tmp_path, separator, encoding):
    rows = [["text", "summary"], ['"one, two; three\tfour"', "s"], ["Größe", "t"]]
    source = tmp_path / "a.csv"
    source.write_text("".join(separator.join(row) + "\r\n" for row in rows), encoding=encoding)
    listing = formats.read(source)
    assert [(row.document, row.answer) for row in listing.rows] == [("one, two; three\tfour", "s"), ("Größe", "t")]
    assert faults_of(listing) == []


@pytest.mark.parametrize(("header", "row"), [("text;summary,more", "a;b,c"), ("text;summary\tmore", "a;b\tc")])
def test_a_first_line_with_several_marks_is_parted_by_commas(tmp_path, header, row):
    (tmp_path / "a.csv").write_text(f"{header}\n{row}\n")
    with pytest.raises(DataError, match="the columns are text;summary"):
        formats.read(tmp_path / "a.csv")


def test_what_is_to_be_corrected_is_named_by_file_and_line(tmp_path):
    (tmp_path / "a.csv").write_text("text,summary\na,b\nc\n")
    (fault,) = formats.read(tmp_path / "a.csv").faults
    assert fault.where == "a.csv, line 3" and fault.fix == "correct line 3 of a.csv"


def test_a_quote_that_is_never_closed_would_swallow_the_file_and_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text('text,summary\nt,s\nu,"never closed\nv,s\n')
    with pytest.raises(DataError, match="never closed") as caught:
        formats.read(tmp_path / "a.csv")
    assert caught.value.where.endswith("a.csv, line 3")


def test_a_column_twice_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("text,text,summary\na,b,c\n")
    with pytest.raises(DataError, match="several columns are called 'text'"):
        formats.read(tmp_path / "a.csv")


def test_a_broken_parquet_file_is_refused_by_name(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="no whole Parquet file") as caught:
        formats.read(tmp_path)
    assert caught.value.where.endswith("a.parquet")


def test_parquet_text_that_is_not_utf8_leaves_out_its_row_alone(tmp_path):
    texts = pa.array([b"good", b"\xff bad", b"fine"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": texts, "summary": ["a", "b", "c"]}), tmp_path / "a.parquet")
    listing = formats.read(tmp_path / "a.parquet")
    assert [row.document for row in listing.rows] == ["good", "fine"]
    assert faults_of(listing) == [("broken-line", "a.parquet, row 2", "the text is not UTF-8")]


def test_files_and_folders_called_like_a_split_give_it(tmp_path):
    (tmp_path / "test").mkdir()
    for name in ("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "val.jsonl", "test/x.jsonl"):
        jsonl(tmp_path / name, [{"text": name, "summary": "s"}])
    splits = {row.document: row.split for row in formats.read(tmp_path).rows}
    assert splits == {
        "train-00000-of-00002.jsonl": "train",
        "train-00001-of-00002.jsonl": "train",
        "val.jsonl": "validation",
        "test/x.jsonl": "test",
    }
    (row,) = formats.read(tmp_path / "val.jsonl").rows  # one file alone is split by us
    assert row.split is None


def test_folders_at_any_depth_give_the_split_the_innermost_first(tmp_path):
    expected = {
        "data/train/0000.jsonl": "train",
        "default/test/a/0000.jsonl": "test",
        "train/x/val/0.jsonl": "validation",
    }
    for name in expected:
        (tmp_path / name).parent.mkdir(parents=True)
        jsonl(tmp_path / name, [{"text": name, "summary": "s"}])
    assert {row.document: row.split for row in formats.read(tmp_path).rows} == expected


def test_ids_that_begin_anew_in_each_file_are_told_apart_and_nothing_is_lost(tmp_path):
    jsonl(tmp_path / "train.jsonl", [{"id": i, "text": f"t{i}", "summary": "s"} for i in range(3)])
    jsonl(tmp_path / "test.jsonl", [{"id": i, "text": f"u{i}", "summary": "s"} for i in range(2)])
    rows = formats.read(tmp_path).rows
    expected = ["2", "test.jsonl:0", "test.jsonl:1", "train.jsonl:0", "train.jsonl:1"]
    assert [row.id for row in rows] == expected


def test_hidden_files_and_links_that_lead_outside_are_not_read(tmp_path):
    jsonl(tmp_path / "secret.jsonl", [{"text": "x", "summary": "s"}])
    (tmp_path / "data").mkdir()
    jsonl(tmp_path / "data/a.jsonl", [{"text": "x", "summary": "s"}])
    jsonl(tmp_path / "data/.b.jsonl", [{"text": "x", "summary": "s"}])
    (tmp_path / "data/link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    listing = formats.read(tmp_path / "data")
    assert [row.id for row in listing.rows] == ["a.jsonl:1"]
    assert [fault.code for fault in listing.faults] == ["outside-folder"]


def test_an_empty_table_is_said(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n")
    (tmp_path / "b.csv").write_text("")
    (tmp_path / "c.csv").write_text("text,summary\n")
    assert [(fault.code, fault.where) for fault in formats.read(tmp_path).faults] == [
        ("empty-table", "a.jsonl"),
        ("empty-table", "b.csv"),
        ("empty-table", "c.csv"),
    ]


def test_what_is_no_table_says_what_would_be(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    for source in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(DataError) as caught:
            formats.read(source)
        assert ".jsonl, .csv or .parquet" in caught.value.fix
    with pytest.raises(DataError, match="no such folder or file"):
        formats.read(tmp_path / "nowhere.jsonl")
