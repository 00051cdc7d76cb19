"""Datasets at a URL (`s3://bucket/data`, any file system that fsspec knows): copied there and fetched from there.

`dataset.json` is written last and fetched last: where it stands, all that it names stands too. What has arrived is
noted in the local folder, so that a copy that was killed goes on where it stopped.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visiontune.data.dataset_info import INFO_NAME, DatasetInfo, parse_info, read_info
from visiontune.data.folder import PAGES_NAME, hashes, is_written
from visiontune.errors import DataError, MachineError, VisiontuneError
from visiontune.files import file_sha256, written_whole
from visiontune.progress import note, progress

SENT_NAME = ".sent.jsonl"
PART_NAME = f".{INFO_NAME}.part"
# A batch of files is noted when it has arrived. File systems of object stores copy the files of a batch side by side.
BATCH_FILES = 32
BATCH_BYTES = 512 * 2**20


@dataclass(frozen=True)
class _File:
    """A local file and what must arrive: its size in bytes and the SHA-256 of its bytes."""

    path: Path
    bytes: int
    sha256: str


@dataclass(frozen=True)
class _Place:
    """A folder of an fsspec file system; `url` is how it is told to people, without a password."""

    files: Any
    root: str
    url: str

    def path(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"

    def read_info(self) -> bytes | None:
        """The dataset.json that stands there, None where there is none."""
        try:
            return bytes(self.files.cat_file(self.path(INFO_NAME)))
        except FileNotFoundError:
            return None

    def sizes(self) -> dict[str, int]:
        """All files below the folder, by their names relative to it, with their sizes in bytes."""
        self.files.invalidate_cache()
        if not self.files.exists(self.root):
            return {}
        start = f"{self.root.rstrip('/')}/"
        return {
            name.removeprefix(start): int(file["size"])
            for name, file in self.files.find(self.root, detail=True).items()
        }


def is_url(place: object) -> bool:
    """Whether a place is named by a URL. Only texts are: a Path has lost one of the two slashes."""
    return isinstance(place, str) and "://" in place


def without_password(url: str) -> str:
    """The URL as it may be shown: who logs in is left out."""
    return re.sub(r"(?<=://)[^/]*@", "", url)


def local_name(url: str) -> str:
    """The name of the local folder that stands for a URL: readable, and another one for another URL."""
    url = without_password(url).rstrip("/")
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", url).strip("-.")
    return f"{readable}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"


def fetch(url: str, folder: Path) -> Path:
    """Bring the dataset at `url` into a local folder, each file checked by its hash, and return the folder.

    Files that are there already are not fetched again; those of an earlier state of the dataset are removed. Pages as
    image files are left where they are. Raises DataError where there is no dataset or a file is not the one that
    dataset.json names, MachineError where the place cannot be reached.
    """
    with _told("the dataset cannot be fetched", url):
        place = _place(url)
        text = place.read_info()
        if text is None:
            raise DataError("there is no prepared dataset", where=place.url, fix=f"prepare it: --out {place.url}")
        info = parse_info(text, place.path(INFO_NAME))
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_others({path.name for path in folder.iterdir()}, str(folder))
        here = folder / INFO_NAME
        missing = _missing(info, folder, trusted=here.is_file() and here.read_bytes() == text)
        # The package's own font does not travel; a font that is missing where it should be is told by Dataset.open.
        missing = {name: sha for name, sha in missing.items() if name in info.files or _exists(place, name)}
        if missing:
            here.unlink(missing_ok=True)
            with progress(f"fetching {place.url}", len(missing), "files") as advance:
                for name, sha256 in missing.items():
                    _fetch_file(place, name, folder / name, sha256)
                    advance(1)
        with written_whole(here) as aside:
            aside.write_bytes(text)
    for path in folder.iterdir():
        if is_written(path.name) and path.name not in {INFO_NAME, *hashes(info)}:
            path.unlink()
    return folder


def fetch_earlier(url: str, staging: Path) -> None:
    """Bring the dataset at `url`, if there is one, into the staging folder, unless that one goes on from it already.

    So an extended dataset keeps the splits of its rows, whoever extended it last and from where.
    """
    with _told("the place cannot be read", url):
        place = _place(url)
        theirs = place.read_info()
        sizes = {} if theirs is not None else place.sizes()
    if theirs is None:
        others = sorted(name for name in sizes if not _is_ours(name))
        if others:
            raise DataError(
                f"the place is neither empty nor a dataset: it holds {', '.join(others[:5])}",
                where=place.url,
                fix="use another --out",
            )
        return
    here = staging / INFO_NAME
    ours = here.read_bytes() if here.is_file() else None
    sent = _read_sent(staging, place.url).get(INFO_NAME)
    if ours is not None and (ours == theirs or sent == hashlib.sha256(theirs).hexdigest()):
        return
    if ours is not None:
        note(f"{place.url} holds another state of the dataset than {staging}: going on from that one")
    fetch(url, staging)
    _note_sent(staging, place.url, {INFO_NAME: hashlib.sha256(theirs).hexdigest()})


def send(folder: Path, url: str) -> None:
    """Copy a prepared dataset, with its fonts and its pages as image files, to `url`; dataset.json last.

    Files that have arrived already are not copied again. Those of an earlier state of the dataset are removed at the
    end; what else lies there stays. Raises MachineError where the place cannot be reached or a file did not arrive.
    """
    info = read_info(folder)
    text = (folder / INFO_NAME).read_bytes()
    files = _to_send(folder, info)
    with _told("the dataset could not be copied", url, "run the same command again: it goes on where it stopped"):
        place = _place(url)
        there, theirs = place.sizes(), place.read_info()
        arrived = _read_sent(folder, place.url)
        if theirs is not None:  # it was written after all that it names
            arrived |= hashes(parse_info(theirs, place.path(INFO_NAME)))
        missing = {
            name: file
            for name, file in files.items()
            if there.get(name) != file.bytes or arrived.get(name) != file.sha256
        }
        with progress(f"copying to {place.url}", len(missing), "files") as advance:
            for batch in _batches(missing):
                _send_batch(place, batch)
                _note_sent(folder, place.url, {name: file.sha256 for name, file in batch.items()})
                advance(len(batch))
        if theirs != text:
            place.files.makedirs(place.root, exist_ok=True)
            place.files.pipe_file(place.path(PART_NAME), text)
            place.files.mv(place.path(PART_NAME), place.path(INFO_NAME))
        _note_sent(folder, place.url, {INFO_NAME: hashlib.sha256(text).hexdigest()})
        stale = [place.path(name) for name in there if _is_ours(name) and name not in {INFO_NAME, PART_NAME, *files}]
        if stale:
            place.files.rm(stale)


def _place(url: str) -> _Place:
    from fsspec.core import url_to_fs

    try:
        files, root = url_to_fs(url)
    except (ImportError, ValueError) as error:
        scheme = url.partition("://")[0]
        raise MachineError(
            f"nothing here speaks {scheme}://: {error}",
            where=without_password(url),
            fix="install the fsspec package of that file system, as `pip install s3fs` for s3://",
        ) from error
    return _Place(files, root, without_password(url))


@contextmanager
def _told(found: str, url: str, fix: str = "check the URL, the connection and the credentials") -> Iterator[None]:
    """Say what a file system did not do, and where."""
    try:
        yield
    except VisiontuneError:
        raise
    except Exception as error:  # each file system has errors of its own
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MachineError(f"{found}: {said}", where=without_password(url), fix=fix) from error


def _missing(info: DatasetInfo, folder: Path, *, trusted: bool) -> dict[str, str]:
    """The files of a dataset that are not in the folder; of a `trusted` folder, only sizes are looked at."""
    missing = {}
    for name, sha256 in hashes(info).items():
        path, shard = folder / name, info.files.get(name)
        there = path.is_file() and (shard is None or path.stat().st_size == shard.bytes)
        if not there or not (trusted or file_sha256(path) == sha256):
            missing[name] = sha256
    return missing


def _exists(place: _Place, name: str) -> bool:
    return bool(place.files.exists(place.path(name)))


def _fetch_file(place: _Place, name: str, path: Path, sha256: str) -> None:
    with written_whole(path) as aside:
        try:
            place.files.get_file(place.path(name), str(aside))
        except FileNotFoundError as error:
            raise DataError(
                "a file of the dataset is missing", where=f"{place.url}/{name}", fix="copy the dataset there again"
            ) from error
        if file_sha256(aside) != sha256:
            raise DataError(
                "a file of the dataset is not the one that dataset.json names",
                where=f"{place.url}/{name}",
                fix="wait for whoever is copying there, or copy the dataset there again",
            )


def _to_send(folder: Path, info: DatasetInfo) -> dict[str, _File]:
    files = {}
    for name, sha256 in hashes(info).items():
        if (folder / name).is_file():  # the package's own font does not travel
            files[name] = _File(folder / name, (folder / name).stat().st_size, sha256)
    for path in sorted((folder / PAGES_NAME).rglob("*")):
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = _File(path, path.stat().st_size, file_sha256(path))
    return files


def _batches(files: Mapping[str, _File]) -> Iterator[dict[str, _File]]:
    batch: dict[str, _File] = {}
    for name, file in files.items():
        if batch and (len(batch) == BATCH_FILES or sum(one.bytes for one in batch.values()) + file.bytes > BATCH_BYTES):
            yield batch
            batch = {}
        batch[name] = file
    if batch:
        yield batch


def _send_batch(place: _Place, batch: Mapping[str, _File]) -> None:
    paths = [place.path(name) for name in batch]
    for parent in sorted({path.rpartition("/")[0] for path in paths}):
        place.files.makedirs(parent, exist_ok=True)
    place.files.put([str(file.path) for file in batch.values()], paths)
    place.files.invalidate_cache()
    for path, file in zip(paths, batch.values(), strict=True):
        if (size := place.files.size(path)) != file.bytes:
            raise MachineError(f"{size} of {file.bytes} bytes arrived", where=path, fix="run the same command again")


def _is_ours(name: str) -> bool:
    return is_written(name) or name.startswith(f"{PAGES_NAME}/")


def _refuse_others(names: set[str], where: str) -> None:
    if INFO_NAME not in names and (others := sorted(n for n in names - {PAGES_NAME, SENT_NAME} if not is_written(n))):
        raise DataError(
            f"the folder is neither empty nor a dataset: it holds {', '.join(others[:5])}",
            where=where,
            fix="use another folder",
        )


def _read_sent(folder: Path, url: str) -> dict[str, str]:
    """The SHA-256 of each file that is known to have arrived at a URL, by name."""
    file = folder / SENT_NAME
    sent = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            one = json.loads(line)
        except ValueError:  # cut off by a kill: that file is copied once more
            continue
        if one["url"] == url:
            sent[one["name"]] = one["sha256"]
    return sent


def _note_sent(folder: Path, url: str, files: Mapping[str, str]) -> None:
    lines = [json.dumps({"url": url, "name": name, "sha256": sha256}) for name, sha256 in files.items()]
    with (folder / SENT_NAME).open("a", encoding="utf-8") as file:
        file.write("\n" + "\n".join(lines) + "\n")
