"""Known corpora, from small local files of their own form: the right columns arrive, and each can be prepared."""

import json

import pytest

from visiontune.data.corpora import CORPORA, open_corpus
from visiontune.data.prepare import prepare
from visiontune.data.split import SPLITS
from visiontune.errors import DataError, MachineError


def question(i):
    return {"id": f"q{i}", "context": f"Contexte {i}.", "question": f"Où {i} ?", "title": "t"}


def natural(i):
    answers = [{"text": []}, {"text": ["two words", "more"]}] if i else [{"text": []}]
    return {
        "id": f"n{i}",
        "document": {"title": "t", "tokens": {"token": ["<p>", f"Page{i}", "one", "</p>"], "is_html": [1, 0, 0, 1]}},
        "question": {"text": f"what {i}", "tokens": ["what"]},
        "annotations": {"id": ["1", "2"][: len(answers)], "short_answers": answers},
    }


def marco(i):
    return {
        "query_id": i,
        "query": f"why {i}",
        "answers": [f"because {i}", "other"],
        "passages": {"is_selected": [0, 1], "passage_text": [f"First {i}.", "Second."], "url": ["a", "b"]},
    }


# Name: (a row of the corpus's own form, and what is to be seen, asked and written)
SCHEMAS = {
    "mlsum-fr": (
        lambda i: {
            "text": f"Article {i}",
            "summary": f"Résumé {i}",
            "topic": "x",
            "url": "u",
            "title": "t",
            "date": "d",
        },
        ("Article 1", None, "Résumé 1"),
    ),
    "cnn-dailymail": (
        lambda i: {"article": f"News {i}", "highlights": f"Point {i}\nOther", "id": f"a{i}"},
        ("News 1", None, "Point 1\nOther"),
    ),
    "xsum": (lambda i: {"document": f"D{i}", "summary": f"S{i}", "id": str(i)}, ("D1", None, "S1")),
    "arxiv": (lambda i: {"article": f"Paper {i}", "abstract": f"A{i}"}, ("Paper 1", None, "A1")),
    "pubmed": (lambda i: {"article": f"Paper {i}", "abstract": f"A{i}"}, ("Paper 1", None, "A1")),
    "billsum": (lambda i: {"text": f"Act {i}", "summary": f"S{i}", "title": "t"}, ("Act 1", None, "S1")),
    "samsum": (lambda i: {"id": f"s{i}", "dialogue": f"A: {i}\r\nB: hi", "summary": "S"}, ("A: 1\r\nB: hi", None, "S")),
    "xlsum-chinese_simplified": (
        lambda i: {"id": f"x{i}", "url": "u", "title": "t", "summary": f"S{i}", "text": f"Text {i}"},
        ("Text 1", None, "S1"),
    ),
    "natural-questions": (natural, ("Page1 one", "what 1", "two words, more")),
    "ms-marco": (marco, ("First 1.\n\nSecond.", "why 1", "because 1")),
    "squad-fr": (
        lambda i: question(i) | {"answers": {"text": [f"ici {i}", "là"], "answer_start": [0, 1]}},
        ("Contexte 1.", "Où 1 ?", "ici 1"),
    ),
    "piaf": (
        lambda i: question(i) | {"answers": {"text": [f"ici {i}"], "answer_start": [0]}},
        ("Contexte 1.", "Où 1 ?", "ici 1"),
    ),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def table(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_columns_of_each_corpus_arrive(tmp_path, name):
    make, expected = SCHEMAS[name]
    source = table(tmp_path / "theirs.jsonl", [make(i) for i in range(12)])
    dataset = prepare(open_corpus(name, tmp_path / "ours", files={"train": source}), tmp_path / "out")
    samples = [dataset.sample(split, i) for split in SPLITS for i in range(dataset.count(split))]
    assert expected in {(one.seen.text, one.target.prompt, one.target.answer) for one in samples}
    left_out = [(row.code, row.found) for row in dataset.info.left_out]
    assert left_out == ([("empty-answer", "there is no answer")] if name == "natural-questions" else [])
    assert len(samples) + len(left_out) == 12


def test_every_corpus_has_a_test_of_its_form():
    assert {name.split("-")[0] for name in CORPORA} == {name.split("-")[0] for name in SCHEMAS}
    assert len([name for name in CORPORA if name.startswith("xlsum-")]) == 45
    assert all(corpus.licence and set(corpus.splits) <= set(SPLITS) for corpus in CORPORA.values())


def test_the_list_says_where_each_corpus_lies_what_it_holds_and_its_licence():
    french = CORPORA["mlsum-fr"].to_json()
    assert (french["hub"], french["config"], french["language"]) == ("reciTAL/mlsum", "fr", "French")
    assert french["columns"] == {"document": "text", "answer": "summary"}
    for corpus in CORPORA.values():
        said = corpus.to_json()
        assert all(isinstance(column, str) and column for column in said["columns"].values())
        assert said["licence"] and said["language"]
    assert CORPORA["squad-fr"].to_json()["columns"]["prompt"] == "question"
    assert CORPORA["xlsum-scottish_gaelic"].to_json()["language"] == "Scottish Gaelic"


def test_splits_stay_and_a_limit_takes_the_first_rows(tmp_path):
    make = SCHEMAS["xsum"][0]
    files = {
        split: table(tmp_path / f"{split}.jsonl", [make(i + 100 * k) for i in range(9)])
        for k, split in enumerate(SPLITS)
    }
    folder = open_corpus("xsum", tmp_path / "ours", files=files, limit=4)
    assert prepare(folder, tmp_path / "out").info.splits == {"train": 4, "validation": 4, "test": 4}


def test_what_was_written_is_not_read_again(tmp_path):
    source = table(tmp_path / "theirs.jsonl", [SCHEMAS["xsum"][0](i) for i in range(3)])
    open_corpus("xsum", tmp_path / "ours", files={"train": source})
    source.unlink()
    open_corpus("xsum", tmp_path / "ours", files={"train": source})
    with pytest.raises(DataError, match="no such table"):
        open_corpus("xsum", tmp_path / "other", files={"train": source})
    assert not [path for path in (tmp_path / "other").rglob("*") if path.is_file()]


def test_an_unknown_corpus_and_other_columns_are_said(tmp_path):
    with pytest.raises(DataError, match="no corpus called 'xum'") as caught:
        open_corpus("xum", tmp_path)
    assert "xsum" in caught.value.fix
    source = table(tmp_path / "theirs.jsonl", [{"body": "x", "summary": "y", "id": "1"}])
    with pytest.raises(DataError, match="no document"):
        open_corpus("xsum", tmp_path / "ours", files={"train": source})


def test_without_a_connection_the_way_out_is_named(tmp_path, monkeypatch):
    def offline(*_arguments, **_named):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr("datasets.load_dataset", offline)
    with pytest.raises(MachineError, match="Couldn't reach") as caught:
        open_corpus("cnn-dailymail", tmp_path / "ours")
    assert "local files" in caught.value.fix


def test_a_corpus_is_prepared_by_its_name_as_people_write_it(tmp_path, monkeypatch):
    from visiontune import api
    from visiontune.data import corpora

    fetched = []

    def fetch(name, folder, *, limit=None):
        fetched.append((name, folder.name, limit))
        folder.mkdir()
        (folder / "texts.jsonl").write_text('{"id": "a", "text": "A long text.", "summary": "Short."}\n')
        return folder

    monkeypatch.setattr(corpora, "open_corpus", fetch)
    dataset = api.prepare("mlsum:fr", tmp_path / "data", limit=3)
    assert fetched == [("mlsum-fr", "data.corpora", 3)] and len(dataset) == 1
    assert corpora.known_corpus("cnn_dailymail") == "cnn-dailymail" and corpora.known_corpus("photos") is None
