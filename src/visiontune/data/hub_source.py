"""Datasets of the Hugging Face hub as sources: `hub:OWNER/NAME`, with a configuration and a revision if need be,
`hub:OWNER/NAME:CONFIG@REVISION`.

`datasets` reads them row by row, and they become a folder of Parquet files that every reader of tables knows: images
as the bytes that lie on the hub, classes with their names. Code of a dataset is never run.
"""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from visiontune.data.formats.tables import split_of
from visiontune.data.remote import local_name
from visiontune.data.split import SPLITS
from visiontune.errors import DataError, MachineError, VisiontuneError
from visiontune.files import full_disk_said, write_json, written_whole
from visiontune.progress import note, progress, warn

PREFIX = "hub:"
GROUP_ROWS = 64
MOST_PARTS = 100  # files of a split; a dataset of more files on the hub gets several of them in one
_WHOLE = ".whole.json"
# What git and `datasets` allow in names of revisions and configurations.
_FORM = re.compile(
    r"hub:(?P<id>[\w.-]+/[\w.-]+)(:(?P<config>[^\s<>:/\\|?*@][^<>:/\\|?*@]*))?(@(?P<revision>[^\s~^:?*\[\\@]+))?",
    re.ASCII,
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubDataset:
    """A dataset of the hub. Without a `config` it is the only or the default one, without a `revision` the newest."""

    id: str
    config: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        return f"{PREFIX}{self.name}" + (f"@{self.revision}" if self.revision else "")

    @property
    def name(self) -> str:
        """What it is called, whatever the revision."""
        return self.id + (f":{self.config}" if self.config else "")


def is_hub(source: object) -> bool:
    """Whether a source names a dataset of the hub; a local folder of that name is none."""
    return str(source).startswith(PREFIX)


def parse(text: str) -> HubDataset:
    """The dataset that a text names; DataError where it has another form."""
    found = _FORM.fullmatch(text)
    if found is None:
        raise DataError(
            "this names no dataset of the hub",
            where=text,
            fix="write hub:OWNER/NAME, or with a configuration and a revision hub:OWNER/NAME:CONFIG@REVISION",
        )
    return HubDataset(found["id"], found["config"], found["revision"])


def fetch(source: HubDataset, limit: int | None = None) -> tuple[Path, HubDataset]:
    """Bring a dataset, of each split the first `limit` rows, into a folder of the hub's cache on this machine.

    Returns the folder and the dataset with the commit that was fetched. Each split becomes one or several Parquet
    files, written whole: what has arrived is not fetched again. A commit that is there whole needs no connection.
    Raises DataError where there is no such dataset or it cannot be read, MachineError where the hub cannot be reached.
    """
    try:
        import datasets  # noqa: F401
    except ImportError as error:
        raise MachineError(
            "datasets of the hub are read with the package `datasets`",
            where=str(source),
            fix="pip install 'visiontune[corpora]'",
        ) from error
    with _told(source):
        pinned = source if _is_here(source, limit) else replace(source, revision=_commit(source))
    folder = _folder(pinned, limit)
    if not _is_here(pinned, limit):
        note(f"fetching {pinned} into {folder}")
        with full_disk_said(folder), _told(source):
            splits = open_hub_dataset(pinned)
            chosen = [name for name in splits if split_of(f"{name}.parquet")] or list(splits)
            for name in chosen:
                _write(splits[name], name, folder, limit)
            write_json(folder / _WHOLE, {"dataset": str(pinned), "splits": chosen})
        if others := [name for name in splits if name not in chosen]:
            warn(f"{source}: its splits {', '.join(others)} are none of {', '.join(SPLITS)}, and were left out")
    return folder, pinned


def open_hub_dataset(source: HubDataset) -> dict[str, Any]:
    """The splits of a dataset, each a `datasets.IterableDataset` that reads from the hub as it is asked."""
    from datasets import load_dataset

    # The scheme keeps a local folder of that name out.
    place = f"hf://datasets/{source.id}"
    splits = load_dataset(place, source.config, revision=source.revision, streaming=True)
    return {str(name): rows for name, rows in splits.items()}


def _folder(source: HubDataset, limit: int | None) -> Path:
    from huggingface_hub import constants

    first = "" if limit is None else f"-first-{limit}"
    return Path(constants.HF_HOME) / "visiontune" / f"{local_name(str(source))}{first}"


def _is_here(source: HubDataset, limit: int | None) -> bool:
    """Whether a commit was fetched whole; a branch or a tag may have moved."""
    return bool(_COMMIT.fullmatch(source.revision or "")) and (_folder(source, limit) / _WHOLE).is_file()


def _commit(source: HubDataset) -> str:
    from huggingface_hub import HfApi

    sha = HfApi().dataset_info(source.id, revision=source.revision).sha
    assert sha is not None  # it is None only where one asks for other fields
    return sha


def _write(rows: Any, split: str, folder: Path, limit: int | None) -> None:
    """Write the rows of a split, a group at a time, in as many files as it has on the hub."""
    from datasets.table import embed_table_storage

    if rows.features is None:  # of formats whose types `datasets` knows by reading
        rows = rows._resolve_features()
    rows = rows.decode(False)  # or image files would be read and written as other bytes
    parts = 1 if limit is not None else min(rows.num_shards, MOST_PARTS)
    with progress(f"fetching {split}", parts, "files") as advance:
        for i in range(parts):
            path = folder / (f"{split}.parquet" if parts == 1 else f"{split}-{i:05d}-of-{parts:05d}.parquet")
            if not path.is_file():
                part = rows.shard(num_shards=parts, index=i) if limit is None else rows.take(limit)
                schema = rows.features.arrow_schema
                with written_whole(path) as aside, pq.ParquetWriter(aside, schema, compression="zstd") as writer:
                    for table in part.with_format("arrow").iter(batch_size=GROUP_ROWS):
                        # A row that names a file of this machine does not get it.
                        writer.write_table(embed_table_storage(table, local_files=False).cast(schema))
            advance(1)


@contextmanager
def _told(source: HubDataset) -> Iterator[None]:
    """Say what the hub or `datasets` did not do."""
    try:
        yield
    except VisiontuneError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _said(error, source) from error
    except Exception as error:  # both libraries, and what they send with, have errors of their own
        raise _said(error, source) from error


def _said(error: Exception, source: HubDataset) -> VisiontuneError:
    from datasets.data_files import EmptyDatasetError
    from datasets.exceptions import DataFilesNotFoundError, DatasetGenerationError, DatasetNotFoundError
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    said = " ".join(line.strip() for line in str(error).splitlines()[:2]) or type(error).__name__
    by_hand = f"`hf download {source.id} --repo-type dataset --local-dir FOLDER`, then give the folder"
    found, fix = f"the dataset cannot be read: {said}", f"download it: {by_hand}"
    if isinstance(error, GatedRepoError) or (isinstance(error, DatasetNotFoundError) and "gated" in said):
        found = "the dataset is gated: who wants it has to be let in"
        fix = f"ask for access at https://huggingface.co/datasets/{source.id}, then log in: `hf auth login`"
    elif isinstance(error, RevisionNotFoundError):
        found, fix = f"the dataset has no revision {source.revision!r}", "give a branch, a tag or a commit that it has"
    elif isinstance(error, RepositoryNotFoundError | DatasetNotFoundError):
        found = "the hub shows no dataset of this name"
        fix = "check the name; a private dataset needs `hf auth login`"
    elif isinstance(error, EmptyDatasetError | DataFilesNotFoundError):
        found = "the dataset holds no files that `datasets` reads"
    elif isinstance(error, RuntimeError) and "script" in said:
        found = "the dataset is made by a script of its own, and code of others is not run"
        fix = f"{source.id}'s rows may lie on the hub as files: hub:{source.id}@refs/convert/parquet; or {fix}"
    elif isinstance(error, ValueError) and "config" in said.lower():
        found, fix = said, f"name one: hub:{source.id}:CONFIG"
    elif not isinstance(error, ValueError | TypeError | DatasetGenerationError):
        return MachineError(
            f"the hub did not give the dataset: {said}",
            where=str(source),
            fix=f"check the connection; or download it elsewhere: {by_hand}",
        )
    return DataError(found, where=str(source), fix=fix)
