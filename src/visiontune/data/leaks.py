"""What several datasets must not have in common: an image or a document that one trains on and another holds out.

Each dataset was split by itself, so that nothing else would tell. One of them alone costs nothing; of several, only the
hashes are read.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from visiontune.data.dataset import Dataset
from visiontune.data.split import SPLITS
from visiontune.errors import DataError

SHOWN = 3
BATCH_ROWS = 64


def refuse_leaks(datasets: Sequence[Dataset]) -> None:
    """Raise DataError where a training image or document of a dataset is held out in another one; recordings are not
    looked at."""
    if len(datasets) < 2 or any(dataset.info.seen == "clips" for dataset in datasets):
        return
    found = _leaks(datasets)
    if not found:
        return
    what = "images" if datasets[0].info.seen == "images" else "documents"
    shown = [_said(datasets, *leak) for leak in found[:SHOWN]]
    more = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    among = sorted({number for d, _, _, other, _ in found for number in (d, other)})
    raise DataError(
        f"The same {what} are trained on in one dataset and held out in another, which makes scores too good: "
        f"{len(found)}, the first {'; '.join(shown)}{more}.",
        where=", ".join(str(datasets[number].path) for number in among),
        fix="prepare their sources together (`visiontune prepare A B --out DATA`), which keeps copies in one split; or "
        "train on one of them",
    )


Leak = tuple[int, str, int, int, int]
"""A dataset, a split that it holds out and a row of it; another dataset, and the same row of its `train`."""


def _leaks(datasets: Sequence[Dataset]) -> list[Leak]:
    trained = [_seen(dataset, "train") for dataset in datasets]
    hashes = np.concatenate([one for one, _ in trained])
    if not len(hashes):
        return []
    owners = np.repeat(np.arange(len(trained)), [len(one) for one, _ in trained])
    order = np.argsort(hashes, kind="stable")  # and by datasets, where hashes are the same
    distinct, starts = np.unique(hashes[order], return_index=True)
    first, last = owners[order][starts], owners[order][np.append(starts[1:], len(order)) - 1]
    found: dict[int, Leak] = {}
    for d, dataset in enumerate(datasets):
        for split in SPLITS[1:]:
            held, rows = _seen(dataset, split)
            places = np.searchsorted(distinct, held).clip(max=len(distinct) - 1)
            others = (distinct[places] == held) & ((first[places] != d) | (last[places] != d))
            for k in np.flatnonzero(others).tolist():
                place = places[k]
                other = int(first[place] if first[place] != d else last[place])
                own, its_rows = trained[other]
                found.setdefault(
                    int(held[k]), (d, split, int(rows[k]), other, int(its_rows[np.argmax(own == held[k])]))
                )
    return list(found.values())


def _said(datasets: Sequence[Dataset], d: int, split: str, row: int, other: int, its_row: int) -> str:
    held, trained = datasets[d].sample(split, row).id, datasets[other].sample("train", its_row).id
    return f"{trained} (train in {datasets[other].path.name}) = {held} ({split} in {datasets[d].path.name})"


def _seen(dataset: Dataset, split: str) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The hash of every image or document of a split, and the row that shows it. (n,) each.

    Eight bytes of SHA-256: among a million images, chance makes two alike once in ten million times.
    """
    texts: list[str] = []
    rows = [np.zeros(0, np.int64)]
    before = 0
    for name, shard in dataset.shards(split).items():
        lists = _hashes(dataset.path / name)
        texts += lists.flatten().to_pylist()
        rows.append(lists.value_parent_indices().to_numpy() + before)
        before += shard.rows
    hashes = np.frombuffer(bytes.fromhex("".join(text[:16] for text in texts)), ">u8").astype(np.uint64)
    return hashes, np.concatenate(rows)


def _hashes(file: Path) -> pa.ListArray:
    """For each row of a shard the SHA-256 of what is seen; computed where it was written without."""
    if "seen" in pq.read_schema(file).names:
        lists = pq.read_table(file, columns=["seen"], use_threads=False)["seen"].combine_chunks()
        if np.all(lists.value_lengths().to_numpy() > 0):
            return lists
    return pa.array(_computed(file), pa.list_(pa.string()))


def _computed(file: Path) -> Iterator[list[str]]:
    with pq.ParquetFile(file) as opened:
        for batch in opened.iter_batches(batch_size=BATCH_ROWS, columns=["images", "document"], use_threads=False):
            for row in batch.to_pylist():
                seen = [image["bytes"] for image in row["images"]]
                seen += [] if row["document"] is None else [row["document"].encode("utf-8", "surrogatepass")]
                yield [hashlib.sha256(data).hexdigest() for data in seen]
