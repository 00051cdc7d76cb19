"""Predictions by generation, and their scores."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from visiontune.data.dataset import Dataset
from visiontune.data.sample import ImageFile, Images, Prediction, Sample, Text
from visiontune.files import write_json, written_whole
from visiontune.metrics.text import TextScores, score_texts
from visiontune.models.adapter import ModelAdapter
from visiontune.progress import note, progress
from visiontune.recipe import Recipe
from visiontune.run import Run
from visiontune.training.batches import MicroBatch, Reading, load_steps
from visiontune.training.precision import autocast
from visiontune.training.ranks import Ranks


def closed_labels(datasets: Sequence[Dataset]) -> list[str] | None:
    """The label set of all datasets together, or None where one of them has free text."""
    labels: dict[str, None] = {}
    for dataset in datasets:
        if dataset.info.labels is None:
            return None
        labels |= dict.fromkeys(dataset.info.labels)
    return list(labels)


def predict_split(
    adapter: ModelAdapter,
    datasets: Sequence[Dataset],
    split: str,
    recipe: Recipe,
    ranks: Ranks,
    *,
    limit: int | None = None,
    rows: int | None = None,
    show: bool = False,
) -> list[Prediction]:
    """Answers to a split on every rank, dataset by dataset, in the order of their rows.

    `limit` takes so many samples, first rows first, from all datasets in turn; `rows` takes the first rows of each.
    """
    counts = [min(dataset.count(split), rows or dataset.count(split)) for dataset in datasets]
    refs = [(d, i, 0) for i in range(max(counts)) for d, count in enumerate(counts) if i < count][:limit]
    indexes = [dataset.index(split) for dataset in datasets]
    lengths = [adapter.encoder.lengths(index) for index in indexes]
    longest_first = sorted(refs, key=lambda ref: (-lengths[ref[0]][ref[1]], ref))
    plan, position = [], 0
    while position < len(longest_first):
        d, i, _ = longest_first[position]
        size = max(1, recipe.batch.tokens // (int(lengths[d][i]) + recipe.evaluation.max_new_tokens))
        plan.append([MicroBatch(0, 0, tuple(longest_first[position : position + size]))])
        position += size
    own = plan[ranks.rank :: ranks.count]
    reading = Reading(datasets, adapter.encoder, split, with_answer=False)
    workers = recipe.machine.workers if len(own) > 4 else 0  # a handful of batches is read before workers have started
    answers: list[tuple[tuple[int, int], str, float]] = []
    adapter.trained_module.eval()
    total = sum(len(step[0].samples) for step in own)
    with progress(f"answering {split}", total, "samples", show=show and ranks.is_first) as advance:
        for _, batches in load_steps(own, reading, workers=workers):
            for _, batch in batches:
                with autocast(ranks.device, recipe.machine.precision):
                    texts = adapter.generate(batch.to(ranks.device), recipe.evaluation.max_new_tokens)
                for (d, i, _), (text, confidence) in zip(batch.origins, texts, strict=True):
                    answers.append(((d, i), text, confidence))
                advance(len(texts))
    predictions = []
    for (d, i), text, confidence in sorted(ranks.gathered(answers)):
        prompt, truth = indexes[d].prompts[i], Text(indexes[d].answers[i], indexes[d].prompts[i])
        scores = {"confidence": confidence}
        predictions.append(Prediction(indexes[d].ids[i], (indexes[d].ids[i],), Text(text, prompt), scores, truth))
    return predictions


def evaluate_split(
    run: Run, adapter: ModelAdapter, datasets: Sequence[Dataset], split: str, recipe: Recipe, ranks: Ranks, step: int,
    *, limit: int | None = None, rows: int | None = None,
) -> TextScores:  # fmt: skip
    """Answer a split, score the answers, and write evaluations/SPLIT/{metrics.json, predictions.jsonl}."""
    started = time.monotonic()
    predictions = predict_split(adapter, datasets, split, recipe, ranks, limit=limit, rows=rows, show=True)
    scores = score_texts(predictions, closed_labels(datasets))
    if ranks.is_first:
        folder = run.path / "evaluations" / split
        with written_whole(folder / "predictions.jsonl") as aside:
            lines = (json.dumps(p.to_json(), ensure_ascii=False) for p in predictions)
            aside.write_text("\n".join(lines) + "\n", encoding="utf-8")
        seconds = round(time.monotonic() - started, 3)
        write_json(folder / "metrics.json", {**scores.to_json(), "split": split, "step": step, "seconds": seconds})
        note(f"evaluation of {len(predictions)} {split} samples: {folder}")
    return scores


def predict_images(
    adapter: ModelAdapter, paths: Sequence[Path], recipe: Recipe, device: torch.device, prompt: str | None = None
) -> list[Prediction]:
    """Answers about image files, in their order. Raises DataError for a file that is no readable image."""
    adapter.trained_module.eval()
    predictions = []
    with progress("answering", len(paths), "images") as advance:
        for path in paths:
            sample = Sample(str(path), Images((ImageFile(path.read_bytes(), str(path)),)), Text("", prompt))
            batch = adapter.encoder.collate([adapter.encoder.encode(sample, with_answer=False)], pad_left=True)
            with autocast(device, recipe.machine.precision):
                ((text, confidence),) = adapter.generate(batch.to(device), recipe.evaluation.max_new_tokens)
            predictions.append(Prediction(str(path), (str(path),), Text(text, prompt), {"confidence": confidence}))
            advance(1)
    return predictions
