import json
import subprocess
import sys
from pathlib import Path

import pytest

from visiontune.errors import MachineError
from visiontune.files import file_sha256, folder_written_whole, make_folder, write_json, write_text, written_whole


def entries(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_is_old_or_new_and_nothing_stands_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), written_whole(path) as aside:
        aside.write_text("half")
        raise RuntimeError("killed while writing")
    assert path.read_text() == "old"
    assert entries(path.parent) == ["a.txt"]
    with written_whole(path) as aside:
        aside.write_text("new")
        assert path.read_text() == "old", "the old file stays until the new one is whole"
    assert path.read_text() == "new"
    assert entries(path.parent) == ["a.txt"]


def test_a_body_that_writes_nothing_is_an_error_and_keeps_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(FileNotFoundError), written_whole(tmp_path / "a.txt"):
        pass
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_folder_is_old_or_new_and_nothing_stands_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "step-1"
    with folder_written_whole(path) as aside:
        (aside / "inner").mkdir()
        (aside / "inner" / "weights").write_text("old")
    with pytest.raises(RuntimeError), folder_written_whole(path) as aside:
        (aside / "weights").write_text("half")
        raise RuntimeError("killed while writing")
    assert (path / "inner" / "weights").read_text() == "old"
    assert entries(tmp_path) == ["step-1"]
    with folder_written_whole(path) as aside:
        (aside / "other").write_text("new")
    assert entries(path) == ["other"], "the new folder replaces the old one, it is not mixed with it"
    assert entries(tmp_path) == ["step-1"]


def test_a_kill_in_the_middle_leaves_the_old_folder_whole(tmp_path: Path) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from visiontune.files import folder_written_whole
path = Path(sys.argv[1])
with folder_written_whole(path) as aside:
    (aside / "weights").write_text("old")
with folder_written_whole(path) as aside:
    (aside / "weights").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path / "step-1")], timeout=30)
    assert killed.returncode == -9
    assert (tmp_path / "step-1" / "weights").read_text() == "old"
    assert [name for name in entries(tmp_path) if not name.startswith(".")] == ["step-1"]


@pytest.mark.parametrize("body", ["write_json(path / 'a.json', ['x' * 100_000])", "folder(path / 'step-1')"])
def test_a_full_disk_keeps_what_stood_there(tmp_path: Path, body: str) -> None:
    """A limit on the size of files stands in for the full disk: the write fails in the middle with an OSError."""
    write_json(tmp_path / "a.json", ["old"])
    write_text(tmp_path / "step-1" / "weights", "old")
    script = f"""
import resource, sys
from pathlib import Path
from visiontune.files import folder_written_whole, write_json
def folder(path):
    with folder_written_whole(path) as aside:
        (aside / "weights").write_bytes(bytes(100_000))
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
path = Path(sys.argv[1])
try:
    {body}
except OSError as error:
    sys.exit(7)
"""
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path)], timeout=30, check=False)
    assert ended.returncode == 7
    assert json.loads((tmp_path / "a.json").read_text()) == ["old"]
    assert (tmp_path / "step-1" / "weights").read_text() == "old"
    assert entries(tmp_path) == ["a.json", "step-1"]


def test_a_folder_that_cannot_be_made_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(MachineError, match="No folder can be made here") as refused:
            make_folder(place)
        assert refused.value.where == str(place)
    with pytest.raises(MachineError, match="Not a directory"), folder_written_whole(tmp_path / "file" / "a" / "b"):
        pass


def test_json_keeps_other_scripts_readable_and_refuses_what_is_no_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": "قطة", "a": 1})
    assert "قطة" in (tmp_path / "a.json").read_text(encoding="utf-8")
    assert list(json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))) == ["b", "a"]
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", float("nan"))
    assert entries(tmp_path) == ["a.json"]


def test_the_hash_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
