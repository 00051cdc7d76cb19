"""Preparing: the same input gives the same dataset however it is interrupted; nothing is lost, repeated or hidden."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.killed import Counted, count_changes_of_the_disk, killed
from visiontune.data.dataset import Dataset
from visiontune.data.images import decode_with_facts
from visiontune.data.prepare import prepare
from visiontune.data.split import SPLITS
from visiontune.data.stored_rows import write_shard
from visiontune.data.workers import parallel
from visiontune.errors import DataError, MachineError

SMALL = {"shard_bytes": 8_000, "workers": 1}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr("visiontune.data.scan.CHUNK_ROWS", 16)


def places(dataset):
    return {name: split for split in SPLITS for name in dataset.index(split).ids}


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_number_of_workers_changes_nothing(classes, tmp_path):
    source = classes({"cat": 30, "dog": 30})
    for workers in (1, 2):
        prepare(source, tmp_path / str(workers), workers=workers, shard_bytes=8_000)
    assert files(tmp_path / "1") == files(tmp_path / "2")


def test_the_content_hash_does_not_depend_on_sharding(classes, tmp_path):
    source = classes({"cat": 30, "dog": 30})
    one = prepare(source, tmp_path / "one")
    many = prepare(source, tmp_path / "many", shard_bytes=5_000)
    assert len(many.info.files) > len(one.info.files) == 3
    assert many.info.content_hash == one.info.content_hash
    assert one.info.splits == {"train": 42, "validation": 9, "test": 9}


def test_dataset_json_says_where_the_data_came_from_but_not_the_path(classes, tmp_path):
    info = prepare(classes({"10": 4, "9": 5}), tmp_path / "out", seed=3).info
    assert (info.provenance.source, info.provenance.format, info.split_seed) == ("photos", "image_folder", 3)
    assert info.provenance.created_by.startswith("visiontune ")
    assert list(info.labels.items()) == [("9", 5), ("10", 4)]
    assert str(tmp_path) not in (tmp_path / "out/dataset.json").read_text()


def test_nothing_but_the_dataset_is_left(classes, tmp_path):
    dataset = prepare(classes({"cat": 20}), tmp_path / "out")
    assert files(tmp_path / "out").keys() == {"dataset.json", *dataset.info.files}


def killed_preparing(moment: int, source: Path, out: Path) -> bool:
    """Prepare in a child that dies by SIGKILL at its moment-th change of the disk; whether it did not get that far."""

    def work(counted: Counted) -> None:
        count_changes_of_the_disk(counted)
        pq.ParquetWriter.write_table = counted(pq.ParquetWriter.write_table)
        prepare(source, out, **SMALL)

    return killed(moment, work)


def test_killed_at_every_moment_and_run_again_it_ends_the_same(classes, tmp_path):
    source = classes({"cat": 12, "dog": 12})
    expected = prepare(source, tmp_path / "expected", **SMALL)
    for moment in range(1000):
        out = tmp_path / f"out {moment}"
        finished = killed_preparing(moment, source, out)
        if (out / "dataset.json").exists():
            Dataset.open(out).verify()
        elif out.exists():
            with pytest.raises(DataError):
                Dataset.open(out)
        assert prepare(source, out, **SMALL).info == expected.info
        assert files(out) == files(tmp_path / "expected")
        if finished:
            break
    assert moment > 20


def test_killed_again_and_again_it_still_gets_done(classes, tmp_path):
    source = classes({"cat": 20, "dog": 20})
    prepare(source, tmp_path / "expected", **SMALL)
    attempts = 1
    while not killed_preparing(12, source, tmp_path / "out"):
        attempts += 1
        assert attempts < 20
    assert attempts > 1
    assert files(tmp_path / "out") == files(tmp_path / "expected")


def test_killed_while_extending_the_dataset_there_stays_whole(classes, tmp_path):
    source = classes({"cat": 12, "dog": 12})
    earlier = prepare(source, tmp_path / "earlier", **SMALL)
    before = places(earlier)
    classes({"cow": 8}, first_seed=1000)
    shutil.copytree(tmp_path / "earlier", tmp_path / "expected")
    expected = prepare(source, tmp_path / "expected", **SMALL)
    for moment in range(1000):
        out = tmp_path / f"out {moment}"
        shutil.copytree(tmp_path / "earlier", out)
        finished = killed_preparing(moment, source, out)
        standing = Dataset.open(out)
        standing.verify()
        assert standing.info in (earlier.info, expected.info)
        again = prepare(source, out, **SMALL)
        assert files(out) == files(tmp_path / "expected")
        assert places(again).items() >= before.items()
        if finished:
            break
    assert moment > 15


def test_a_plain_script_may_use_workers_and_a_killed_one_can_be_run_again_at_once(classes, tmp_path):
    source = classes({"cat": 200})
    code = (
        f"from visiontune.data.prepare import prepare; prepare({str(source)!r}, {str(tmp_path / 'out')!r}, workers=2)"
    )
    # No `if __name__ == "__main__"`.
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    while process.poll() is None and not (tmp_path / "out/.prepare").exists():
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert len(prepare(source, tmp_path / "out")) == 200  # whatever the workers of the killed one are still doing


def test_the_same_call_again_does_no_work(classes, tmp_path, monkeypatch):
    source = classes({"cat": 10})
    first = prepare(source, tmp_path / "out")
    monkeypatch.setattr("visiontune.data.prepare.survey", None)
    assert prepare(source, tmp_path / "out").info == first.info


def test_rows_added_later_move_no_earlier_row(classes, tmp_path):
    source = classes({"cat": 20, "dog": 20})
    before = places(prepare(source, tmp_path / "out"))
    for step in range(1, 4):
        classes({f"new {step}": 7}, first_seed=1000 * step)
        for path in sorted((source / f"new {step}").iterdir())[:3]:
            path.rename(source / "cat" / f"added {step} {path.name}")
        after = places(prepare(source, tmp_path / "out"))
        assert len(after) == len(before) + 7
        assert after.items() >= before.items()
        before = after


def test_a_corrected_label_or_a_new_name_moves_no_row(classes, tmp_path):
    source = classes({"cat": 20, "dog": 20})
    before = places(prepare(source, tmp_path / "out"))
    (source / "metadata.csv").write_text(
        "file_name,label\n" + "".join(f"{name},{'dog' if name == 'cat/003.png' else 'cat'}\n" for name in before)
    )
    assert places(prepare(source, tmp_path / "out")) == before
    (source / "metadata.csv").unlink()
    (source / "dog/005.png").rename(source / "dog/new name.png")
    after = places(prepare(source, tmp_path / "out"))
    assert after["dog/new name.png"] == before["dog/005.png"]


def test_duplicates_stay_in_one_split_and_one_that_bridges_two_is_left_out(classes, tmp_path, encode, picture):
    source = classes({"cat": 40})
    for i in range(40):
        (source / f"cat/{i:03d} copy.jpg").write_bytes(encode(picture(i, 96), "JPEG", quality=80))
    after = places(prepare(source, tmp_path / "out"))
    assert all(after[f"cat/{i:03d}.png"] == after[f"cat/{i:03d} copy.jpg"] for i in range(40))

    # Two captions of one image that stand in different splits, as an author gave them; then a third without one.
    other = classes({"dog": 12}, name="others", first_seed=500)
    (other / "dog/twin.png").write_bytes((other / "dog/000.png").read_bytes())
    given = ["train", "validation", "test", *["train"] * 9]
    lines = [f"dog/{i:03d}.png,{name}-{i},{name}\n" for i, name in enumerate(given)] + ["dog/twin.png,twin,test\n"]
    (other / "metadata.csv").write_text("file_name,text,split\n" + "".join(lines))
    prepare(other, tmp_path / "captions")
    (other / "dog/third.png").write_bytes((other / "dog/000.png").read_bytes())
    (other / "metadata.csv").write_text("file_name,text,split\n" + "".join(lines) + "dog/third.png,third,\n")
    info = prepare(other, tmp_path / "captions").info
    assert [(row.id, row.code) for row in info.left_out] == [("dog/third.png", "bridges-splits")]


def test_a_corrupt_image_is_named_counted_and_left_out(classes, tmp_path, capsys):
    source = classes({"cat": 10, "dog": 10})
    (source / "cat/bad.png").write_bytes(b"not an image")
    (source / "dog/empty.jpg").write_bytes(b"")
    faults = []
    dataset = prepare(source, tmp_path / "out", on_fault=faults.append)
    assert len(dataset) == 20
    assert {(row.id, row.code) for row in dataset.info.left_out} == {
        ("cat/bad.png", "unknown-format"),
        ("dog/empty.jpg", "empty-file"),
    }
    said = capsys.readouterr().err
    assert "left out: 2 rows" in said
    assert "cat/bad.png" in said
    assert [(fault.where, fault.severity) for fault in faults] == [("dog/empty.jpg", "drop"), ("cat/bad.png", "drop")]


@pytest.mark.parametrize("prepared_before", [False, True])
def test_strict_refuses_a_corrupt_image_by_name(classes, tmp_path, prepared_before):
    source = classes({"cat": 10})
    (source / "cat/bad.png").write_bytes(b"not an image")
    if prepared_before:
        prepare(source, tmp_path / "out")
    with pytest.raises(DataError, match=r"cat/bad\.png"):
        prepare(source, tmp_path / "out", strict=True)
    assert (tmp_path / "out/dataset.json").exists() == prepared_before


def test_nothing_left_is_an_error(tmp_path):
    (tmp_path / "photos/cat").mkdir(parents=True)
    (tmp_path / "photos/cat/bad.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"nothing is left.*cat/bad\.png"):
        prepare(tmp_path / "photos", tmp_path / "out")


def test_a_limit_is_spread_over_the_classes(classes, tmp_path):
    source = classes({"cat": 20, "dog": 20, "rare": 2})
    info = prepare(source, tmp_path / "out", limit=10).info
    assert (info.labels, info.limit) == ({"cat": 4, "dog": 4, "rare": 2}, 10)
    first = places(Dataset.open(tmp_path / "out"))
    assert places(prepare(source, tmp_path / "out")).items() >= first.items()
    with pytest.raises(DataError, match="limit of 0"):
        prepare(source, tmp_path / "other", limit=0)


def test_two_preparations_at_once_are_refused(classes, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    held = os.open(out, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_SH)
    with pytest.raises(DataError, match="another preparation"):
        prepare(classes({"cat": 3}), out)
    os.close(held)
    prepare(classes({"cat": 3}), out)


def test_a_folder_that_holds_something_else_is_left_alone(classes, tmp_path):
    source = classes({"cat": 3})
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("my thesis")
    with pytest.raises(DataError, match=r"neither empty nor a dataset.*chapter\.txt"):
        prepare(source, tmp_path / "thesis")
    for inside in (source, source / "out"):
        with pytest.raises(DataError, match="inside the folder"):
            prepare(source, inside)
    assert files(tmp_path / "thesis").keys() == {"chapter.txt"}


def test_other_data_or_another_seed_do_not_replace_a_dataset(classes, tmp_path):
    source = classes({"cat": 5})
    prepare(source, tmp_path / "out")
    before = files(tmp_path / "out")
    with pytest.raises(DataError, match="shares no sample"):
        prepare(classes({"cow": 5}, name="cows", first_seed=99), tmp_path / "out")
    with pytest.raises(DataError, match="seed 0"):
        prepare(source, tmp_path / "out", seed=1)
    prepare(source, tmp_path / "out")
    assert files(tmp_path / "out") == before


def test_rows_taken_out_of_the_source_leave_the_dataset(classes, tmp_path):
    source = classes({"cat": 10})
    prepare(source, tmp_path / "out")
    (source / "cat/004.png").unlink()
    dataset = prepare(source, tmp_path / "out")
    assert "cat/004.png" not in places(dataset)
    assert files(tmp_path / "out").keys() == {"dataset.json", *dataset.info.files}


def test_a_full_disk_is_said_and_leaves_no_half_file(classes, tmp_path, monkeypatch):
    source = classes({"cat": 10})

    def full(*_arguments, **_named):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_table", full)
        with pytest.raises(MachineError, match="disk is full"):
            prepare(source, tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(prepare(source, tmp_path / "out")) == 10


def test_what_was_looked_at_before_an_interruption_is_not_looked_at_again(classes, tmp_path, monkeypatch):
    source = classes({"cat": 40})
    looked_at = []

    def counted(data):
        looked_at.append(data)
        return decode_with_facts(data)

    def full(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("visiontune.data.scan.decode_with_facts", counted)
    with monkeypatch.context() as patch:
        patch.setattr("visiontune.data.shards.write_shard", full)
        with pytest.raises(MachineError):
            prepare(source, tmp_path / "out")
    assert len(looked_at) == 40
    os.utime(source / "cat/039.png", ns=(1, 1))  # a change in the last chunk: 32 .. 39
    prepare(source, tmp_path / "out")
    assert len(looked_at) == 48


def test_a_file_that_changes_meanwhile_is_noticed(classes, tmp_path, monkeypatch, encode, picture):
    source = classes({"cat": 10})

    def late(path, rows):
        (source / "cat/000.png").write_bytes(encode(picture(77)))
        return write_shard(path, rows)

    monkeypatch.setattr("visiontune.data.shards.write_shard", late)
    with pytest.raises(DataError, match="changed while"):
        prepare(source, tmp_path / "out")


def test_an_error_in_a_worker_arrives_whole(classes, tmp_path):
    with pytest.raises(DataError) as caught:
        list(parallel(_fails, [1, 2, 3], 2))
    assert (caught.value.where, caught.value.fix) == ("here", "this")
    with pytest.raises(MachineError, match="worker process ended"):
        list(parallel(os._exit, [1], 2))


def _fails(_task):
    raise DataError("broken", where="here", fix="this")
