"""Datasets at URLs: what arrives is the dataset, byte for byte, however often the copy was killed."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler
from pyftpdlib.servers import FTPServer

import visiontune
from tests.killed import Counted, killed
from visiontune.cli import main
from visiontune.data import remote
from visiontune.data.dataset import Dataset
from visiontune.data.prepare import prepare
from visiontune.data.remote import fetch, local_name, send, without_password
from visiontune.data.split import SPLITS
from visiontune.errors import DataError, MachineError

NOTO = Path(__file__).parent / "fonts/1-NotoSans.ttf"


@pytest.fixture
def articles(tmp_path: Path) -> Callable[..., Path]:
    """`articles(20)`: a table of so many different texts."""

    def make(count: int) -> Path:
        rows = [{"id": f"a{i}", "text": f"{i * i} sheep {i} " * 40, "summary": f"{i} sheep"} for i in range(count)]
        path = tmp_path / "articles.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return make


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, where staging folders are made."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    return tmp_path / "here"


@pytest.fixture
def ftp(tmp_path: Path) -> Iterator[str]:
    """The URL of a folder of an FTP server on this machine."""
    (tmp_path / "ftp").mkdir()
    users = DummyAuthorizer()
    users.add_user("ann", "secret", str(tmp_path / "ftp"), perm="elradfmwMT")
    handler = type("Handler", (FTPHandler,), {"authorizer": users})
    server = FTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"timeout": 0.02, "handle_exit": False}, daemon=True)
    thread.start()
    yield f"ftp://ann:secret@127.0.0.1:{server.address[1]}/deep/data"
    server.close_all()
    thread.join()


def files(folder: Path) -> dict[str, bytes]:
    own = {remote.SENT_NAME}
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if name not in own}


def at(url: str) -> dict[str, bytes]:
    place, root = fsspec.core.url_to_fs(url)
    place.invalidate_cache()
    return {name.removeprefix(f"{root}/"): place.cat_file(name) for name in place.find(root)}


def places(dataset: Dataset) -> dict[str, str]:
    return {name: split for split in SPLITS for name in dataset.index(split).ids}


def test_a_dataset_is_copied_with_its_fonts_and_opened_again(articles: Callable[..., Path], elsewhere: Path) -> None:
    dataset = visiontune.prepare(articles(20), "memory://bucket/data", fonts=[NOTO], materialise="png")
    assert dataset.path == Path(local_name("memory://bucket/data"))
    assert at("memory://bucket/data") == files(dataset.path)
    assert {name.partition("/")[0] for name in at("memory://bucket/data")} >= {"dataset.json", "pages"}
    dataset.path.rename("moved")
    opened = Dataset.open("memory://bucket/data")
    opened.verify()
    assert opened.info == dataset.info and opened.fonts().refs == dataset.fonts().refs
    assert not (opened.path / "pages").exists()  # training draws them


@pytest.mark.parametrize("kind", ["memory", "file", "ftp"])
def test_an_extended_dataset_replaces_the_earlier_one_and_moves_no_row(
    articles: Callable[..., Path], tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    urls = {"memory": "memory://bucket/data", "file": f"file://{tmp_path}/bucket/data"}
    url = request.getfixturevalue("ftp") if kind == "ftp" else urls[kind]
    first = visiontune.prepare(articles(20), url)
    before = places(first)
    place, root = fsspec.core.url_to_fs(url)
    place.pipe_file(f"{root}/notes.txt", b"mine")
    # Somebody else, who has no staging folder of it.
    second = visiontune.prepare(articles(24), url, staging=tmp_path / "other")
    assert places(second).items() >= before.items() and len(second) == 24
    assert at(url) == {**files(tmp_path / "other"), "notes.txt": b"mine"}
    # And the first one again, whose staging folder is behind.
    third = visiontune.prepare(articles(26), url)
    assert places(third).items() >= places(second).items()
    assert at(url) == {**files(third.path), "notes.txt": b"mine"}
    assert third.path == first.path


def test_what_has_arrived_is_not_copied_again(
    articles: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = prepare(articles(20), tmp_path / "out", materialise="png")
    copied: list[str] = []
    put = MemoryFileSystem.put_file

    def counted(self: MemoryFileSystem, local: str, path: str, *more: object, **named: object) -> None:
        copied.append(path.removeprefix("/bucket/"))
        put(self, local, path, *more, **named)

    monkeypatch.setattr(MemoryFileSystem, "put_file", counted)
    url = "memory://bucket"
    send(dataset.path, url)
    pages = [str(path.relative_to(dataset.path)) for path in (dataset.path / "pages").rglob("*") if path.is_file()]
    assert sorted(copied) == sorted([*dataset.info.files, *pages])
    copied.clear()
    send(dataset.path, url)
    assert copied == []
    # Other bytes of the same size are told by the hash, a file cut short by its size.
    page = next(name for name in pages if name.endswith(".png"))
    data = (dataset.path / page).read_bytes()
    (dataset.path / page).write_bytes(data[:-1] + b"x")
    shard = next(iter(dataset.info.files))
    fsspec.filesystem("memory").pipe_file(f"/bucket/{shard}", b"cut")
    send(dataset.path, url)
    assert sorted(copied) == sorted([page, shard])
    # Without the local notes, dataset.json over there vouches for what it names.
    (dataset.path / remote.SENT_NAME).unlink()
    copied.clear()
    send(dataset.path, url)
    assert sorted(copied) == sorted(pages)


def killed_copying(moment: int, folder: Path, url: str) -> bool:
    """Copy in a child that dies by SIGKILL at its moment-th change over there; whether it did not get that far."""

    def work(counted: Counted) -> None:
        tick = counted(lambda: None)

        def halves(self: LocalFileSystem, local: str, path: str, **_: object) -> None:
            written(self, path, Path(local).read_bytes())

        def written(self: LocalFileSystem, path: str, data: bytes) -> None:
            with Path(path).open("wb") as file:
                file.write(data[: len(data) // 2])
                file.flush()
                tick()
                file.write(data[len(data) // 2 :])

        LocalFileSystem.put_file = halves
        LocalFileSystem.pipe_file = written
        for name in ("makedirs", "mv", "rm"):
            setattr(LocalFileSystem, name, counted(getattr(LocalFileSystem, name)))
        send(folder, url)

    return killed(moment, work)


@pytest.mark.parametrize("earlier", [False, True])
def test_killed_at_every_moment_of_the_copy_what_stands_there_is_whole(
    articles: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool
) -> None:
    monkeypatch.setattr(remote, "BATCH_FILES", 2)
    source = articles(12)
    old = prepare(source, tmp_path / "old")
    new = prepare(articles(16), tmp_path / "new", materialise="png")
    for moment in range(100):
        url = f"file://{tmp_path}/bucket {moment}"
        if earlier:
            send(old.path, url)
        finished = killed_copying(moment, new.path, url)
        if (tmp_path / f"bucket {moment}/dataset.json").exists():
            standing = fetch(url, tmp_path / f"got {moment}")
            Dataset.open(standing).verify()
            assert Dataset.open(standing).info in (old.info, new.info)
        else:
            with pytest.raises(DataError, match="no prepared dataset"):
                fetch(url, tmp_path / f"got {moment}")
        send(new.path, url)
        assert at(url) == files(new.path)
        if finished:
            break
        (new.path / remote.SENT_NAME).unlink(missing_ok=True)
    assert moment > 15


def test_a_dataset_is_fetched_once_and_checked(
    articles: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "memory://data"
    dataset = visiontune.prepare(articles(12), url)
    fetched: list[str] = []
    get = MemoryFileSystem.get_file

    def counted(self: MemoryFileSystem, path: str, *more: object, **named: object) -> None:
        fetched.append(path)
        get(self, path, *more, **named)

    monkeypatch.setattr(MemoryFileSystem, "get_file", counted)
    fetch(url, tmp_path / "got")
    assert len(fetched) == len(dataset.info.files)
    fetch(url, tmp_path / "got")
    assert len(fetched) == len(dataset.info.files)
    name = next(iter(dataset.info.files))
    data = (tmp_path / "got" / name).read_bytes()
    (tmp_path / "got" / name).write_bytes(data[:-1])  # cut off
    assert (fetch(url, tmp_path / "got") / name).read_bytes() == data
    fsspec.filesystem("memory").pipe_file(f"/data/{name}", data[:-1] + b"x")
    with pytest.raises(DataError, match="not the one"):
        fetch(url, tmp_path / "again")
    with pytest.raises(DataError, match="not a prepared dataset"):
        Dataset.open(tmp_path / "again")
    fsspec.filesystem("memory").rm(f"/data/{name}")
    with pytest.raises(DataError, match="is missing"):
        fetch(url, tmp_path / "again")


def test_a_fetched_dataset_follows_the_one_at_the_url(articles: Callable[..., Path], tmp_path: Path) -> None:
    url = "memory://data"
    visiontune.prepare(articles(12), url)
    fetch(url, tmp_path / "got")
    second = visiontune.prepare(articles(16), url)
    assert files(fetch(url, tmp_path / "got")) == files(second.path)


def test_train_and_inspect_take_a_url(
    classes: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = "memory://bucket/pets"
    dataset = visiontune.prepare(classes({"cat": 6, "dog": 6}), url)
    with pytest.raises(SystemExit) as stopped:
        main(["inspect", url, "--json"])
    assert stopped.value.code == 0 and json.loads(capsys.readouterr().out)["samples"] == 12
    changes = {"schedule.steps": "1", "evaluation.every": "1", "machine.device": "cpu", "machine.threads": "1"}
    options = [word for name, value in changes.items() for word in (f"--{name}", value)]
    with pytest.raises(SystemExit) as stopped:
        main(["train", url, "--model", "tiny/smolvlm", "--out", str(tmp_path / "run"), *options])
    assert "step 1" in capsys.readouterr().out
    assert Dataset.open(tmp_path / "run/data/pets").info == dataset.info


def test_a_place_that_holds_something_else_is_left_alone(articles: Callable[..., Path], tmp_path: Path) -> None:
    fsspec.filesystem("memory").pipe_file("/thesis/chapter.txt", b"my thesis")
    with pytest.raises(DataError, match=r"neither empty nor a dataset.*chapter\.txt"):
        visiontune.prepare(articles(5), "memory://thesis")
    assert at("memory://thesis") == {"chapter.txt": b"my thesis"}
    visiontune.prepare(articles(5), "memory://data")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("my thesis")
    with pytest.raises(DataError, match=r"neither empty nor a dataset.*chapter\.txt"):
        fetch("memory://data", tmp_path / "thesis")


def test_a_password_is_shown_nowhere(
    articles: Callable[..., Path], ftp: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    visiontune.prepare(articles(5), ftp)
    dataset = Dataset.open(ftp)
    with pytest.raises(MachineError) as caught:
        Dataset.open(ftp.replace("cret", "crit"))
    said = capsys.readouterr().err + str(caught.value) + "".join(path.name for path in elsewhere.iterdir())
    assert "127.0.0.1" in said and "cret" not in said and "crit" not in said
    assert b"cret" not in b"".join(files(dataset.path).values()) + (dataset.path / remote.SENT_NAME).read_bytes()
    assert without_password("ftp://ann:p@ss@host/a@b") == "ftp://host/a@b"


def test_two_urls_never_share_a_folder() -> None:
    assert local_name("s3://bucket/data") == local_name("s3://bucket/data/") != local_name("s3://bucket-data")
    assert local_name("s3://bucket/data").startswith("s3-bucket-data-")


def test_a_file_system_that_is_not_installed_is_told(articles: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="nothing here speaks nosuch://") as caught:
        visiontune.prepare(articles(5), "nosuch://bucket/data")
    assert "pip install" in (caught.value.fix or "")
    with pytest.raises(DataError, match="staging folder is for"):
        visiontune.prepare(articles(5), tmp_path / "out", staging=tmp_path / "staging")
