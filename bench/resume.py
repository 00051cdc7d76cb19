"""What a resume costs: start to first step deep in the order, and the time and size of a checkpoint.

The alternative beside it is what an ordinary loader does: it draws a permutation an epoch and skips the samples before
the place it resumes at.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from visiontune.demo import write_digits
from visiontune.machine import hardware
from visiontune.progress import note
from visiontune.run import Run
from visiontune.training import checkpoint
from visiontune.training import optimizer as optimizers
from visiontune.training.batches import load_steps, plan_steps
from visiontune.training.plan import derive, plan_run
from visiontune.training.ranks import Ranks
from visiontune.training.session import set_up

FAR = 10**9


def skipping_loader_seconds(rows: int, position: int) -> float:
    """Seconds to reach a position by drawing and skipping epochs; a thousand epochs measured, the rest in proportion."""
    generator = np.random.default_rng(0)
    epochs = position // rows
    measured = min(epochs, 1000)
    started = time.perf_counter()
    for _ in range(measured):
        generator.permutation(rows)
    return (time.perf_counter() - started) * epochs / max(1, measured)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        photos, data = Path(folder, "photos"), Path(folder, "data")
        write_digits(photos)
        import visiontune

        dataset = visiontune.prepare(photos, data)
        recipe = derive([dataset], [None], "tiny/smolvlm", hardware("cpu")).changed({"machine.workers": 0})
        run = Run(Path(folder, "run"))
        plan_run(run, recipe, [dataset])
        started = time.perf_counter()
        session = set_up(run, recipe, Ranks("cpu"))
        set_up_seconds = time.perf_counter() - started

        print(
            f"start of a run to its first step (model loaded, base hashed, receipts begun): {set_up_seconds:.2f} s, plus"
        )
        for position in (0, FAR):
            started = time.perf_counter()
            step = position // recipe.batch.samples
            plan = plan_steps(session.order, session.lengths, recipe.batch, step, step + 8)
            next(iter(load_steps(plan, session.reading)))
            ours = time.perf_counter() - started
            theirs = skipping_loader_seconds(dataset.count("train"), position)
            print(
                f"  at sample {position:>13,}: {ours * 1000:8.1f} ms to the first batch; drawing and skipping {theirs:8.2f} s"
            )

        batch = session.reading.batch([(0, i, 0) for i in range(8)])
        (session.adapter.losses(batch)["text"].sum() / batch.weights["text"]).backward()
        session.optimizer.step()
        trained = {name: p.detach() for name, p in session.module.named_parameters()}
        moments = optimizers.state_tensors(session.optimizer, session.module)
        seconds = []
        for step in range(1, 6):
            session.progress.step = step
            started = time.perf_counter()
            path = checkpoint.save(run, session.progress, trained, moments, keep=2)
            seconds.append(time.perf_counter() - started)
        size = sum(file.stat().st_size for file in path.iterdir())
        started = time.perf_counter()
        checkpoint.load(run, 5)
        loaded = time.perf_counter() - started
        count = sum(p.numel() for p in trained.values())
        print(f"checkpoint of {count:,} trained parameters: {size / 1e6:.2f} MB ({size / count:.1f} bytes a parameter)")
        print(
            f"  written, synced and hashed in {np.median(seconds) * 1000:.0f} ms, checked and read in {loaded * 1000:.0f} ms"
        )
        whole = Path(folder, "whole.pt")
        started = time.perf_counter()
        torch.save({"model": session.module.state_dict(), "optimizer": session.optimizer.state_dict()}, whole)
        torch_seconds = time.perf_counter() - started
        print(
            f"  torch.save, neither synced nor hashed: {torch_seconds * 1000:.0f} ms, {whole.stat().st_size / 1e6:.2f} MB"
        )
        note("done")


if __name__ == "__main__":
    main()
