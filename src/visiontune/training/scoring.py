"""How a run is judged, whatever its target: on some validation samples as it goes, and on all of them at its end."""

import time
from collections.abc import Sequence

from visiontune.data.dataset import Dataset
from visiontune.errors import RecipeError
from visiontune.metrics.object_scores import ObjectScores
from visiontune.metrics.response_scores import ResponseScores, score_responses
from visiontune.metrics.text import TextScores, score_texts
from visiontune.models.adapter import ModelAdapter
from visiontune.models.cortex import predicts_responses
from visiontune.models.objects import finds_objects
from visiontune.models.text import writes_text
from visiontune.recipe import Recipe
from visiontune.run import Run
from visiontune.training.evaluate import closed_labels, evaluate_split, predict_split, tree_to_score
from visiontune.training.evaluate_objects import (
    evaluate_split_of_objects,
    find_in_split,
    prompts_of,
    score_predictions,
)
from visiontune.training.evaluate_responses import (
    evaluate_split_of_responses,
    left_out_bins,
    predict_split_of_responses,
)
from visiontune.training.ranks import Ranks

Scores = TextScores | ObjectScores | ResponseScores


def refuse_unscored(adapter: ModelAdapter, datasets: Sequence[Dataset], recipe: Recipe) -> None:
    """Raise RecipeError or DataError where the recipe's metric is not one of this model and these data."""
    if recipe.target == "text":
        tree_to_score(writes_text(adapter), closed_labels(datasets), recipe)
        return
    if recipe.target == "responses":
        predicts_responses(adapter)
        return
    prompted = finds_objects(adapter).prompted
    if prompted != recipe.evaluation.metric.startswith("prompted"):
        wanted = "prompted_mask_ap" if prompted else "box_ap"
        raise RecipeError(
            f"evaluation.metric is {recipe.evaluation.metric}, which this model is not scored by.",
            fix=f"--evaluation.metric {wanted}",
        )


def score_some(adapter: ModelAdapter, datasets: Sequence[Dataset], recipe: Recipe, ranks: Ranks) -> Scores | None:
    """The scores of `evaluation.samples` validation samples; None where there are none."""
    limit = recipe.evaluation.samples
    if recipe.target == "responses":
        predictor = predicts_responses(adapter)
        sessions = predict_split_of_responses(predictor, datasets, "validation", recipe, ranks, limit=limit)
        return score_responses(sessions, resamples=0) if sessions else None
    if recipe.target == "text":
        predictions = predict_split(writes_text(adapter), datasets, "validation", recipe, ranks, limit=limit)
        return score_texts(predictions, closed_labels(datasets)) if predictions else None
    finder = finds_objects(adapter)
    found = find_in_split(finder, datasets, "validation", recipe, ranks, limit=limit)
    return score_predictions(found, prompts_of(finder), halves=0) if found else None


def evaluate_validation(
    run: Run, adapter: ModelAdapter, datasets: Sequence[Dataset], recipe: Recipe, ranks: Ranks, step: int
) -> None:
    """Score and keep the whole validation split; scored labels' confidence is fitted on it."""
    rows = recipe.data.limit
    started = time.monotonic()
    if recipe.target == "responses":
        predictor = predicts_responses(adapter)
        sessions = predict_split_of_responses(predictor, datasets, "validation", recipe, ranks, rows=rows, show=True)
        left_out = left_out_bins(datasets, "validation")
        evaluate_split_of_responses(run, sessions, "validation", ranks, step, started, left_out)
        return
    if recipe.target == "text":
        evaluate_split(
            run, writes_text(adapter), datasets, "validation", recipe, ranks, step, rows=rows, fit_confidence=True
        )
        return
    finder = finds_objects(adapter)
    found = find_in_split(finder, datasets, "validation", recipe, ranks, rows=rows, show=True)
    evaluate_split_of_objects(run, found, "validation", ranks, step, prompts_of(finder), started)
