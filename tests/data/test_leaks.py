"""Several datasets, each split by itself: what one trains on and another holds out is found."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import visiontune
from visiontune.data.dataset import Dataset
from visiontune.data.leaks import refuse_leaks
from visiontune.errors import DataError

Prepared = Callable[..., Dataset]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """`prepared(name, numbers, texts)`: images of noise with these numbers, each with an answer of the dataset's own,
    or as documents."""
    home = tmp_path_factory.mktemp("datasets")

    def make(name: str, numbers: range, *, texts: bool = False) -> Dataset:
        folder = home / name
        folder.mkdir()
        rows = []
        for number in numbers:
            noise = np.random.default_rng(number).integers(0, 256, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / f"{number:03d}.png")
            words = " ".join(f"word{n}" for n in np.random.default_rng(number).integers(0, 10_000, 60))
            seen = {"text": words} if texts else {"image": f"{number:03d}.png"}
            rows.append({"id": f"{name}-{number:03d}", **seen, "answer": f"{name} says {number}"})
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return visiontune.prepare(folder / "rows.jsonl", home / f"{name}-data", workers=1)

    return make


@pytest.fixture(scope="module")
def pair(prepared: Prepared) -> tuple[Dataset, Dataset]:
    """Two datasets that share 40 images, each with answers of its own."""
    return prepared("first", range(60)), prepared("second", range(20, 80))


def numbers(dataset: Dataset, *splits: str) -> set[str]:
    return {name.rpartition("-")[2] for split in splits for name in dataset.index(split).ids}


def shared(first: Dataset, second: Dataset) -> set[str]:
    held = "validation", "test"
    return (numbers(first, "train") & numbers(second, *held)) | (numbers(second, "train") & numbers(first, *held))


def test_images_that_one_dataset_learns_and_another_holds_out_are_counted_and_named(
    pair: tuple[Dataset, Dataset],
) -> None:
    with pytest.raises(DataError, match=r"train in .* = .*in ") as refused:
        refuse_leaks(pair)
    leaks = shared(*pair)
    assert len(leaks) > 3 and f"{len(leaks)}, the first" in refused.value.found
    assert f"and {len(leaks) - 3} more" in refused.value.found
    named = [one for one in leaks if f"first-{one}" in refused.value.found and f"second-{one}" in refused.value.found]
    assert len(named) == 3
    assert str(pair[0].path) in str(refused.value.where) and "visiontune prepare" in str(refused.value.fix)


def test_documents_are_compared_as_images_are(prepared: Prepared) -> None:
    both = prepared("papers", range(60), texts=True), prepared("reports", range(20, 80), texts=True)
    with pytest.raises(DataError, match="The same documents") as refused:
        refuse_leaks(both)
    assert f"{len(shared(*both))}, the first" in refused.value.found


def test_what_shares_no_image_or_is_the_same_dataset_is_left_alone(
    prepared: Prepared, pair: tuple[Dataset, Dataset]
) -> None:
    refuse_leaks([pair[0], prepared("third", range(100, 140))])
    refuse_leaks([pair[0], pair[0]])
    refuse_leaks([pair[0]])


def test_datasets_that_were_written_without_hashes_are_compared_too(
    pair: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    older = tmp_path / "older"
    shutil.copytree(pair[1].path, older)
    for file in older.glob("*.parquet"):
        pq.write_table(pq.read_table(file).drop_columns(["seen"]), file)
    with pytest.raises(DataError) as refused:
        refuse_leaks([pair[0], Dataset(older, pair[1].info)])
    assert f"{len(shared(*pair))}, the first" in refused.value.found


def test_training_on_such_datasets_is_refused_before_a_run_is_planned(
    pair: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="held out in another"):
        visiontune.train(*(one.path for one in pair), model="tiny/smolvlm", out=tmp_path / "run")
    assert not (tmp_path / "run/recipe.yaml").exists()
