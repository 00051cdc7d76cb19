"""What verbs refuse before anything is done: options of other runs, and numbers that leave nothing."""

from __future__ import annotations

from typing import Any

from visiontune.errors import RecipeError


def refuse(options: dict[str, Any], what: str) -> None:
    """Raise RecipeError where one of these options is given."""
    if given := [name for name, value in options.items() if value is not None]:
        option = f"--{given[0].replace('_', '-')}"
        raise RecipeError(f"{what} no {option}.", where=option, fix="leave it out")


def check_limit(limit: int | None) -> None:
    """Raise RecipeError for a limit that takes nothing."""
    if limit is not None and limit < 1:
        raise RecipeError(f"A limit of {limit} takes nothing.", where="--limit", fix="use 1 or more")


def check_epochs(epochs: float | None) -> None:
    """Raise RecipeError for epochs in which nothing is learned."""
    if epochs is not None and not 0 < epochs < float("inf"):
        raise RecipeError(f"In {epochs:g} epochs nothing is learned.", where="--epochs", fix="use a number above 0")


def check_score(score: float | None) -> None:
    """Raise RecipeError for what is no score."""
    if score is not None and not 0 <= score <= 1:
        raise RecipeError(f"A score of {score:g} is none.", where="--least-score", fix="use 0 to 1")
