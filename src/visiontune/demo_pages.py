"""The demonstration on pages: a small DeepSeek-OCR with random weights learns to read words that it was never shown.

The words are those of Python's own manual, which comes with Python; one part of them is kept for the test. Strings of
letters drawn at random are added for training, so that what is learned is to read letters and not to know words.
"""

import json
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from visiontune import api
from visiontune.data.pages import DEFAULT_FONT, PageSpec, load_fonts
from visiontune.data.sample import Prediction
from visiontune.files import folder_written_whole, write_text
from visiontune.models.load import build_tiny
from visiontune.run import Run
from visiontune.training.baselines import BLANK, EXCHANGED

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SHORTEST, LONGEST = 3, 6  # letters; six of them fit on a line of the page
SIDE, MARGIN, FONT_SIZE = 64, 4, 13  # pixels
PROMPT = "Read the page."
TEST_WORDS, VALIDATION_WORDS, MADE_UP = 200, 64, 12_000
STEPS = 1000
REQUIRED = "exact_match>=0.7"
PREDICTED = 5
# For random weights; chosen by trying a few.
LEARNING = {
    "parts.vision_encoder": "full",
    "parts.projector": "full",
    "parts.language_model": "full",
    "parts.embeddings": "full",
    "data.prompt": PROMPT,
    "optimizer.learning_rate": 2e-3,
    "optimizer.weight_decay": 0.05,
    "optimizer.beta2": 0.99,
    "schedule.warmup": 0.05,
    "batch.samples": 32,
    "batch.window": 32,
    "evaluation.metric": "exact_match",
}


def manual_words() -> list[str]:
    """The words of Python's manual, as `words_of`."""
    from pydoc_data.topics import topics

    return words_of(topics.values())


def words_of(texts: Iterable[str]) -> list[str]:
    """The words of three to six small letters in running text, each once, sorted; names with dots or signs are none."""
    found: set[str] = set()
    for text in texts:
        found.update(re.findall(rf"(?<![\w.`-])[a-z]{{{SHORTEST},{LONGEST}}}(?![\w(`-])", text))
    return sorted(found)


def write_words(words: Sequence[str], path: Path, seed: int = 0) -> None:
    """Write a table in which each document is one word and what is to be written is that word.

    200 of the words are the test split, 64 the validation split. The others are there for training, and 12,000 strings
    of three to six letters drawn at random, each letter as often as in the words for training. No word stands twice.
    """
    generator = np.random.default_rng(seed)
    shuffled = [words[int(i)] for i in generator.permutation(len(words))]
    held_out = TEST_WORDS + VALIDATION_WORDS
    splits = {word: "test" if i < TEST_WORDS else "validation" for i, word in enumerate(shuffled[:held_out])}
    splits |= dict.fromkeys(shuffled[held_out:], "train")
    letters = "".join(shuffled[held_out:])
    wanted = len(splits) + MADE_UP
    while len(splits) < wanted:
        drawn = generator.integers(len(letters), size=generator.integers(SHORTEST, LONGEST + 1))
        splits.setdefault("".join(letters[i] for i in drawn), "train")
    rows = ({"id": word, "text": word, "summary": word, "split": split} for word, split in splits.items())
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def word_pages() -> PageSpec:
    """Pages of 64 x 64 pixels with one word, some of two lines."""
    fonts = load_fonts([DEFAULT_FONT])
    margins = (MARGIN, MARGIN, MARGIN, MARGIN)
    return PageSpec(width=SIDE, height=SIDE, margins=margins, font_size=FONT_SIZE, fonts=fonts.refs)


def write_reader(model: str, folder: Path, seed: int = 0) -> None:
    """Write the small model `model` ("tiny/deepseek-ocr" or "tiny/deepseek-ocr2") with a vocabulary of single letters.

    A vocabulary trained on the words would have pieces of them as tokens, and the model would have to learn which
    letters make up a piece besides learning to read.
    """
    with folder_written_whole(folder) as aside:
        build_tiny(model, aside, [PROMPT, *LETTERS], seed, SIDE)


def pages(out: Path) -> tuple[dict[str, Any], str]:
    """Prepare, train, evaluate and predict in `out`; what stands there is used again.

    Returns the result as plain values and as text. Raises RequirementError where the model reads worse than promised.
    """
    started = time.monotonic()
    table, data, base, run = out / "words.jsonl", out / "data", out / "base", Run(out / "run")
    if not table.exists():
        write_words(manual_words(), table)
    dataset = api.prepare(table, data, pages=word_pages())
    if not base.exists():
        write_reader("tiny/deepseek-ocr", base)
    if run.recipe_path.exists():
        api.resume(run.path)
    else:
        often = {"schedule.steps": STEPS, "evaluation.every": STEPS // 4, "checkpoints.every": STEPS // 4}
        api.train(data, model=str(base), out=run.path, overrides={**LEARNING, **often})
    exact = api.evaluate(run.path, split="test", require=REQUIRED).metric("exact_match").to_json()
    beside = json.loads((run.path / "evaluations/test/baselines.json").read_text(encoding="utf-8"))["baselines"]
    texts = [out / f"{word}.txt" for word in dataset.index("test").answers[:PREDICTED]]
    for text in texts:
        write_text(text, text.stem)
    predictions = api.predict(run.path, texts)
    seconds = time.monotonic() - started
    receipts = {receipt["name"]: receipt["status"] for receipt in run.receipts}
    lines = [f"receipt {receipt['name']}: {receipt['status']} ({receipt['reason']})" for receipt in run.receipts]
    # Of one-word answers ROUGE-L is 1 where the word is right and 0 where it is not.
    others = {one["name"]: one["metrics"]["rougeL"] for one in beside if one["name"] in (BLANK, EXCHANGED)}
    lines += [f"beside it, {name}: {metric['value']:.3f} of the words right" for name, metric in others.items()]
    lines += [f"{p.source[0]}: {p.target.answer}" for p in predictions if isinstance(p, Prediction)]
    lines.append(
        f"words of the test split read exactly, none of which was in training: {exact['value']:.3f} "
        f"(95 % interval {exact['low']:.3f} to {exact['high']:.3f}, n = {exact['n']}), after {seconds:.0f} s"
    )
    lines.append(f"report: {run.report_path}")
    value = {
        "exact_match": exact,
        "beside": others,
        "receipts": receipts,
        "predictions": [prediction.to_json() for prediction in predictions],
        "report": str(run.report_path),
        "seconds": round(seconds, 1),
    }
    return value, "\n".join(lines)
