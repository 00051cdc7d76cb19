"""Recordings of neurons: train one visual core that predicts the units of all sessions, and ask it about a movie.

    python examples/recordings.py [SESSIONS [OUT]]

SESSIONS is a folder of sessions: folders of arrays, NPZ, HDF5 or NWB files (docs/recordings.md). Without it two
sessions are simulated. The same at the command line:
visiontune train SESSIONS --recipe examples/recordings.yaml --out OUT/core
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import visiontune

SECONDS, UNITS, SIZE = 120, 12, (16, 16)


def write_sessions(folder: Path) -> Path:
    """Write two simulated sessions as NPZ files, with the arrays that every recording needs and its trials."""
    import numpy as np

    from visiontune.simulated_neurons import simulate

    folder.mkdir(parents=True)
    for seed in range(2):
        made = simulate(f"session-{seed}", seed=seed, units=UNITS, seconds=SECONDS, size=SIZE, repeats=(1, 6)).recording
        lengths = [trial.stop - trial.start for trial in made.trials]
        conditions = np.array([int(trial.condition or -1) for trial in made.trials])  # equal ones show the same frames
        np.savez(
            folder / f"{made.name}.npz",
            stimulus=made.stimulus,  # (bins, height, width)
            counts=made.counts,  # (bins, units)
            rate=made.rate,  # bins a second
            trials=np.repeat(np.arange(len(lengths)), lengths),  # (bins,)
            conditions=np.repeat(conditions, lengths),
        )
    return folder


def main(data: Path | None = None, out: Path | None = None, *, overrides: dict[str, Any] | None = None) -> None:
    """`overrides` are fields of the recipe, on top of those in recordings.yaml."""
    import numpy as np

    out = out or Path(tempfile.mkdtemp(prefix="recordings-"))
    sessions = visiontune.prepare_recordings(data or write_sessions(out / "source"), out / "data")
    run = visiontune.train(
        *(session.path for session in sessions),
        out=out / "core",
        recipe=Path(__file__).with_suffix(".yaml"),
        overrides=overrides,
    )
    scores = visiontune.evaluate(run.path, split="test")
    print(f"bits per spike on the test split, a mean over units: {scores.metric('bits_per_spike').value}")
    movie = np.load(sessions[0].path / "stimulus.npy", mmap_mode="r")[:200]
    np.save(out / "movie.npy", movie)
    (rates,) = visiontune.predict_movies(run.path, [out / "movie.npy"], session=sessions[0].path.name)
    print(f"what its units would do in 200 frames: {rates}; all of it on one page: {out / 'core/report.html'}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
