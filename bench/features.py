"""Steps a second with the frozen vision encoder's features read from disk, beside pages drawn and encoded in each step.

Both runs go through the whole product (loader, loop, receipts): small DeepSeek-OCR models of both generations with the
published patches of 16 pixels, random weights, LoRA in projector and decoder, dropout off, four documents of one page a
step. The same recipe, the same losses; only `features.cache` differs.

And SAM with its ViT-B at 1024 pixels, random weights: a step of the mask decoder on one image with 1 and with 8 boxes,
from a kept embedding beside the frozen encoder run each time; the losses must be equal to the last bit.
`python bench/features.py sam` runs this part alone.
"""

import io
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

import visiontune
from visiontune.data.annotations.masks import from_pixels
from visiontune.data.dataset import Dataset
from visiontune.data.objects import Objects
from visiontune.data.pages import pages
from visiontune.data.sample import ImageFile, Images, Sample
from visiontune.errors import ReceiptError
from visiontune.machine import hardware
from visiontune.models.deepseek_ocr_tiny import build_first, build_second
from visiontune.models.sam import SamAdapter, SamEncoder
from visiontune.recipe import ObjectChoices
from visiontune.recipe_sections import Data, DatasetUse
from visiontune.run import Run
from visiontune.training.loop import train_run
from visiontune.training.plan import derive, plan_run

STEPS, WARM, SAMPLES = 60, 10, 4
PATCH = 16
WORDS = ("river", "stone", "garden", "engine", "letter", "winter", "silver", "market", "island", "signal")
CASES = (("v1", build_first, 512, 5), ("v2", build_second, 768, 10))


def main() -> None:
    if sys.argv[1:] != ["sam"]:
        pages_read()
    for boxes in (1, 8):
        sam_drawn(boxes)


def sam_drawn(boxes: int, runs: int = 3) -> None:
    """Print seconds of a decoder step with the encoder and from a kept embedding."""
    from transformers import SamConfig, SamImageProcessorPil, SamModel, SamProcessor

    choices = ObjectChoices(classes=("disc",), masks=True, mirror="none")
    uses = (DatasetUse(path="-", content_hash="-"),)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = SamConfig()
    seen = Data(datasets=uses, image_longest_edge=1024)
    encoder = SamEncoder(SamProcessor(SamImageProcessorPil()), seen, choices, config)
    adapter = SamAdapter(SamModel(config), encoder)
    for name, parameter in adapter.network.named_parameters():
        parameter.requires_grad_(name.startswith("mask_decoder"))
    batch = encoder.collate([encoder.encode(_discs(boxes))])
    with torch.no_grad():
        (kept,) = adapter.vision_features(batch)
    tensors = {name: tensor for name, tensor in batch.tensors.items() if name != "pixel_values"}
    cached = replace(batch, tensors=tensors | {"features": kept[None]})
    seconds, losses = [], []
    for one in (batch, cached):
        taken = []
        for _ in range(runs):
            started = time.perf_counter()
            loss = torch.stack(list(adapter.losses(one).values())).sum()
            loss.backward()
            taken.append(time.perf_counter() - started)
        seconds.append(statistics.median(taken))
        losses.append(float(loss))
    print(
        f"SAM ViT-B, 1024 px, {boxes} boxes: {seconds[0]:.2f} s a step with the encoder, {seconds[1]:.2f} s from its "
        f"kept embedding: {seconds[0] / seconds[1]:.1f} times (promised 5); losses equal: {losses[0] == losses[1]}",
        flush=True,
    )


def _discs(count: int) -> Sample:
    """A picture with discs in a row, and their masks."""
    picture = Image.new("RGB", (1024, 768), (90, 90, 90))
    boxes, masks = [], []
    for number in range(count):
        box = (20 + 125 * number, 300, 120 + 125 * number, 400)
        ImageDraw.Draw(picture).ellipse(box, fill=(220, 120, 40))
        drawn = Image.new("1", picture.size)
        ImageDraw.Draw(drawn).ellipse(box, fill=1)
        masks.append(from_pixels(np.asarray(drawn)))
        boxes.append((box[0], box[1], box[2] - box[0], box[3] - box[1]))
    data = io.BytesIO()
    picture.save(data, "PNG")
    classes, crowd = np.zeros(count, np.int64), np.zeros(count, bool)
    target = Objects(np.array(boxes, np.float64), classes, tuple(masks), crowd, tuple(range(count)))
    return Sample("discs", Images((ImageFile(data.getvalue(), "discs.png"),)), target)


def pages_read() -> None:
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
