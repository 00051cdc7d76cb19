"""Where a training step's time goes, with a model eight times the demo's; beside it a bare loop on the same batches.

The share of a step spent in neither the model nor the optimiser is the loop's own cost: waiting for data, counting,
logging.
"""

import tempfile
import time
from pathlib import Path

import torch

import visiontune
from visiontune.data.order import key
from visiontune.demo import write_digits
from visiontune.machine import hardware
from visiontune.models.smolvlm import build_tiny
from visiontune.run import Run
from visiontune.training.batches import Reading
from visiontune.training.loop import train_run
from visiontune.training.model import load_base
from visiontune.training.plan import derive, plan_run

STEPS, WARM = 60, 10


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder, "photos")
        write_digits(photos)
        dataset = visiontune.prepare(photos, Path(folder, "data"))
        checkpoint = Path(folder, "checkpoint")
        recipe = derive([dataset], [None], "tiny/smolvlm", hardware("cpu"))
        build_tiny(checkpoint, [recipe.data.prompt, *"0123456789"], key(0, 6), width=288, layers=3)
        recipe = recipe.changed(
            {
                "model.name": str(checkpoint),
                "data.limit": 600,
                "schedule.steps": STEPS,
                "evaluation.every": STEPS,
                "evaluation.samples": 8,
                "checkpoints.every": STEPS,
            }
        )
        run = Run(Path(folder, "run"))
        plan_run(run, recipe, [dataset])
        try:
            train_run(run)
        except visiontune.VisiontuneError as error:
            print(error.found)  # so short a run may fail the receipt "image matters"; its times are the same
        steps = run.metrics("step")[WARM:]
        total = sum(entry["seconds"]["total"] for entry in steps)
        shares = {
            n: sum(e["seconds"][n] for e in steps) / total
            for n in ("data", "forward", "backward", "optimizer", "other")
        }

        adapter = load_base(run, recipe, torch.device("cpu"))
        count = sum(p.numel() for p in adapter.network.parameters())
        optimizer = torch.optim.AdamW(adapter.network.parameters(), lr=1e-4)
        reading = Reading([dataset], adapter.encoder)
        batches = [reading.batch([(0, 32 * s + i, 0) for i in range(32)]) for s in range(10)]
        for _ in range(2):  # the first turn warms up
            started = time.perf_counter()
            for batch in batches:
                optimizer.zero_grad()
                (adapter.losses(batch)["text"].sum() / batch.weights["text"]).backward()
                torch.nn.utils.clip_grad_norm_(adapter.network.parameters(), 1.0)
                optimizer.step()
            bare = (time.perf_counter() - started) / len(batches)
        print(f"model of {count:,} parameters, {recipe.batch.samples} samples a step, {recipe.machine.threads} threads")
        print(
            f"visiontune: {total / len(steps) * 1000:.1f} ms a step: "
            + ", ".join(f"{n} {s:.1%}" for n, s in shares.items())
        )
        print(f"neither model nor optimiser: {shares['data'] + shares['other']:.2%} of a step")
        print(f"bare loop on batches already in memory: {bare * 1000:.1f} ms a step")


if __name__ == "__main__":
    main()
