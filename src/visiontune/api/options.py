"""What verbs refuse before anything is done: options of other runs, and numbers that leave nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from visiontune.errors import RecipeError

if TYPE_CHECKING:
    from visiontune.recipe import Fragment


def refuse(options: dict[str, Any], what: str) -> None:
    """Raise RecipeError where one of these options is given."""
    if given := [name for name, value in options.items() if value is not None]:
        option = f"--{given[0].replace('_', '-')}"
        raise RecipeError(f"{what} no {option}.", where=option, fix="leave it out")


def check_limit(limit: int | None) -> None:
    """Raise RecipeError for a limit that takes nothing."""
    if limit is not None and limit < 1:
        raise RecipeError(f"A limit of {limit} takes nothing.", where="--limit", fix="use 1 or more")


def check_samples(samples: int | None) -> None:
    """Raise RecipeError for a number of samples that compares nothing."""
    if samples is not None and samples < 1:
        found = f"With {samples} samples nothing is compared."
        raise RecipeError(found, where="--samples", fix="use 1 or more")


def check_epochs(epochs: float | None) -> None:
    """Raise RecipeError for epochs in which nothing is learned."""
    if epochs is not None and not 0 < epochs < float("inf"):
        raise RecipeError(f"In {epochs:g} epochs nothing is learned.", where="--epochs", fix="use a number above 0")


def one_length(epochs: float | None, hours: float | None, changes: dict[str, Any], fragment: Fragment) -> Fragment:
    """The recipe file, without the length of a run that it gives where the command line gives one: the last one wins.

    Raises RecipeError where the command line gives two.
    """
    fields = ("schedule.steps", "schedule.hours")
    said = {"--epochs": epochs, "--hours": hours, **{f"--{name}": changes.get(name) for name in fields}}
    given = [option for option, value in said.items() if value is not None]
    if len(given) > 1:
        found = f"{given[0]} and {given[1]} are two ways to say how long the run is."
        raise RecipeError(found, where=given[1], fix="give one")
    schedule = fragment.get("schedule")
    if not given or not isinstance(schedule, dict):
        return fragment
    kept = {name: value for name, value in schedule.items() if f"schedule.{name}" not in fields}
    others = {name: value for name, value in fragment.items() if name != "schedule"}
    return fragment.with_values({**others, "schedule": kept} if kept else others)


def check_score(score: float | None) -> None:
    """Raise RecipeError for what is no score."""
    if score is not None and not 0 <= score <= 1:
        raise RecipeError(f"A score of {score:g} is none.", where="--least-score", fix="use 0 to 1")
