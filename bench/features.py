"""Steps a second with the frozen vision encoder's features read from disk, beside pages drawn and encoded in each step.

Both runs go through the whole product (loader, loop, receipts): small DeepSeek-OCR models of both generations with the
published patches of 16 pixels, random weights, LoRA in projector and decoder, dropout off, four documents of one page a
step. The same recipe, the same losses; only `features.cache` differs.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

import visiontune
from visiontune.data.dataset import Dataset
from visiontune.data.pages import pages
from visiontune.errors import ReceiptError
from visiontune.machine import hardware
from visiontune.models.deepseek_ocr_tiny import build_first, build_second
from visiontune.run import Run
from visiontune.training.loop import train_run
from visiontune.training.plan import derive, plan_run

STEPS, WARM, SAMPLES = 60, 10, 4
PATCH = 16
WORDS = ("river", "stone", "garden", "engine", "letter", "winter", "silver", "market", "island", "signal")
CASES = (("v1", build_first, 512, 5), ("v2", build_second, 768, 10))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, build, side, promised in CASES:
            place = Path(folder, name)
            data = _documents(place, side)
            build(place / "checkpoint", WORDS, 0, image_size=side, patches_a_side=side // PATCH)
            drawn, read = (_trained(data, place, side, cache) for cache in ("never", "always"))
            seconds = [
                statistics.median(e["seconds"]["total"] for e in run.metrics("step")[WARM:]) for run in (drawn, read)
            ]
            losses = [np.array([e["loss"] for e in run.metrics("step")]) for run in (drawn, read)]
            apart = float(np.abs(losses[0] / losses[1] - 1).max())
            print(
                f"{name}, {side} px, {SAMPLES} pages a step: {1 / seconds[0]:.1f} steps/s drawn and encoded, "
                f"{1 / seconds[1]:.1f} steps/s from features: {seconds[0] / seconds[1]:.1f} times "
                f"(promised {promised}); losses of {STEPS} steps apart by {apart:.1e} at most; "
                f"{json.loads((read.path / 'features.json').read_text())['reason']}",
                flush=True,
            )
            drawing = SAMPLES * _seconds_a_page(data)
            print(f"  drawing {SAMPLES} pages takes {1000 * drawing:.1f} ms, {drawing / seconds[0]:.1%} of such a step")


def _documents(folder: Path, side: int) -> Dataset:
    """80 documents of one page, half full, with their last word as the summary."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, side // 8)) for _ in range(80)]
    rows = [{"id": str(i), "text": text, "summary": text.split()[-1]} for i, text in enumerate(texts)]
    folder.mkdir()
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return visiontune.prepare(folder / "texts.jsonl", folder / "data", pages={"width": side, "height": side})


def _seconds_a_page(data: Dataset) -> float:
    """How long one core draws a page that it has not seen, the loading of fonts left out."""
    fonts, spec = data.fonts(), data.info.pages
    texts = [sample.seen.text for sample in (data.sample("train", i) for i in range(data.count("train")))]
    started = time.perf_counter()
    drawn = sum(len(pages(text, spec, fonts)) for text in texts)
    return (time.perf_counter() - started) / drawn


def _trained(data: Dataset, folder: Path, side: int, cache: str) -> Run:
    changes = {
        "features.cache": cache,
        "data.image_longest_edge": side,
        "lora.dropout": 0.0,
        "batch.samples": SAMPLES,
        "batch.window": 8 * SAMPLES,
        "schedule.steps": STEPS,
        "evaluation.every": STEPS,
        "evaluation.samples": 1,
        "evaluation.max_new_tokens": 2,
        "checkpoints.every": STEPS,
        "machine.threads": 1,
        "machine.workers": 1,
    }
    recipe = derive([data], [None], str(folder / "checkpoint"), hardware("cpu")).changed(changes)
    run = Run(folder / cache)
    plan_run(run, recipe, [data])
    try:
        return train_run(run)
    except ReceiptError as error:  # so short a run need not have learned to look
        print(error.found)
        return run


if __name__ == "__main__":
    main()
