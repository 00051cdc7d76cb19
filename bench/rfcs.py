"""Can a small DeepSeek-OCR learn 32 documents by heart, and is it the pages that it answers to?

The documents are the shortest of a table; each is trained on with its own summary until that comes out word for word.
Then the same model is asked about the same documents, about blank pages, about each other's pages, and about the text
itself as tokens. Answers must also end where the summary ends, and not where the room for them does.

    python bench/rfcs.py rfcs.jsonl      (one JSON object a line: "id", "text", "summary")
"""

import json
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from visiontune.data.dataset import Dataset
from visiontune.data.pages import DEFAULT_FONT, PageSpec, load_fonts
from visiontune.data.prepare import prepare
from visiontune.data.sample import Sample
from visiontune.machine import hardware
from visiontune.metrics.text import score_texts
from visiontune.models.adapter import ModelAdapter
from visiontune.recipe import Recipe
from visiontune.run import Run
from visiontune.training.baselines import compare
from visiontune.training.evaluate import predict_split
from visiontune.training.loop import train_run
from visiontune.training.model import load_trained
from visiontune.training.plan import derive, plan_run
from visiontune.training.ranks import Ranks

DOCUMENTS, HELD_OUT = 32, 2
SIDE, FONT_SIZE = 512, 12
STEPS = 500
LEARNING = {
    # Its random features tell pages apart. Trained from nothing, it lets the decoder first learn the summaries alone.
    "parts.vision_encoder": "frozen",
    "optimizer.learning_rate": 2e-3,
    "optimizer.weight_decay": 0.0,
    "optimizer.beta2": 0.99,
    "schedule.steps": STEPS,
    "schedule.warmup": 0.05,
    "batch.samples": 16,
    "batch.window": 32,
    "evaluation.every": STEPS,
    "checkpoints.every": STEPS,
    "machine.threads": 1,
    "machine.workers": 0,
}


def prepared(table: Path, folder: Path) -> Dataset:
    """The shortest documents as the training split, and the next ones as the others, which a run wants to have."""
    rows = sorted(map(json.loads, table.read_text("utf-8").splitlines()), key=lambda row: (len(row["text"]), row["id"]))
    splits = ["train"] * DOCUMENTS + ["validation"] * HELD_OUT + ["test"] * HELD_OUT
    lines = [json.dumps({**row, "split": split}) for row, split in zip(rows, splits, strict=False)]
    (folder / "rfcs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    fonts = load_fonts([DEFAULT_FONT])
    spec = PageSpec(width=SIDE, height=SIDE, margins=(8, 8, 8, 8), font_size=FONT_SIZE, fonts=fonts.refs)
    return prepare(folder / "rfcs.jsonl", folder / "data", pages=spec, workers=1)


def ended(adapter: ModelAdapter, samples: Sequence[Sample], recipe: Recipe) -> int:
    """How many answers end with the end token."""
    encoder, count = adapter.encoder, 0
    for sample in samples:
        batch = encoder.collate([encoder.encode(sample, with_answer=False)], pad_left=True)
        (trace,) = adapter.trace(batch, recipe.evaluation.max_new_tokens)
        count += len(trace.tokens) < recipe.evaluation.max_new_tokens
    return count


def main() -> None:
    if len(sys.argv) < 2:
        print("no table of documents given; see the first lines of this file")
        return
    print(f"{platform.platform()}, Python {platform.python_version()}, torch {torch.__version__}; one thread")
    with tempfile.TemporaryDirectory() as folder:
        dataset = prepared(Path(sys.argv[1]), Path(folder))
        started = time.process_time()
        run = Run(Path(folder, "run"))
        plan_run(run, derive([dataset], [None], "tiny/deepseek-ocr", hardware("cpu")).changed(LEARNING), [dataset])
        train_run(run)
        seconds = time.process_time() - started
        losses = [entry["loss"] for entry in run.metrics("step")]
        cpu = torch.device("cpu")
        adapter, _ = load_trained(run, run.recipe, cpu)
        samples = [dataset.sample("train", i) for i in range(dataset.count("train"))]
        predictions = predict_split(adapter, [dataset], "train", run.recipe, Ranks("cpu"))
        own = score_texts(predictions).metric("rougeL")
        pages = dataset.index("train").pages
        print(f"{len(samples)} documents on {sum(pages)} pages of {SIDE} px, {STEPS} steps, {seconds:.0f} CPU s")
        print(f"loss {sum(losses[:20]) / 20:.3f} in the first 20 steps, {sum(losses[-20:]) / 20:.4f} in the last 20")
        print(f"answers that end by themselves: {ended(adapter, samples, run.recipe)} of {len(samples)}\n")
        print("| what is shown | ROUGE-L | 95 % interval |")
        print("|---|---|---|")
        print(f"| the pages that were learned | {own.value:.3f} | {own.low:.3f} to {own.high:.3f} |")
        for one in compare(adapter, samples, predictions, run.recipe, cpu):
            score = one.metrics["rougeL"]
            print(f"| {one.name} | {score.value:.3f} | {score.low:.3f} to {score.high:.3f} |")


if __name__ == "__main__":
    main()
