"""Training on texts beside `transformers.Trainer`: real (non-padding) tokens a second and the loss at the end.

    python bench/train_text.py [--steps 60] [--samples 32] [--device cpu] [--compile]

The same model (a SmolVLM of the real classes, random weights), samples encoded by the same processor, AdamW, schedule,
precision and samples a step for both; on answers of one length, and of very mixed lengths (log-normal). Trainer runs as
it comes, and with its grouping by length. The loss is that of held-out samples after the last step, by one function.
Last, the peak memory of a step with and without chunked cross-entropy, by what lives while it runs.
"""

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import visiontune
from visiontune.data.dataset import Dataset
from visiontune.data.order import key
from visiontune.machine import hardware
from visiontune.models import generative
from visiontune.models.load import load_adapter
from visiontune.models.smolvlm import build_tiny
from visiontune.models.token_loss import token_losses
from visiontune.recipe import Recipe
from visiontune.run import Run
from visiontune.training.batches import Reading
from visiontune.training.loop import train_run
from visiontune.training.memory import LiveBytes
from visiontune.training.model import load_trained
from visiontune.training.plan import derive, plan_run

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.mixed_lengths import WORDS, write_mixed

WARM = 10  # steps that are not timed
HELD_OUT = 64
# As much of a decoder's work as SmolVLM-256M's vocabulary is of its own.
WIDTH, LAYERS, VOCABULARY = 192, 4, 2560


def write_model(folder: Path) -> None:
    """A SmolVLM whose vocabulary is padded, as those of published models are."""
    from transformers import AutoModelForImageTextToText

    build_tiny(folder, [WORDS], key(0, 6), width=WIDTH, layers=LAYERS)
    network = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network.resize_token_embeddings(VOCABULARY)
    network.save_pretrained(folder)


def recipe_of(dataset: Dataset, model: Path, steps: int, samples: int, device: str, changes: dict[str, Any]) -> Recipe:
    """What both train: every part in full, no augmentation, one evaluation at the end."""
    recipe = derive([dataset], [None], str(model), hardware(device))  # pyright: ignore[reportArgumentType]
    full = {f"parts.{part}": "full" for part in recipe.parts}
    return recipe.changed(
        {
            **full, "schedule.steps": steps, "schedule.kind": "linear", "optimizer.learning_rate": 5e-4,
            "optimizer.weight_decay": 0.01, "batch.samples": samples, "batch.window": 8 * samples,
            "evaluation.every": steps, "evaluation.samples": 1, "evaluation.max_new_tokens": 1,
            "checkpoints.every": steps, "machine.threads": 1, "machine.workers": 0, **changes,
        }
    )  # fmt: skip


def ours(dataset: Dataset, recipe: Recipe, folder: Path) -> tuple[float, float, float]:
    """Real tokens a second, padding, and the loss of held-out samples."""
    run = Run(folder)
    plan_run(run, recipe, [dataset])
    try:
        train_run(run)
    except visiontune.VisiontuneError as error:
        print(error.found, file=sys.stderr)  # answers here say nothing of their images, and the receipt finds that
    steps = run.metrics("step")[WARM:]
    tokens = sum(step["tokens"] for step in steps)
    computed = sum(step["tokens"] / (1 - step["padding"]) for step in steps)
    adapter, _ = load_trained(run, recipe, torch.device(recipe.machine.device), recipe.schedule.steps)
    return tokens / sum(s["seconds"]["total"] for s in steps), 1 - tokens / computed, held_out_loss(adapter, dataset)


