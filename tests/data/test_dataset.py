"""A dataset on disk: what stands in it comes back unchanged, from any process, and what is broken is refused."""

import json
import multiprocessing
import os
import pickle
import threading
from itertools import pairwise

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from visiontune.data.dataset import Dataset
from visiontune.data.dataset_info import SCHEMA_VERSION
from visiontune.data.prepare import prepare
from visiontune.data.split import SPLITS
from visiontune.data.stored_rows import GROUP_BYTES, StoredRow, content_hash, content_of, write_shard
from visiontune.errors import DataError


@pytest.fixture
def source(classes):
    return classes({"cat": 20, "dog": 20, "cow": 10})


@pytest.fixture
def dataset(source, tmp_path):
    return prepare(source, tmp_path / "out", shard_bytes=20_000)


def every_sample(dataset):
    return [dataset.sample(split, i) for split in SPLITS for i in range(dataset.count(split))]


def test_every_file_comes_back_once_and_byte_for_byte(dataset, source):
    samples = {sample.id: sample for sample in every_sample(dataset)}
    files = {str(path.relative_to(source)): path for path in source.rglob("*.png")}
    assert samples.keys() == files.keys()
    assert len(dataset) == len(files) == 50
    for name, path in files.items():
        (image,) = samples[name].seen.files
        assert (image.data, image.path) == (path.read_bytes(), name)
        assert samples[name].target.answer == path.parent.name


def test_the_index_agrees_with_the_samples(dataset):
    for split in SPLITS:
        index = dataset.index(split)
        assert len(index.ids) == dataset.count(split)
        for i, name in enumerate(index.ids):
            sample = dataset.sample(split, i)
            assert (sample.id, sample.target.answer, sample.target.prompt) == (name, index.answers[i], index.prompts[i])
        assert set(map(tuple, index.widths)) == set(map(tuple, index.heights)) == {(24,)}


def test_indices_outside_and_unknown_splits_are_refused(dataset):
    for i in (-1, dataset.count("test")):
        with pytest.raises(IndexError):
            dataset.sample("test", i)
    with pytest.raises(DataError, match="no split 'dev'"):
        dataset.count("dev")


def test_the_classes_are_mixed_on_disk(dataset):
    answers = dataset.index("train").answers
    changes = sum(a != b for a, b in pairwise(answers))
    assert changes > len(answers) / 3


def test_it_survives_pickling_forking_and_threads(dataset):
    expected = [sample.id for sample in every_sample(dataset)]  # files are open from here on
    assert [sample.id for sample in every_sample(pickle.loads(pickle.dumps(dataset)))] == expected
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for ids in pool.map(ids_of, [dataset] * 4):
            assert ids == expected
    results = []
    threads = [threading.Thread(target=lambda: results.append([s.id for s in every_sample(dataset)])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 4


def ids_of(dataset):
    return [sample.id for sample in every_sample(dataset)]


def test_an_open_dataset_read_in_a_forked_child_is_read_rightly(dataset):
    expected = ids_of(dataset)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    def child():
        ids = ids_of(dataset)
        queue.put(ids if dataset._reader.process == os.getpid() else "the parent's open files were used")

    children = [context.Process(target=child) for _ in range(2)]
    for child in children:
        child.start()
    answers = [queue.get() for _ in children]
    for child in children:
        child.join()
    assert answers == [expected] * 2


def test_the_hugging_face_library_shows_images(dataset, tmp_path):
    name = next(iter(dataset.shards("train")))
    table = datasets.load_dataset(
        "parquet", data_files=str(dataset.path / name), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert table.features["images"] == datasets.List(datasets.Image())
    assert table[0]["images"][0].size == (24, 24)
    assert table[0]["id"] == dataset.sample("train", 0).id


def test_row_groups_are_small_and_images_are_stored_as_they_are(tmp_path):
    data = np.random.default_rng(0).bytes(100_000)
    rows = [StoredRow(str(i), [(data, "x.png")], None, "x", [1], [1], "c") for i in range(12)]
    info = write_shard(tmp_path / "shard.parquet", rows)
    metadata = pq.read_metadata(tmp_path / "shard.parquet")
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [5, 5, 2]
    assert 5 * len(data) <= GROUP_BYTES
    assert (info.rows, info.bytes) == (12, (tmp_path / "shard.parquet").stat().st_size)
    stored = {metadata.row_group(0).column(i).path_in_schema: metadata.row_group(0).column(i) for i in range(10)}
    assert stored["images.list.element.bytes"].compression == "UNCOMPRESSED"


def test_the_cache_of_row_groups_is_bounded(tmp_path, monkeypatch, dataset):
    monkeypatch.setattr("visiontune.data.dataset.CACHE_BYTES", 1)
    every_sample(dataset)
    assert len(dataset._reader._groups) == 1


def test_what_is_no_dataset_is_refused(tmp_path, source):
    with pytest.raises(DataError, match="not a prepared dataset"):
        Dataset.open(source)
    with pytest.raises(DataError, match="no such folder"):
        Dataset.open(tmp_path / "nowhere")


def changed_info(dataset, **changes):
    file = dataset.path / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_newer_dataset_asks_for_an_upgrade(dataset):
    changed_info(dataset, schema_version=SCHEMA_VERSION + 1, brand_new="yes")
    with pytest.raises(DataError, match="newer visiontune") as caught:
        Dataset.open(dataset.path)
    assert "upgrade" in caught.value.fix


def test_an_older_dataset_asks_to_be_prepared_again(dataset):
    changed_info(dataset, schema_version=1)
    with pytest.raises(DataError, match="older visiontune") as caught:
        Dataset.open(dataset.path)
    assert "prepare it again" in caught.value.fix


def test_unknown_keys_and_broken_json_are_refused(dataset):
    changed_info(dataset, surprise=1)
    with pytest.raises(DataError, match="form") as caught:
        Dataset.open(dataset.path)
    assert "surprise" in caught.value.where
    (dataset.path / "dataset.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        Dataset.open(dataset.path)


def test_missing_shortened_and_changed_files_are_noticed(dataset):
    dataset.verify()
    shard = dataset.path / next(iter(dataset.info.files))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    Dataset.open(dataset.path)
    with pytest.raises(DataError, match="changed"):
        dataset.verify()
    shard.write_bytes(data[:-1])
    with pytest.raises(DataError, match="bytes instead of"):
        Dataset.open(dataset.path)
    shard.unlink()
    with pytest.raises(DataError, match="is missing"):
        Dataset.open(dataset.path)


def test_the_content_hash_knows_split_id_and_content_but_no_order():
    rows = [("train", "a", "1"), ("test", "b", "2")]
    assert content_hash(rows) == content_hash(rows[::-1])
    for changed in (("test", "a", "1"), ("train", "c", "1"), ("train", "a", "2")):
        assert content_hash([changed, rows[1]]) != content_hash(rows)
    assert content_of(["x"], None, "cat") != content_of(["x"], "", "cat") != content_of(["x"], None, "dog")
