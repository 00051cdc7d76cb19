"""Do the small DeepSeek-OCR models read? Both generations, from random weights, on words that they were never shown.

Each document is one word on a page of 64 x 64 pixels, and what is to be written is that word. The models are trained on
words and on strings of letters drawn at random; those strings are there so that letters are learned and not words. Then
they read 200 other words, and a blank page in place of each.

    python bench/read.py [texts.jsonl]      (one JSON object a line, words are taken from its "text"; else from Python's
                                             own manual)
"""

import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from visiontune.data.dataset import Dataset
from visiontune.data.prepare import prepare
from visiontune.demo_pages import LEARNING, manual_words, word_pages, words_of, write_reader, write_words
from visiontune.machine import hardware
from visiontune.metrics.intervals import Metric, proportion
from visiontune.metrics.text import score_texts
from visiontune.progress import progress
from visiontune.run import Run
from visiontune.training.answers import replies
from visiontune.training.baselines import blank
from visiontune.training.evaluate import predict_split
from visiontune.training.loop import train_run
from visiontune.training.model import load_trained
from visiontune.training.plan import derive, plan_run
from visiontune.training.ranks import Ranks

STEPS = {"tiny/deepseek-ocr": 1500, "tiny/deepseek-ocr2": 1800}


def prepared(words: list[str], folder: Path) -> Dataset:
    """The words as a dataset of pages."""
    write_words(words, folder / "words.jsonl")
    return prepare(folder / "words.jsonl", folder / "data", pages=word_pages(), workers=1)


def learned(model: str, dataset: Dataset, folder: Path, changes: dict[str, Any]) -> Run:
    """A run of the small model over the words, on one thread of the processor."""
    write_reader(model, folder / "base")
    recipe = derive([dataset], [None], str(folder / "base"), hardware("cpu"))
    run = Run(folder / "run")
    steps = changes["schedule.steps"]
    often = {"evaluation.every": steps // 4, "checkpoints.every": steps // 4}
    plan_run(
        run, recipe.changed({**LEARNING, **often, "machine.threads": 1, "machine.workers": 0, **changes}), [dataset]
    )
    return train_run(run)


def shown(metric: Metric) -> str:
    return f"{metric.value:.1%} ({metric.low:.1%} to {metric.high:.1%})"


def main() -> None:
    words, source = manual_words(), "Python's manual"
    if len(sys.argv) > 1:
        lines = Path(sys.argv[1]).read_text("utf-8").splitlines()
        words, source = words_of(json.loads(line)["text"] for line in lines), Path(sys.argv[1]).name
    print(f"{platform.platform()}, Python {platform.python_version()}, torch {torch.__version__}; one thread")
    print(f"{len(words):,} words of {source}\n")
    print("| model | parameters | trained on | unseen | exact match | CER | blank page | steps | CPU s |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        dataset = prepared(words, Path(folder))
        for model, steps in STEPS.items():
            started = time.process_time()
            run = learned(model, dataset, Path(folder, model), {"schedule.steps": steps})
            seconds = time.process_time() - started
            adapter, _ = load_trained(run, run.recipe, torch.device("cpu"))
            scores = score_texts(predict_split(adapter, [dataset], "test", run.recipe, Ranks("cpu")))
            samples = [dataset.sample("test", i) for i in range(dataset.count("test"))]
            asked = (blank(sample) for sample in samples)
            with progress("blank pages", len(samples), "answers") as advance:
                found = replies(adapter, adapter.encoder, asked, run.recipe, torch.device("cpu"), advance)
            guessed = sum(r.text == s.target.answer for r, s in zip(found, samples, strict=True))
            count = sum(parameter.numel() for parameter in adapter.network.parameters())
            print(
                f"| {model} | {count:,} | {dataset.count('train'):,} words and strings | {scores.n} "
                f"| {shown(scores.metric('exact_match'))} | {scores.metric('cer').value:.1%} "
                f"| {shown(proportion(guessed, len(samples)))} | {steps} | {seconds:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
