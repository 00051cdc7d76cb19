"""Several sources as one dataset: all their rows, told apart, in whatever order they are named, and added later too."""

import json

import pytest

import visiontune
from visiontune.data.prepare import prepare
from visiontune.data.sources import Source, names
from visiontune.data.split import SPLITS
from visiontune.errors import DataError


@pytest.fixture
def texts(tmp_path):
    """`texts("name.jsonl", 5, "news")`: a table of five short texts about something, with ids 0, 1, ..."""

    def make(name, count, about):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [
            {"id": str(i), "text": f"{about} number {i} of {count} is here", "summary": f"{i}"} for i in range(count)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return make


def places(dataset):
    return {name: split for split in SPLITS for name in dataset.index(split).ids}


def by_text(dataset):
    return {dataset.sample(split, i).seen.text: split for split in SPLITS for i in range(dataset.count(split))}


def test_the_ids_of_several_sources_say_which_and_of_one_stay_as_they_are(texts, tmp_path):
    news, laws = texts("news.jsonl", 6, "news"), texts("laws.jsonl", 4, "laws")
    dataset = prepare([news, laws], tmp_path / "both")
    expected = {f"news.jsonl/{i}" for i in range(6)} | {f"laws.jsonl/{i}" for i in range(4)}
    assert places(dataset).keys() == expected
    provenance = dataset.info.provenance
    assert (provenance.source, provenance.sources) == (
        "laws.jsonl, news.jsonl",
        {"laws.jsonl": 4, "news.jsonl": 6},
    )
    alone = prepare([news], tmp_path / "alone")
    assert places(alone).keys() == set("012345") and alone.info.provenance.sources == {"news.jsonl": 6}
    assert alone.info == prepare(news, tmp_path / "same").info


def test_sources_in_another_order_are_the_same_dataset(texts, tmp_path):
    sources = [texts(f"{name}.jsonl", 5, name) for name in ("a", "b", "c")]
    one, other = prepare(sources, tmp_path / "1"), prepare(sources[::-1], tmp_path / "2")
    assert one.info == other.info
    assert [path.read_bytes() for path in sorted(one.path.iterdir())] == [
        path.read_bytes() for path in sorted(other.path.iterdir())
    ]


def test_a_source_added_later_moves_no_row_and_may_bring_known_ones(texts, tmp_path):
    news = texts("news.jsonl", 20, "news")
    before = by_text(prepare(news, tmp_path / "out"))
    after = by_text(prepare([texts("laws.jsonl", 12, "laws"), news], tmp_path / "out"))
    assert len(after) == 32 and after.items() >= before.items()
    again = by_text(prepare(texts("laws.jsonl", 12, "laws"), tmp_path / "out"))
    assert again.items() <= after.items() and len(again) == 12


def test_images_of_several_folders_keep_their_copies_apart(classes, tmp_path):
    first = classes({"cat": 5, "dog": 5}, name="mine")
    second = classes({"cat": 5}, name="yours")  # the same five cats
    dataset = prepare([first, second], tmp_path / "out")
    assert len(dataset) == 15 and dataset.info.labels == {"cat": 10, "dog": 5}
    assert {fault.code for fault in dataset.info.faults} >= {"duplicate-images"}
    found = places(dataset)
    assert all(found[f"mine/cat/{i:03d}.png"] == found[f"yours/cat/{i:03d}.png"] for i in range(5))


def test_sources_of_the_same_name_are_called_by_the_folders_above_them(texts, tmp_path):
    a, b, c = texts("x/a/t.jsonl", 1, "x"), texts("y/a/t.jsonl", 1, "y"), texts("z.jsonl", 1, "z")
    assert names([Source(a), Source(b), Source(c)]) == ["x/a/t.jsonl", "y/a/t.jsonl", "z.jsonl"]
    assert names([Source(a), Source(b, called="xsum")]) == ["t.jsonl", "xsum"]
    assert len(prepare([a, b], tmp_path / "out")) == 2


@pytest.mark.parametrize("bad", ["missing", "empty", "twice", "image", "columns"])
def test_a_bad_source_is_named(texts, classes, tmp_path, bad):
    good, wrong = texts("good.jsonl", 3, "good"), tmp_path / "wrong.jsonl"
    if bad == "empty":
        wrong.write_text("")
    elif bad == "twice":
        wrong = good
    elif bad == "image":
        wrong = classes({"cat": 2}, name="wrong")
    elif bad == "columns":
        wrong.write_text('{"body": "x", "summary": "y"}\n')
    with pytest.raises(DataError) as caught:
        prepare([good, wrong], tmp_path / "out")
    assert str(wrong) in str(caught.value) and not (tmp_path / "out").exists()


def test_faults_of_a_source_name_it_and_its_left_out_rows_are_counted(texts, tmp_path):
    news, laws = texts("news.jsonl", 5, "news"), texts("laws.jsonl", 5, "laws")
    laws.write_text(laws.read_text() + '{"text": "cut o')
    dataset = prepare([news, laws], tmp_path / "out")
    assert [row.id for row in dataset.info.left_out] == ["laws.jsonl: laws.jsonl, line 6"]
    with pytest.raises(DataError, match=r"laws\.jsonl, line 6"):
        prepare([news, laws], tmp_path / "strict", strict=True)


def test_corpora_and_own_tables_are_mixed_and_columns_are_those_of_the_tables(texts, tmp_path, monkeypatch):
    own = tmp_path / "own.jsonl"
    own.write_text('{"body": "Mine.", "tldr": "M"}\n')
    asked = []

    def fetch(name, folder, *, limit=None):
        asked.append(name)
        return texts(f"fetched/{name}-first-{limit}/train.jsonl", 3, name).parent

    monkeypatch.setattr("visiontune.data.corpora.open_corpus", fetch)
    columns = {"document": "body", "answer": "tldr"}
    dataset = visiontune.prepare(["mlsum:fr", own, "xsum"], tmp_path / "data", columns=columns, limit=50)
    assert sorted(asked) == ["mlsum-fr", "xsum"]
    assert dataset.info.provenance.sources == {"mlsum-fr": 3, "own.jsonl": 1, "xsum": 3}
    asked.clear()
    with pytest.raises(DataError, match="no such") as caught:
        visiontune.prepare(["xsum", tmp_path / "nothing"], tmp_path / "other")
    assert str(tmp_path / "nothing") in str(caught.value) and not asked  # said before anything is fetched
