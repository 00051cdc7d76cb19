"""Images for a teacher to label, found and sorted out; labelled images written as a dataset like any other."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import visiontune
from tests.killed import Counted, count_changes_of_the_disk, killed
from visiontune.data.dataset import Dataset
from visiontune.data.dataset_info import Provenance
from visiontune.data.objects import Objects
from visiontune.data.pseudo_labels import (
    LabelledImage,
    Place,
    looked_at,
    places_in,
    places_of,
    to_leave_out,
    write_dataset,
)
from visiontune.data.split import SPLITS
from visiontune.errors import DataError

CLASSES = ("cat", "dog")
MADE = Provenance(source="photos", format="test", created_by="visiontune", fingerprint="f")


@pytest.fixture
def prepared(classes: Callable[..., Path], tmp_path: Path) -> Dataset:
    """30 pictures with a cat each, a dog in each third, and none in each tenth."""
    folder = classes({"a": 30})
    images, annotations = [], []
    for number in range(30):
        images.append({"id": number, "file_name": f"a/{number:03d}.png", "width": 24, "height": 24})
        for category in [0] * (number % 10 > 0) + [1] * (number % 3 == 1):
            one = {"bbox": [2.5 + category, 3, 9, 8], "area": 72, "iscrowd": int(number == 7)}
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": category, **one})
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES)]
    value = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(value))
    return visiontune.prepare(folder / "annotations.json", tmp_path / "prepared", workers=1)


def rows_of(dataset: Dataset) -> Iterator[LabelledImage]:
    for split in SPLITS:
        for i, place in enumerate(places_in(dataset, split)):
            target = dataset.sample(split, i).target
            assert isinstance(target, Objects)
            yield LabelledImage(place.id, split, place.read(), target)


def test_written_again_row_by_row_a_prepared_dataset_is_the_same(prepared, tmp_path):
    made = write_dataset(tmp_path / "made", rows_of(prepared), CLASSES, provenance=MADE)
    made.verify()
    assert made.info.content_hash == prepared.info.content_hash
    assert made.info.objects == prepared.info.objects
    assert made.info.images == prepared.info.images
    assert made.info.splits == prepared.info.splits
    assert made.info.target == "objects"
    for split in SPLITS:
        assert vars(made.index(split)) == vars(prepared.index(split))
        for i in range(made.count(split)):
            assert made.sample(split, i).seen == prepared.sample(split, i).seen


def test_a_teachers_probabilities_are_read_back(prepared, tmp_path):
    (row, *_) = rows_of(prepared)
    soft = np.array([[0.7, 0.25]])
    objects = Objects(np.array([[1, 2, 3, 4.0]]), np.array([0]), (None,), np.array([False]), (1,), soft=soft)
    made = write_dataset(tmp_path / "made", [LabelledImage("x", "train", row.image, objects)], CLASSES, provenance=MADE)
    target = made.sample("train", 0).target
    assert isinstance(target, Objects) and target.soft is not None
    assert target.soft.tolist() == soft.tolist()
    assert made.info.splits == {"train": 1, "validation": 0, "test": 0}
    assert made.info.provenance == MADE


def test_a_class_that_was_looked_for_and_never_found_makes_it_another_dataset(prepared, tmp_path):
    more = write_dataset(tmp_path / "more", rows_of(prepared), (*CLASSES, "unicorn"), provenance=MADE)
    assert more.info.content_hash != prepared.info.content_hash


def test_many_images_become_several_files_in_the_same_order(prepared, tmp_path):
    made = write_dataset(tmp_path / "made", rows_of(prepared), CLASSES, provenance=MADE, shard_bytes=3000)
    assert len(made.shards("train")) > 2
    assert all(shard.rows > 1 for shard in list(made.shards("train").values())[:-1])
    made.verify()
    assert made.index("train").ids == prepared.index("train").ids
    assert made.info.content_hash == prepared.info.content_hash


def test_rows_out_of_order_and_no_rows_are_refused_and_leave_nothing(prepared, tmp_path):
    for rows in (list(rows_of(prepared))[::-1], []):
        with pytest.raises(DataError):
            write_dataset(tmp_path / "made" / "here", rows, CLASSES, provenance=MADE)
        assert list((tmp_path / "made").iterdir()) == []


def test_killed_at_any_moment_the_dataset_is_whole_or_absent(prepared, tmp_path):
    rows = list(rows_of(prepared))

    for moment in range(0, 100, 3):
        folder = tmp_path / f"out {moment}" / "made"

        def work(counted: Counted, folder: Path = folder) -> None:
            count_changes_of_the_disk(counted)
            Path.rename = counted(Path.rename)
            write_dataset(folder, rows, CLASSES, provenance=MADE, shard_bytes=3000)

        finished = killed(moment, work)
        if folder.exists():
            Dataset.open(folder).verify()
        again = write_dataset(folder, rows, CLASSES, provenance=MADE, shard_bytes=3000)
        assert again.info.content_hash == prepared.info.content_hash
        if finished:
            break
    assert moment > 5


def test_images_are_found_in_folders_and_in_prepared_datasets(prepared, classes, tmp_path):
    folder = classes({"b": 2}, "more", first_seed=100)
    (folder / "b" / "notes.txt").write_text("no image")
    places, left_out = places_of([folder])
    assert [place.id for place in places] == ["b/000.png", "b/001.png"]
    places, left_out = places_of([folder, prepared.path])
    assert len(places) == 32 and not left_out
    assert {place.id for place in places} >= {"more/b/000.png", "prepared/a/000.png"}
    assert {place.source for place in places} == {"more", "prepared"}
    by_id = {place.id: place for place in places}
    assert by_id["prepared/a/003.png"].read().data == (prepared.path.parent / "photos/a/003.png").read_bytes()
    with pytest.raises(DataError):
        places_of([tmp_path / "nowhere"])


def sorted_out(unlabelled: Path, prepared: Dataset, work: Path) -> dict[str, str]:
    """The ids that are left out, and why."""
    work.mkdir()
    places, _ = places_of([unlabelled])

    def seen(places: list[Place]):
        return places, looked_at(places, work, 1)

    held_out = [place for split in ("validation", "test") for place in places_in(prepared, split)]
    found = to_leave_out(*seen(places), held_out=seen(held_out), trained=seen(places_in(prepared, "train")))
    assert all(places[i].id == row.id for i, row in found.items())
    return {row.id: row.code for row in found.values()}


def test_what_the_student_is_judged_by_is_never_learned(prepared, picture, encode, tmp_path):
    folder = tmp_path / "new"
    folder.mkdir()
    (held,) = [i for i in prepared.index("test").ids[:1]]
    seed = int(held[2:5])
    (folder / "same.png").write_bytes(encode(picture(seed)))
    (folder / "nearly.jpg").write_bytes(encode(picture(seed), "JPEG", quality=95))
    (folder / "other.png").write_bytes(encode(picture(500)))
    left_out = sorted_out(folder, prepared, tmp_path / "work")
    assert left_out == {"same.png": "leak-across-splits", "nearly.jpg": "leak-across-splits"}


def test_broken_files_copies_and_files_that_people_labelled_are_left_out(prepared, picture, encode, tmp_path):
    folder = tmp_path / "new"
    folder.mkdir()
    seed = int(prepared.index("train").ids[0][2:5])
    (folder / "labelled.png").write_bytes(encode(picture(seed)))
    (folder / "one.png").write_bytes(encode(picture(500)))
    (folder / "two.png").write_bytes(encode(picture(500)))
    (folder / "broken.png").write_bytes(encode(picture(501))[:50])
    left_out = sorted_out(folder, prepared, tmp_path / "work")
    assert left_out == {
        "labelled.png": "labelled-already",
        "two.png": "duplicate-images",
        "broken.png": "unreadable-image",
    }


def test_nothing_is_looked_at_twice(prepared, tmp_path, monkeypatch):
    places = places_in(prepared, "train")
    first = looked_at(places, tmp_path, 1)
    monkeypatch.setattr(Place, "read", lambda place: pytest.fail("looked at again"))
    assert looked_at(places, tmp_path, 1).equals(first)
