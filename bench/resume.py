"""What a resume costs: from the start of the process to the first step, the way to a far place in the order, and the
time and size of a checkpoint.

Beside the order stands what an ordinary loader does: draw an epoch's permutation after another up to the place.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import visiontune
from visiontune.demo import write_digits
from visiontune.errors import PausedError
from visiontune.machine import hardware
from visiontune.run import Run
from visiontune.training import checkpoint
from visiontune.training import optimizer as optimizers
from visiontune.training.batches import load_steps, plan_steps
from visiontune.training.loop import train_run
from visiontune.training.plan import derive, plan_run
from visiontune.training.ranks import Ranks
from visiontune.training.session import set_up

FAR = 10**9
EPOCHS_MEASURED = 1000


def drawing_seconds(rows: int, position: int) -> float:
    """Seconds to draw all permutations up to a position; at most a thousand are measured, the rest in proportion."""
    generator = np.random.default_rng(0)
    epochs = position // rows
    measured = min(epochs, EPOCHS_MEASURED)
    started = time.perf_counter()
    for _ in range(measured):
        generator.permutation(rows)
    return (time.perf_counter() - started) * epochs / max(1, measured)


def resume_seconds(run: Run) -> float:
    """Seconds from starting `visiontune resume` to its first finished step."""
    before = len(run.metrics("step"))
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "visiontune", "resume", str(run.path)], stderr=subprocess.DEVNULL)
    while len(run.metrics("step")) == before and process.poll() is None:
        time.sleep(0.005)
    seconds = time.perf_counter() - started
    process.kill()
    process.wait()
    return seconds


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder, "photos")
        write_digits(photos)
        dataset = visiontune.prepare(photos, Path(folder, "data"))
        recipe = derive([dataset], [None], "tiny/smolvlm", hardware("cpu"))
        run = Run(Path(folder, "run"))
        plan_run(run, recipe, [dataset])
        run.ask_to_pause()
        try:
            train_run(run)
        except PausedError:
            print(
                f"`visiontune resume`, start of the process to the end of its first step: {resume_seconds(run):.1f} s"
            )

        started = time.perf_counter()
        session = set_up(run, recipe, Ranks("cpu"))
        seconds = time.perf_counter() - started
        print(
            f"  of that, model, optimiser and data loaded, base hashed, checks before the first step: {seconds:.2f} s"
        )
        print("to the first batch, ours | drawing every epoch before it")
        for position in (0, FAR):
            started = time.perf_counter()
            step = position // recipe.batch.samples
            next(
                iter(
                    load_steps(
                        plan_steps(session.order, session.lengths, recipe.batch, step, step + 8), session.reading
                    )
                )
            )
            ours = time.perf_counter() - started
            drawn = drawing_seconds(dataset.count("train"), position)
            print(f"  at sample {position:>13,}: {ours * 1000:6.1f} ms | {drawn * 1000:10,.1f} ms")

        trained = {name: p.detach() for name, p in session.module.named_parameters()}
        moments = optimizers.state_tensors(session.optimizer, session.module)
        written = []
        for step in range(10**6, 10**6 + 5):
            session.progress.step = step
            started = time.perf_counter()
            path = checkpoint.save(run, session.progress, trained, moments, keep=2)
            written.append(time.perf_counter() - started)
        size = sum(file.stat().st_size for file in path.iterdir())
        started = time.perf_counter()
        checkpoint.load(run, session.progress.step)
        read = time.perf_counter() - started
        count = sum(p.numel() for p in trained.values())
        print(f"checkpoint of {count:,} trained parameters: {size / 1e6:.2f} MB ({size / count:.1f} bytes a parameter)")
        print(f"  written, hashed, synced: {np.median(written) * 1000:.0f} ms; checked and read: {read * 1000:.0f} ms")
        whole = Path(folder, "whole.pt")
        started = time.perf_counter()
        torch.save({"model": session.module.state_dict(), "optimizer": session.optimizer.state_dict()}, whole)
        seconds = time.perf_counter() - started
        print(f"  torch.save, not hashed, not synced: {seconds * 1000:.0f} ms, {whole.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
