"""Texts written about a split or about files, and their scores."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visiontune.data.asked_files import read_document
from visiontune.data.dataset import Dataset
from visiontune.data.sample import Document, ImageFile, Images, LabelProbabilities, Prediction, Sample, Text
from visiontune.errors import DataError, RecipeError
from visiontune.files import write_json, written_whole
from visiontune.metrics.answers import AT_LENGTH_LIMIT, DOCUMENT_CHARACTERS
from visiontune.metrics.bertscore import Embedder
from visiontune.metrics.calibration import Calibration, calibrate
from visiontune.metrics.rouge import NAMES as ROUGE_NAMES
from visiontune.metrics.text import TextScores, score_texts
from visiontune.models.adapter import Batch
from visiontune.models.labels import LabelTree
from visiontune.models.text import TextAdapter
from visiontune.progress import note, progress
from visiontune.recipe import Recipe
from visiontune.run import Run
from visiontune.training.baselines import Baseline, compare
from visiontune.training.precision import autocast
from visiontune.training.ranks import Ranks
from visiontune.training.rows import first_rows, split_batches
from visiontune.words import counted

COMPARED = 32  # documents that baselines are asked about


@dataclass(frozen=True)
class Written:
    """What the model wrote about one question: the text, its scores (confidence, and of generated text whether it was
    cut), and the probabilities of the labels where these were scored."""

    text: str
    scores: dict[str, float]
    labels: LabelProbabilities | None = None


def calibration_of(run: Run, step: int) -> Calibration | None:
    """The confidence that was calibrated for the checkpoint of this step, where one was."""
    value = run.read_json(run.calibration_path.name)
    return Calibration.from_json(value) if value is not None and value["step"] == step else None


def closed_labels(datasets: Sequence[Dataset]) -> list[str] | None:
    """The label set of all datasets together, or None where one of them has free text."""
    labels: dict[str, None] = {}
    for dataset in datasets:
        if dataset.info.labels is None:
            return None
        labels |= dict.fromkeys(dataset.info.labels)
    return list(labels)


def label_tree(adapter: TextAdapter, labels: Sequence[str], recipe: Recipe) -> LabelTree:
    """The labels as the model's tokens. Raises DataError where one is longer than an answer may be."""
    tree = LabelTree(tuple(labels), tuple(adapter.encoder.label_tokens(label) for label in labels))
    longest = max(range(len(labels)), key=lambda c: len(tree.tokens[c]))
    if len(tree.tokens[longest]) > recipe.evaluation.max_new_tokens:
        raise DataError(
            f"The label takes {len(tree.tokens[longest])} tokens; {recipe.evaluation.max_new_tokens} are allowed.",
            where=tree.labels[longest],
            fix="raise device.max_new_tokens" if recipe.device else "raise evaluation.max_new_tokens",
        )
    return tree


def tree_to_score(adapter: TextAdapter, labels: Sequence[str] | None, recipe: Recipe) -> LabelTree | None:
    """The labels to score, or None where the recipe has answers generated. RecipeError where there are no labels."""
    if recipe.evaluation.answers == "generated":
        return None
    if labels is None:
        raise RecipeError(
            "The recipe scores labels, but the data have free text.", fix="--evaluation.answers generated"
        )
    return label_tree(adapter, labels, recipe)


