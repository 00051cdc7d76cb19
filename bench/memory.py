"""Is what `train --dry-run` says true? Memory, time and disk of six recipes, foreseen and measured.

    python bench/memory.py [--steps 24]

Memory on CUDA is what torch's allocator reports; on a CPU the sum of what its allocator handed out and got back, from
torch's profiler. Both are of the training itself, without the libraries' code.
"""

import argparse
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import visiontune
from visiontune.data.dataset import Dataset
from visiontune.demo_shapes import draw_source
from visiontune.machine import hardware
from visiontune.run import Run
from visiontune.training import loop
from visiontune.training.plan import derive, plan_run
from visiontune.training.plan_objects import derive_objects
from visiontune.training.ranks import Ranks
from visiontune.training.session import set_up

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.allocated import peak_of_steps
from tests.mixed_lengths import write_mixed

LORA = {
    "parts.vision_encoder": "frozen", "parts.projector": "full", "parts.language_model": "lora",
    "parts.embeddings": "frozen", "features.cache": "never",
}  # fmt: skip
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "SmolVLM, full": ("tiny/smolvlm", {}),
    "SmolVLM, LoRA": ("tiny/smolvlm", LORA),
    "SmolVLM, LoRA, recomputed": ("tiny/smolvlm", {**LORA, "machine.recompute": True}),
    "Qwen2.5-VL, LoRA, packed": ("tiny/qwen-vl", {**LORA, "batch.packing": True}),
    "DeepSeek-OCR, LoRA": ("tiny/deepseek-ocr", {**LORA, "parts.projector": "lora"}),
    "RF-DETR, full": ("tiny/rf-detr", {}),
}
MEASURED = 4  # steps whose memory is followed


def planned(name: str, folder: Path, texts: Dataset, shapes: Dataset, steps: int) -> Run:
    """A run of one of RECIPES that is yet to be trained."""
    model, changes = RECIPES[name]
    machine = hardware()
    run = Run(folder / name.replace(" ", "-"))
    short = {
        "schedule.steps": steps,
        "evaluation.every": steps,
        "evaluation.samples": 4,
        "checkpoints.every": steps // 4,
    }
    if model == "tiny/rf-detr":
        recipe, _ = derive_objects([shapes], [None], model, machine, asked={"objects.masks": False})
        plan_run(run, recipe.changed({**short, **changes}), [shapes])
    else:
        recipe = derive([texts], [None], model, machine)
        plan_run(run, recipe.changed({**short, "batch.samples": 16, "batch.window": 64, **changes}), [texts])
    return run


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=24)
    steps = parser.parse_args().steps
    device = hardware()
    print(f"{device.name}, {platform.machine()}, torch {torch.__version__}, {steps} steps each")
    print("| recipe | memory foreseen | measured | | step foreseen | measured | checkpoints foreseen | measured |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = visiontune.prepare(write_mixed(folder / "texts", 300, side=64), folder / "texts-data")
        draw_source(folder / "shapes", 120)
        shapes = visiontune.prepare(folder / "shapes" / "annotations.json", folder / "shapes-data")
        assert isinstance(texts, Dataset) and isinstance(shapes, Dataset)
        for title in RECIPES:
            run = planned(title, folder, texts, shapes, steps)
            found = loop.dry_run(run)
            measured = peak_of_steps(set_up(run, run.recipe, Ranks(run.recipe.machine.device)), MEASURED)
            try:
                loop.train_run(run)
            except visiontune.VisiontuneError as error:
                print(error.found, file=sys.stderr)  # so short a run may fail "image matters"
            numbers = next(one for one in run.receipts if one["name"] == "memory")["numbers"]["forecast"]
            print(
                f"| {title} | {found.memory_bytes / 2**20:.1f} MiB | {measured / 2**20:.1f} MiB "
                f"| {found.memory_bytes / measured - 1:+.2%} | {found.step_seconds:.3f} s "
                f"| {numbers['measured_step_seconds']:.3f} s | {found.disk_bytes['checkpoints'] / 2**20:.1f} MiB "
                f"| {numbers['measured_checkpoint_bytes'] / 2**20:.1f} MiB |",
                flush=True,
            )


if __name__ == "__main__":
    main()
