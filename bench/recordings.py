"""How fast recordings reach a model: clips, as training reads them, beside windows, one for each predicted bin.

A session of 51 x 51 uint8 frames and 116 units, windows of 33 frames (facts of the field). Printed: predicted bins a
second on one core, for the path of training (memory-mapped file to batch), windows gathered at once as uint8, and
windows taken one by one, cast to float and collated, as loaders of windows do.

    python bench/recordings.py [--seconds 3]
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from visiontune.data.recordings.clips import ClipDataset
from visiontune.data.recordings.recording import Recording, Trial
from visiontune.data.recordings.store import write_recording
from visiontune.models.cortex import ClipEncoder
from visiontune.models.cortex_network import CortexConfig
from visiontune.recipe import ResponseChoices
from visiontune.training.batches import Reading

SIDE, UNITS, WINDOW, BATCH, CLIP, BINS = 51, 116, 33, 256, 256, 36_000


def session(folder: Path) -> Path:
    generator = np.random.default_rng(0)
    trials = tuple(Trial(f"trial-{i}", i * 600, (i + 1) * 600) for i in range(BINS // 600))
    recording = Recording(
        name="session",
        rate=120.0,
        stimulus=generator.integers(0, 256, (BINS, SIDE, SIDE), dtype=np.uint8),
        counts=generator.poisson(0.1, (BINS, UNITS)).astype(np.uint8),
        valid=np.ones((BINS, 1), bool),
        units=tuple(f"u{i}" for i in range(UNITS)),
        trials=trials,
    )
    return write_recording(recording, folder / "session")


def rate(work: Callable[[int], int], seconds: float) -> float:
    """Bins a second: `work` takes a number and returns how many bins it made."""
    work(0)
    done, turn, started = 0, 1, time.perf_counter()
    while time.perf_counter() - started < seconds:
        done += work(turn)
        turn += 1
    return done / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each path")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        path = session(Path(name))
        burn_in = WINDOW - 1
        dataset = ClipDataset.open(path, CLIP, burn_in)
        shape = {"channels": (8,), "kernels": (7,), "temporal_kernels": (1,), "strides": (1,), "pools": (1,)}
        choices = ResponseChoices(clip=CLIP, burn_in=burn_in, rate=120.0, **shape)
        config = CortexConfig(
            height=SIDE, width=SIDE, stimulus_mean=127.0, stimulus_std=74.0, sessions=("session",),
            units=dataset.units, **shape,
        )  # fmt: skip
        reading = Reading([dataset], ClipEncoder(config, choices))
        count = dataset.count("train")
        together = 8

        def clips(turn: int) -> int:
            batch = reading.batch([(0, (turn * together + i) % count, 0) for i in range(together)])
            return len(batch.ids) * CLIP

        stimulus = torch.from_numpy(np.load(path / "stimulus.npy"))
        counts = torch.from_numpy(np.load(path / "counts.npy"))
        lags = torch.arange(WINDOW)
        generator = np.random.default_rng(1)

        def gathered(turn: int) -> int:
            starts = torch.from_numpy(generator.integers(0, BINS - WINDOW, BATCH))
            rows = torch.index_select(stimulus.flatten(1), 0, (starts[:, None] + lags).flatten())
            windows = rows.view(BATCH, WINDOW, SIDE, SIDE)
            return len(windows) if len(counts[starts + burn_in]) else 0

        def one_by_one(turn: int) -> int:
            items = []
            for start in generator.integers(0, BINS - WINDOW, BATCH).tolist():
                window = stimulus[start : start + WINDOW].float() / 255
                items.append((window, counts[start + burn_in].float()))
            return len(torch.utils.data.default_collate(items)[0])

        slow = rate(one_by_one, arguments.seconds)
        for said, work in (("clips, as training reads them", clips), ("windows gathered as uint8", gathered)):
            found = rate(work, arguments.seconds)
            print(f"{said}: {found:,.0f} bins/s, {found / slow:,.0f}x", flush=True)
        print(f"windows one by one, cast and collated: {slow:,.0f} bins/s")


if __name__ == "__main__":
    main()