def predict_split(
    adapter: TextAdapter,
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
    indexes = [dataset.index(split) for dataset in datasets]
    how: dict[str, Any] = {"limit": limit, "rows": rows, "extra": recipe.evaluation.max_new_tokens}
    total, batches = split_batches(adapter.encoder, datasets, indexes, split, recipe, ranks, with_answer=False, **how)
    answers: list[tuple[tuple[int, int], Written]] = []
    tree = tree_to_score(adapter, closed_labels(datasets), recipe)
    adapter.trained_module.eval()
    with progress(f"answering {split}", total, "samples", show=show and ranks.is_first) as advance:
        for batch in batches:
            answered = _answer(adapter, batch, tree, recipe, ranks.device)
            answers += [((d, i), one) for (d, i, _), one in zip(batch.origins, answered, strict=True)]
            advance(len(answered))
    predictions = []
    for (d, i), one in sorted(ranks.gathered(answers), key=lambda answer: answer[0]):
        prompt, truth = indexes[d].prompts[i], Text(indexes[d].answers[i], indexes[d].prompts[i])
        sample = indexes[d].ids[i]
        about = {DOCUMENT_CHARACTERS: float(indexes[d].documents[i])} if indexes[d].documents else {}
        scores = {**one.scores, **about}
        predictions.append(Prediction(sample, (sample,), Text(one.text, prompt), scores, truth, one.labels))
    return predictions


def _answer(
    adapter: TextAdapter, batch: Batch, tree: LabelTree | None, recipe: Recipe, device: torch.device
) -> list[Written]:
    with autocast(device, recipe.machine.precision):
        if tree is None:
            made = adapter.trace(batch.to(device), recipe.evaluation.max_new_tokens)
            return [
                Written(one.text, {"confidence": one.probability, AT_LENGTH_LIMIT: float(not one.ended)})
                for one in made
            ]
        probabilities = np.exp(adapter.score_labels(batch.to(device), tree))
    best = probabilities.argmax(axis=1)
    return [
        Written(tree.labels[c], {"confidence": float(row[c])}, LabelProbabilities(tree.labels, row))
        for c, row in zip(best, probabilities, strict=True)
    ]


def evaluate_split(
    run: Run, adapter: TextAdapter, datasets: Sequence[Dataset], split: str, recipe: Recipe, ranks: Ranks, step: int,
    *, limit: int | None = None, rows: int | None = None, fit_confidence: bool = False,
    embedder: Embedder | None = None,
) -> TextScores:  # fmt: skip
    """Answer a split, score the answers, and write evaluations/SPLIT/{metrics.json, predictions.jsonl}.

    With `fit_confidence` the scored labels' confidence is calibrated on this split first, and calibration.json written.
    With an `embedder` the scores hold its BERTScore.
    """
    started = time.monotonic()
    predictions = predict_split(adapter, datasets, split, recipe, ranks, limit=limit, rows=rows, show=True)
    if fit_confidence and (fitted := calibrate(predictions, recipe.evaluation.wanted_accuracy, step)) is not None:
        if ranks.is_first:
            write_json(run.calibration_path, fitted.to_json())
        calibration = fitted
    else:
        calibration = calibration_of(run, step)
    if calibration is not None:
        predictions = [calibration.applied(prediction) for prediction in predictions]
    scores = score_texts(predictions, closed_labels(datasets))
    facts: dict[str, Any] = {"split": split, "step": step}
    if embedder is not None:
        truths = [p.truth.answer for p in predictions if p.truth is not None]
        found = embedder.scores(truths, [p.target.answer for p in predictions if p.truth is not None])
        scores = replace(scores, metrics=scores.metrics | found.metrics())
        facts["bertscore"] = {"model": embedder.name, "layer": embedder.layer, "texts_cut": found.cut}
    if ranks.is_first:
        folder = run.path / "evaluations" / split
        with written_whole(folder / "predictions.jsonl") as aside:
            lines = (json.dumps(p.to_json(), ensure_ascii=False) for p in predictions)
            aside.write_text("\n".join(lines) + "\n", encoding="utf-8")
        seconds = round(time.monotonic() - started, 3)
        write_json(folder / "metrics.json", {**scores.to_json(), **facts, "seconds": seconds})
        note(f"evaluation of {counted(len(predictions), f'{split} sample')}: {folder}")
    return scores


def answered(
    run: Run, datasets: Sequence[Dataset], split: str, *, limit: int | None, most: int
) -> tuple[list[Sample], list[Prediction]]:
    """The first `most` samples that `evaluate_split` answered with this limit, and its predictions of them."""
    refs = first_rows(datasets, split, limit=limit)
    lines = (run.path / "evaluations" / split / "predictions.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    line_of = dict(zip(sorted(refs), lines, strict=True))
    samples = [datasets[d].sample(split, i) for d, i in refs[:most]]
    return samples, [Prediction.from_json(json.loads(line_of[ref])) for ref in refs[:most]]


def evaluate_baselines(
    run: Run, adapter: TextAdapter, datasets: Sequence[Dataset], split: str, recipe: Recipe, device: torch.device,
    step: int, *, limit: int | None = None,
) -> list[Baseline]:  # fmt: skip
    """What stands beside a split's predictions on its first documents; writes evaluations/SPLIT/baselines.json."""
    samples, predictions = answered(run, datasets, split, limit=limit, most=COMPARED)
    found = compare(adapter, samples, predictions, recipe, device)
    own = score_texts(predictions).metrics
    written = {
        "n": len(samples),
        "step": step,
        "own": {name: own[name].to_json() for name in ROUGE_NAMES},
        "baselines": [one.to_json() for one in found],
    }
    write_json(run.path / "evaluations" / split / "baselines.json", written)
    return found


def _seen(path: Path, recipe: Recipe) -> Images | Document:
    """A file as a run sees it: an image, or a UTF-8 text as pages. Raises DataError."""
    if recipe.data.pages is None:
        return Images((ImageFile(path.read_bytes(), str(path)),))
    return Document(read_document(path))


def predict_files(
    run: Run, adapter: TextAdapter, paths: Sequence[Path], recipe: Recipe, device: torch.device, step: int,
    prompt: str | None = None,
) -> list[Prediction]:  # fmt: skip
    """Answers about image or text files, in their order: labels where the run has a label set, unless another prompt is
    asked.

    Raises DataError for a file that is no readable image, or no text where the run was trained on documents.
    """
    adapter.trained_module.eval()
    tree = tree_to_score(adapter, run.labels, recipe) if prompt is None else None
    calibration = calibration_of(run, step)
    predictions = []
    with progress("answering", len(paths), "files") as advance:
        for path in paths:
            sample = Sample(str(path), _seen(path, recipe), Text("", prompt))
            batch = adapter.encoder.collate([adapter.encoder.encode(sample, with_answer=False)], pad_left=True)
            (one,) = _answer(adapter, batch, tree, recipe, device)
            made = Prediction(str(path), (str(path),), Text(one.text, prompt), one.scores, labels=one.labels)
            predictions.append(made if calibration is None else calibration.applied(made))
            advance(1)
    return predictions