def trainers(dataset: Dataset, recipe: Recipe, folder: Path, model: Path, sampling: str) -> tuple[float, float, float]:
    """The same of `transformers.Trainer`."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    adapter: Any = load_adapter(str(model), None, recipe.data)
    reading, encoder = Reading([dataset], adapter.encoder), adapter.encoder
    lengths = encoder.lengths(dataset.index("train"))
    counted: list[tuple[float, int, int]] = []

    class Rows(torch.utils.data.Dataset[dict[str, Any]]):
        def __len__(self) -> int:
            return len(lengths)

        def __getitem__(self, row: int) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
            return {"row": row, "length": int(lengths[row]), "input_ids": range(int(lengths[row]))}

    def collated(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = reading.batch([(0, one["row"], 0) for one in rows])
        counted.append((0.0, batch.tokens, batch.padded_tokens))
        labels = batch.tensors["input_ids"].masked_fill(~batch.tensors["supervised"], -100)
        return {name: batch.tensors[name] for name in ("input_ids", "attention_mask", "pixel_values")} | {
            "labels": labels
        }

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            _, tokens, padded = counted[len(ends)]
            ends.append((time.perf_counter(), tokens, padded))

    ends: list[tuple[float, int, int]] = []
    choices = recipe.optimizer
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=recipe.schedule.steps, per_device_train_batch_size=recipe.batch.samples,
        learning_rate=choices.learning_rate, weight_decay=choices.weight_decay, adam_beta2=choices.beta2,
        lr_scheduler_type="linear", warmup_steps=round(recipe.schedule.warmup * recipe.schedule.steps),
        max_grad_norm=choices.clip_norm or 0.0, save_strategy="no", report_to="none", disable_tqdm=True,
        remove_unused_columns=False, train_sampling_strategy=sampling, length_column_name="length", seed=0,
        logging_strategy="no", use_cpu=recipe.machine.device == "cpu", bf16=recipe.machine.precision == "bf16",
    )  # fmt: skip
    trainer = Trainer(
        model=adapter.network, args=arguments, train_dataset=Rows(), data_collator=collated, callbacks=[Clock()]
    )
    torch.set_num_threads(recipe.machine.threads)
    adapter.network.train()
    trainer.train()
    timed = ends[WARM:]
    tokens, padded = sum(one[1] for one in timed), sum(one[2] for one in timed)
    return tokens / (timed[-1][0] - ends[WARM - 1][0]), 1 - tokens / padded, held_out_loss(adapter, dataset)


@torch.no_grad()
def held_out_loss(adapter: Any, dataset: Dataset) -> float:
    """The mean loss of a token of held-out answers."""
    adapter.network.eval()
    device = next(adapter.network.parameters()).device
    reading, found, weight = Reading([dataset], adapter.encoder, "validation"), 0.0, 0
    for row in range(min(HELD_OUT, dataset.count("validation"))):
        batch = reading.batch([(0, row, 0)])
        found += float(adapter.losses(batch.to(device))["text"].sum())
        weight += batch.weights["text"]
    return found / weight


def logits_memory(model: Path, dataset: Dataset, recipe: Recipe) -> None:
    """The peak of a step whose logits exist at once, and some at a time, with SmolVLM's real vocabulary."""
    adapter: Any = load_adapter(str(model), None, recipe.data)
    adapter.network.resize_token_embeddings(49_280)
    batch = Reading([dataset], adapter.encoder).batch([(0, row, 0) for row in range(96)])
    peaks = {}
    for name, at_once in (("all logits at once", 2**62), ("2 ** 24 numbers at a time", 2**24)):
        generative.token_losses = lambda *given, at_once=at_once: token_losses(*given, at_once)
        with LiveBytes([*adapter.network.parameters(), *batch.tensors.values()]) as live:
            adapter.losses(batch)["text"].sum().backward()
        adapter.network.zero_grad()
        peaks[name] = live.peak
    generative.token_losses = token_losses
    print(f"\npeak memory of a step, {int(batch.weights['text'])} learned tokens, vocabulary 49,280:")
    for name, peak in peaks.items():
        print(f"- {name}: {peak / 2**20:,.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="and with compiled layers, whose first steps are slow")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model")
        print(f"{hardware(given.device).name}, {platform.machine()}, torch {torch.__version__}, one thread of the CPU")
        print("| lengths | who | real tokens a second | against | padding | loss at the end |")
        print("|---|---|---|---|---|---|")
        for kind, spread in (("equal", 0.0), ("mixed", 1.1)):
            source = write_mixed(folder / f"{kind}-source", given.rows, spread=spread, median=24)
            dataset = visiontune.prepare(source, folder / kind)
            assert isinstance(dataset, Dataset)
            runs = {"visiontune": {}, "visiontune, packed": {"batch.packing": True}}
            runs |= {"visiontune, compiled": {"machine.compile": True}} if given.compile else {}
            options = (dataset, folder / "model", given.steps, given.samples, given.device)
            found = {
                title: ours(dataset, recipe_of(*options, changes), folder / f"{kind}-{title}")
                for title, changes in runs.items()
            }
            recipe = recipe_of(*options, {})
            for title, sampling in (("Trainer", "random"), ("Trainer, grouped", "group_by_length")):
                found[title] = trainers(dataset, recipe, folder / f"{kind}-{title}", folder / "model", sampling)
            for title, (speed, padding, loss) in found.items():
                against = " ".join(f"{speed / found[other][0]:.2f}x" for other in ("Trainer", "Trainer, grouped"))
                print(f"| {kind} | {title} | {speed:,.0f} | {against} | {padding:.1%} | {loss:.4f} |", flush=True)
        logits_memory(folder / "model", dataset, recipe)


if __name__ == "__main__":
    main()
