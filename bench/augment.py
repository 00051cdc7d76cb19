"""What augmentation of pages is good for: the words of `bench/read.py`, read from clean pages and from changed ones.

Two runs of the small DeepSeek-OCR of the first generation with the same seed, one of them with `data.augment`. Both
read the same unseen words: from clean pages, and from pages that `augmented_page` changed with numbers that no training
page was changed with.

    python bench/augment.py
"""

import io
import platform
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from PIL.Image import fromarray
from read import learned, prepared, shown

from visiontune.data.augment import augmentation_key, augmented_page
from visiontune.data.dataset import Dataset
from visiontune.data.pages import pages
from visiontune.data.sample import Document, ImageFile, Images, Sample
from visiontune.demo_pages import manual_words
from visiontune.metrics.intervals import proportion
from visiontune.progress import progress
from visiontune.training.answers import replies
from visiontune.training.model import load_trained

STRENGTH = 0.25
TESTED = (0.0, 0.25, 0.5)
STEPS = 2400
OTHER_SEED = 1  # the runs have seed 0


def changed(dataset: Dataset, sample: Sample, strength: float) -> Sample:
    """The sample with its pages changed, as pictures of them."""
    spec = dataset.info.pages
    assert spec is not None and isinstance(sample.seen, Document)
    number = augmentation_key(OTHER_SEED, sample.id, 0)
    files = []
    for page in pages(sample.seen.text, spec, dataset.fonts()):
        buffer = io.BytesIO()
        fromarray(augmented_page(page, spec.margins, strength, number)).save(buffer, "PNG")
        files.append(ImageFile(buffer.getvalue(), sample.id))
    return replace(sample, seen=Images(tuple(files)))


def main() -> None:
    print(f"{platform.platform()}, Python {platform.python_version()}, torch {torch.__version__}; one thread")
    tests = " | ".join("clean pages" if strength == 0 else f"changed with {strength:g}" for strength in TESTED)
    print(f"| data.augment | {tests} | steps | CPU s |")
    print("|---|" + "---|" * (len(TESTED) + 2))
    with tempfile.TemporaryDirectory() as folder:
        dataset = prepared(manual_words(), Path(folder))
        for augment in (0.0, STRENGTH):
            started = time.process_time()
            changes = {"schedule.steps": STEPS, "data.augment": augment}
            run = learned("tiny/deepseek-ocr", dataset, Path(folder, f"augment-{augment}"), changes)
            seconds = time.process_time() - started
            adapter, _ = load_trained(run, run.recipe, torch.device("cpu"))
            samples = [dataset.sample("test", i) for i in range(dataset.count("test"))]
            cells = []
            for strength in TESTED:
                asked = (changed(dataset, sample, strength) for sample in samples)
                with progress("words", len(samples), "answers") as advance:
                    found = replies(adapter, adapter.encoder, asked, run.recipe, torch.device("cpu"), advance)
                right = sum(reply.text == s.target.answer for reply, s in zip(found, samples, strict=True))
                cells.append(shown(proportion(right, len(samples))))
            print(f"| {augment:g} | {' | '.join(cells)} | {STEPS} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
