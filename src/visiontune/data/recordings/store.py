"""From a Recording to a dataset on disk: memory-mapped arrays, trials with their splits, dataset.json last.

Killed anywhere and run again, it ends the same: arrays are written in a hidden folder, moved, and only then named.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visiontune.data import faults
from visiontune.data.dataset_info import (
    INFO_NAME,
    SCHEMA_VERSION,
    DatasetInfo,
    LeftOut,
    Provenance,
    RecordingSummary,
    ShardInfo,
    read_info,
)
from visiontune.data.faults import Fault
from visiontune.data.folder import WORK_NAME
from visiontune.data.prepare import owned
from visiontune.data.recordings.chunks import Chunk, read, spans
from visiontune.data.recordings.examine import empty_splits, examine
from visiontune.data.recordings.recording import Recording
from visiontune.data.recordings.split import Clusters, clusters, in_blocks, with_splits
from visiontune.data.recordings.survey import Survey, survey
from visiontune.data.split import SPLITS
from visiontune.errors import DataError
from visiontune.files import file_sha256, full_disk_said, sync_folder, write_json, written_whole

TRIALS_NAME = "trials.json"
# What the split and the store do with a recording: another number, another dataset from the same arrays.
STORE_VERSION = 1


@dataclass(frozen=True)
class StoredTrial:
    """A trial as trials.json lists it. `split` None: left out. `content`: the SHA-256 of its frames. Trials of one
    `group`, named by its first, show the same or nearly the same: they stand in one split. `offset`: how many bins of
    its stimulus lie before it, where it is a later part of a trial that was interrupted. 0 is not listed."""

    id: str
    start: int
    stop: int
    kind: str
    condition: str | None
    split: str | None
    content: str
    group: int
    offset: int = 0


def write_recording(
    recording: Recording,
    out: Path,
    seed: int = 0,
    *,
    earlier: Mapping[str, str] | None = None,
    known: Sequence[Fault] = (),
    strict: bool = False,
) -> Path:
    """Write one session as the dataset `out`; a dataset there that was made from the same is left as it is.

    `earlier` maps contents of trials (`contents`) to the splits that they have in other sessions. `known` are faults
    that its reader found. Raises DataError for faults that are errors, with `strict` also for trials that would be left
    out, and where another dataset stands in `out`.
    """
    out = Path(out)
    recording = in_blocks(recording)
    found = survey(recording)
    together = clusters(recording.trials, found)
    said = faults.ordered([*known, *examine(recording, found, together)])
    _refuse_errors(said, recording.name)
    key = json.dumps([STORE_VERSION, SCHEMA_VERSION, seed, found.fingerprint])
    fingerprint = hashlib.sha256(key.encode()).hexdigest()
    with owned(out, {INFO_NAME, WORK_NAME}), full_disk_said(out):
        if (out / INFO_NAME).is_file():
            _refuse_another(read_info(out), out, seed, fingerprint)
        else:
            stored = placed(recording, found, together, seed, earlier or {})
            left_out = [_bridging(trial) for trial in stored if trial.split is None]
            said = faults.ordered([*said, *empty_splits(bins_of(stored))])
            if strict and left_out:
                raise DataError(
                    f"{len(left_out)} trials cannot be used: {left_out[0].id}: {left_out[0].found}",
                    where=recording.name,
                    fix=left_out[0].fix,
                )
            shutil.rmtree(out / WORK_NAME, ignore_errors=True)
            (out / WORK_NAME).mkdir()
            files = _write_files(recording, found, stored, out)
            info = _info(recording, found, stored, files, said, left_out, seed=seed, fingerprint=fingerprint)
            write_json(out / WORK_NAME / INFO_NAME, info.model_dump(mode="json"))
            (out / WORK_NAME / INFO_NAME).replace(out / INFO_NAME)
            sync_folder(out)
        shutil.rmtree(out / WORK_NAME, ignore_errors=True)
    return out


def placed(
    recording: Recording, found: Survey, together: Clusters, seed: int, earlier: Mapping[str, str]
) -> list[StoredTrial]:
    """The trials with their splits; `earlier` as for `write_recording`."""
    splits = with_splits(recording, found, together.of, seed, earlier)
    return [
        StoredTrial(t.id, t.start, t.stop, t.kind, t.condition, split, of.content, group, t.offset)
        for t, split, of, group in zip(recording.trials, splits, found.trials, together.of.tolist(), strict=True)
    ]


def read_trials(folder: Path) -> list[StoredTrial]:
    """The trials of a prepared recording, in the order of time."""
    path = folder / TRIALS_NAME
    try:
        return [StoredTrial(**trial) for trial in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError, OSError) as error:
        raise DataError(
            f"the trials cannot be read: {error}", where=str(path), fix="copy the folder again, or prepare anew"
        ) from error


def contents(folder: Path) -> dict[str, str]:
    """The splits of what a prepared recording shows, by content: what `earlier` takes."""
    return splits_of(read_trials(folder))


def splits_of(trials: Sequence[StoredTrial]) -> dict[str, str]:
    """The splits of what trials show, by content; those that are left out have none."""
    return {trial.content: trial.split for trial in trials if trial.split is not None}


def bins_of(trials: Sequence[StoredTrial]) -> dict[str, int]:
    """The bins in each split."""
    return {split: sum(t.stop - t.start for t in trials if t.split == split) for split in SPLITS}


def _listed(trials: Sequence[StoredTrial]) -> list[dict[str, Any]]:
    """The trials as trials.json lists them."""
    rows = [asdict(trial) for trial in trials]
    return [{name: value for name, value in row.items() if name != "offset" or value} for row in rows]


def _refuse_errors(found: Sequence[Fault], name: str) -> None:
    errors = [fault for fault in found if fault.severity == "error"]
    if errors:
        more = f"; and {len(errors) - 1} more errors" if len(errors) > 1 else ""
        raise DataError(f"{errors[0].found}{more}", where=f"{name}: {errors[0].where}", fix=errors[0].fix)


def _refuse_another(info: DatasetInfo, out: Path, seed: int, fingerprint: str) -> None:
    if info.provenance.fingerprint == fingerprint:
        return
    other = f"was split with seed {info.split_seed}" if info.split_seed != seed else "was made from other data"
    raise DataError(
        f"the dataset there {other}, and a prepared recording is not changed",
        where=str(out),
        fix="use another --out, or delete that folder first",
    )


def _bridging(trial: StoredTrial) -> LeftOut:
    fault = faults.bridges_splits(trial.id)
    found = "it repeats what is shown in two different splits"
    return LeftOut(id=trial.id, code=fault.code, found=found, fix="give all repeats of a stimulus one split")


def _write_files(recording: Recording, found: Survey, trials: Sequence[StoredTrial], out: Path) -> dict[str, ShardInfo]:
    """All files but dataset.json: written in the hidden folder, then moved to where they belong."""
    work = out / WORK_NAME
    _write_arrays(recording, _arrays(recording, found), work)
    if recording.eye is not None:
        with written_whole(work / "eye.npy") as aside, aside.open("wb") as file:
            np.save(file, np.asarray(recording.eye, np.float32), allow_pickle=False)
    write_json(work / TRIALS_NAME, _listed(trials))
    files = {}
    for path in sorted(work.iterdir()):
        rows = len(trials) if path.name == TRIALS_NAME else len(recording.stimulus)
        files[path.name] = ShardInfo(rows=rows, bytes=path.stat().st_size, sha256=file_sha256(path))
        path.replace(out / path.name)
    sync_folder(out)
    return files


@dataclass(frozen=True)
class _Array:
    """An array to write: its file, its form, and what of a chunk goes into it."""

    name: str
    shape: tuple[int, ...]
    kind: np.dtype[Any]
    take: Callable[[Chunk], NDArray[Any] | None]


def _arrays(recording: Recording, found: Survey) -> list[_Array]:
    frame_type = np.dtype(np.uint8 if recording.stimulus.dtype == np.uint8 else np.float32)
    wide = (len(recording.stimulus), recording.counts.shape[1] if found.valid_a_unit else 1)
    arrays = [
        _Array("stimulus.npy", recording.stimulus.shape, frame_type, lambda chunk: chunk.frames),
        _Array("counts.npy", recording.counts.shape, _counts_type(found), lambda chunk: chunk.counts),
        _Array("valid.npy", wide, np.dtype(bool), lambda c: np.broadcast_to(c.valid, (len(c.valid), wide[1]))),
    ]
    if recording.behaviour is not None:
        arrays.append(
            _Array("behaviour.npy", recording.behaviour.shape, np.dtype(np.float32), lambda chunk: chunk.behaviour)
        )
    return arrays


def _counts_type(found: Survey) -> np.dtype[Any]:
    """The smallest type that holds the counts exactly: uint8, uint16 or float32."""
    if found.fractional_counts or found.largest_count > np.iinfo(np.uint16).max:
        return np.dtype(np.float32)
    return np.dtype(np.uint8 if found.largest_count <= np.iinfo(np.uint8).max else np.uint16)


def _write_arrays(recording: Recording, arrays: Sequence[_Array], folder: Path) -> None:
    """Write .npy files chunk by chunk. Not through a memory map: on a full disk that ends by a signal, not an error."""
    with ExitStack() as stack:
        files = []
        for array in arrays:
            aside = stack.enter_context(written_whole(folder / array.name))
            files.append(stack.enter_context(aside.open("wb")))
            header = {"descr": array.kind.str, "fortran_order": False, "shape": array.shape}
            np.lib.format.write_array_header_1_0(files[-1], header)
        for start, stop in spans(recording, 0, len(recording.stimulus)):
            chunk = read(recording, start, stop)
            for array, file in zip(arrays, files, strict=True):
                file.write(np.ascontiguousarray(array.take(chunk), array.kind).tobytes())


def _info(
    recording: Recording,
    found: Survey,
    trials: Sequence[StoredTrial],
    files: dict[str, ShardInfo],
    said: list[Fault],
    left_out: list[LeftOut],
    *,
    seed: int,
    fingerprint: str,
) -> DatasetInfo:
    splits = Counter(trial.split for trial in trials)
    return DatasetInfo(
        content_hash=_content_hash(files, trials, recording),
        seen="clips",
        target="responses",
        labels=None,
        splits={split: splits[split] for split in SPLITS},
        split_seed=seed,
        limit=None,
        provenance=Provenance(
            source=recording.name,
            format="recording",
            created_by=f"visiontune {version('visiontune')}",
            fingerprint=fingerprint,
        ),
        images=None,
        recording=summary_of(recording, found, trials),
        files=files,
        left_out=left_out,
        faults=said,
    )


def _content_hash(files: Mapping[str, ShardInfo], trials: Sequence[StoredTrial], recording: Recording) -> str:
    """SHA-256 over names, the rate, arrays, trials and splits."""
    arrays = {name: shard.sha256 for name, shard in files.items() if name != TRIALS_NAME}
    value = [recording.name, recording.subject, recording.rate, recording.units, recording.behaviour_names]
    text = json.dumps([*value, arrays, _listed(trials)], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def summary_of(recording: Recording, found: Survey, trials: Sequence[StoredTrial]) -> RecordingSummary:
    """What dataset.json says of a recording whose trials have their splits; there is at least one."""
    bins = bins_of(trials)
    channels = 0 if recording.behaviour is None else recording.behaviour.shape[1]
    training = [trial.split == "train" for trial in trials]
    stimulus, behaviour = found.moments(training, channels)
    spikes = np.stack([trial.spikes for trial in found.trials])
    valid = np.stack([trial.valid_bins for trial in found.trials])
    return RecordingSummary(
        name=recording.name,
        subject=recording.subject,
        rate=recording.rate,
        bins=bins,
        height=recording.stimulus.shape[1],
        width=recording.stimulus.shape[2],
        stimulus="uint8" if recording.stimulus.dtype == np.uint8 else "float32",
        units=recording.units,
        kinds=dict(sorted(Counter(trial.kind for trial in trials).items())),
        behaviour_names=recording.behaviour_names or tuple(f"channel {i}" for i in range(channels)),
        eye=recording.eye is not None,
        seconds={split: count / recording.rate for split, count in bins.items()},
        valid=float(valid.sum() / (sum(t.stop - t.start for t in trials) * len(recording.units))),
        stimulus_mean=float(stimulus.mean[0]),
        stimulus_std=float(stimulus.std[0]),
        behaviour_mean=tuple(behaviour.mean.tolist()),
        behaviour_std=tuple(behaviour.std.tolist()),
        mean_counts=tuple((spikes[training].sum(axis=0) / np.maximum(valid[training].sum(axis=0), 1)).tolist()),
    )
