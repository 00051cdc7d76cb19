"""What verbs refuse before anything is done, and which of two goes before the other: an option or a recipe file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visiontune.errors import RecipeError
from visiontune.progress import note

if TYPE_CHECKING:
    from visiontune.data.dataset import Dataset
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


def beside_arguments(
    fragment: Fragment,
    datasets: Sequence[Dataset],
    shares: Sequence[float | None],
    model: str | None,
    start: Path | str | None,
    limit: int | None,
) -> Fragment:
    """The recipe file, without what the command line says beside it: the datasets and their weights, a model, the run
    to start from, a limit. What the file says otherwise is named in a note.

    A revision is that of the model in the file.
    """
    data, chosen = fragment.get("data"), fragment.get("model")
    data, chosen = (dict(section) if isinstance(section, dict) else {} for section in (data, chosen))
    left: list[str] = []
    given = list(zip((str(dataset.path.resolve()) for dataset in datasets), shares, strict=True))
    uses = data.pop("datasets", None)
    if uses is not None and _used(uses) != given:
        left.append("data.datasets, as DATA, --weights and --mixture say which are used")
    if limit is not None and data.get("limit", limit) != limit:
        left.append("data.limit, as --limit is given")
    name = str(Path(start).resolve()) if start is not None else model
    if name is not None and chosen.get("name", name) != name:
        left.append(f"model.name, as {'--model' if start is None else '--from'} is given")
        chosen.pop("revision", None)
    if limit is not None:
        data.pop("limit", None)
    if name is not None:
        chosen.pop("name", None)
    if left:
        note(f"not taken over from {fragment.where}: {'; '.join(left)}")
    values = {**fragment, "data": data, "model": chosen}
    return fragment.with_values({key: value for key, value in values.items() if value or key not in ("data", "model")})


def _used(uses: Any) -> list[tuple[Any, Any]]:
    """Path and weight of each dataset that a recipe file names."""
    uses = uses if isinstance(uses, list) else []
    return [(use.get("path"), use.get("weight")) for use in uses if isinstance(use, dict)]


def check_score(score: float | None) -> None:
    """Raise RecipeError for what is no score."""
    if score is not None and not 0 <= score <= 1:
        raise RecipeError(f"A score of {score:g} is none.", where="--least-score", fix="use 0 to 1")
