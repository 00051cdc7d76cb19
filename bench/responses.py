"""Simulated recordings, whose best possible score is known: how much of it a shared core reaches, beside cores of
single sessions, and a new session's readouts on the frozen core beside joint training.

    python bench/responses.py [--sessions 8] [--seconds 600] [--only shared,single,new]

The oracle predicts with the rates that the spikes were drawn from. Scores are means over units of bits per spike, on
the test split.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import visiontune
from visiontune.demo_responses import CHOICES, beside_the_oracle, simulated_sessions
from visiontune.run import Run


def train(data: list[Path], out: Path, **options: Any) -> tuple[Run, float]:
    started = time.monotonic()
    visiontune.train(*data, out=out, **options)
    took = time.monotonic() - started
    visiontune.evaluate(out, split="test")
    return Run(out), took


def said(name: str, found: dict[str, tuple[float, float]], took: float, steps: int) -> None:
    own, best = (float(np.mean([pair[place] for pair in found.values()])) for place in (0, 1))
    print(f"{name}: {own:.4f} bits per spike of the oracle's {best:.4f}, {own / best:.1%}; {steps} steps, {took:.0f} s",
          flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--only", default="shared,single,new")
    parser.add_argument("--epochs", type=float, default=None)
    parser.add_argument("--set", action="append", default=[], help="a recipe field, as responses.core=conv")
    arguments = parser.parse_args()
    import yaml

    overrides = CHOICES | {k: yaml.safe_load(v) for k, _, v in (one.partition("=") for one in arguments.set)}
    wanted = arguments.only.split(",")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        units = [100] * arguments.sessions + ([120] if "new" in wanted else [])
        data, rates = simulated_sessions(folder, units, arguments.seconds)
        old, new = data[: arguments.sessions], data[arguments.sessions :]
        options = {"overrides": overrides, "epochs": arguments.epochs}
        run, took = train(old, folder / "shared", **options)
        steps = run.recipe.schedule.steps
        said(f"one core, {len(old)} sessions", beside_the_oracle(run, rates), took, steps)
        if "single" in wanted:
            alone: dict[str, tuple[float, float]] = {}
            total, each = 0.0, max(1, steps // len(old))
            for place in old:
                single = {"overrides": overrides | {"schedule.steps": each}}
                run_alone, took = train([place], folder / f"alone-{place.name}", **single)
                alone |= beside_the_oracle(run_alone, rates)
                total += took
            said(f"{len(old)} cores of single sessions, as many clips of each", alone, total, each)
        if "new" in wanted:
            run_new, took = train(new, folder / "new", start=run.path)
            steps_new = run_new.recipe.schedule.steps
            said("a new session on the frozen core", beside_the_oracle(run_new, rates), took, steps_new)
            joint, took = train(data, folder / "joint", **options)
            mine = {name: pair for name, pair in beside_the_oracle(joint, rates).items() if name == new[0].name}
            said("that session in joint training", mine, took, joint.recipe.schedule.steps)


if __name__ == "__main__":
    main()
