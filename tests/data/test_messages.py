"""A dataset written as `messages` says what it holds: read again, it is the same samples."""

import json

import datasets
import pytest

from tests.pictures import encoded, picture
from tests.planted_texts import sound, write
from visiontune.data.messages import write_messages
from visiontune.data.prepare import prepare
from visiontune.data.split import SPLITS
from visiontune.errors import DataError


@pytest.fixture
def source(tmp_path):
    """Conversations, questions, a caption, a text alone, and an id that is no file's name."""
    place = tmp_path / "source"
    place.mkdir()
    rows = sound(place)
    rows[0]["id"] = "a/b: c"
    rows[1]["messages"].insert(0, {"role": "system", "content": "Be brief."})
    rows[2]["messages"][0]["content"] = "<image>"
    rows[3]["messages"][0]["content"] = "First <image>, then?"
    rows[4] = {"id": "alone", "messages": [{"role": "user", "content": "Two?"}, {"role": "assistant", "content": "2"}]}
    (place / "more.jpg").write_bytes(encoded(picture(77), "JPEG"))
    rows[5]["images"].append("more.jpg")
    rows[5]["messages"][0]["content"] = "<image>or<image>?"
    return write(place, rows)


def contents(dataset):
    """What each sample holds, by its id."""
    found = {}
    for split in SPLITS:
        for i in range(dataset.count(split)):
            sample = dataset.sample(split, i)
            found[sample.id] = (split, sample.target, [file.data for file in sample.seen.files])
    return found


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_read_again_they_are_the_same_samples_in_the_same_splits(source, tmp_path, form):
    dataset = prepare(source, tmp_path / "out", messages=form, workers=1)
    again = prepare(dataset.path / "messages", tmp_path / "again", workers=1)
    assert again.info.left_out == []
    assert [fault.code for fault in again.info.faults] == ["rows-without-question"], "one of them is a caption"
    assert again.info.faults == dataset.info.faults
    assert contents(again) == contents(dataset)
    assert len(again) == len(dataset) == 24


def test_datasets_loads_them_with_their_images(source, tmp_path):
    dataset = prepare(source, tmp_path / "out", messages="parquet", workers=1)
    files = {split: str(dataset.path / f"messages/{split}.parquet") for split in SPLITS}
    loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))
    rows = [row for split in SPLITS for row in loaded[split]]
    assert sorted(row["id"] for row in rows) == sorted(contents(dataset))
    for row in rows:
        places = [part for turn in row["messages"] for part in turn["content"] if part["type"] == "image"]
        assert len(places) == len(row["images"])
        assert all(image.size == (24, 24) for image in row["images"])
        assert row["messages"][-1]["role"] == "assistant"
        assert all(part["text"] for turn in row["messages"] for part in turn["content"] if part["type"] == "text")


def test_they_follow_the_dataset_and_go_where_they_are_not_asked_for(source, tmp_path):
    dataset = prepare(source, tmp_path / "out", messages="jsonl", workers=1)
    lines = dataset.path / "messages/train.jsonl"
    stood = lines.stat().st_mtime_ns
    prepare(source, tmp_path / "out", messages="jsonl", workers=1)
    assert lines.stat().st_mtime_ns == stood, "nothing is written twice"
    prepare(source, tmp_path / "out", messages="parquet", workers=1)
    assert not lines.exists() and (dataset.path / "messages/train.parquet").is_file()
    rows = [json.loads(line) for line in source.read_text().splitlines()][:-1]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    smaller = prepare(source, tmp_path / "out", messages="parquet", workers=1)
    files = {split: str(smaller.path / f"messages/{split}.parquet") for split in SPLITS}
    loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))
    assert sum(map(len, loaded.values())) == len(smaller) == 23
    prepare(source, tmp_path / "out", workers=1)
    assert not (dataset.path / "messages").exists()


def test_an_interrupted_writing_leaves_no_half_folder(source, tmp_path, monkeypatch):
    from visiontune.data import messages

    dataset = prepare(source, tmp_path / "out", workers=1)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(messages, "write_json", stop)
        with pytest.raises(KeyboardInterrupt):
            write_messages(dataset, "jsonl")
    assert not (dataset.path / "messages").exists()
    assert write_messages(dataset, "jsonl").is_dir()


def test_what_is_no_image_with_a_text_and_other_forms_are_refused(source, tmp_path):
    dataset = prepare(source, tmp_path / "out", workers=1)
    with pytest.raises(DataError, match="no form 'csv'"):
        write_messages(dataset, "csv")  # type: ignore[arg-type]
    texts = tmp_path / "texts.jsonl"
    texts.write_text(json.dumps({"text": "long " * 100, "summary": "short"}) + "\n")
    with pytest.raises(DataError, match="only images with texts"):
        prepare(texts, tmp_path / "documents", messages="jsonl")
    assert not (tmp_path / "documents").exists(), "said before anything is done"
