"""What is refused before any work: fields that would change nothing, folders that hold something else, images of a
size that the model cannot see."""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from visiontune.data.dataset import Dataset
from visiontune.errors import DataError, RecipeError, RunError
from visiontune.models.objects import ObjectEncoder
from visiontune.progress import note
from visiontune.recipe import Recipe
from visiontune.run import Run
from visiontune.run_group import PLAN_NAME, RunGroup, open_run
from visiontune.words import command, counted

# What `train` writes into a folder before a run is planned there: prepared data, forecasts of a dry run, also by roles.
WRITTEN_BEFORE = ("data", "distilled", "forecast.json", "detector", "segmenter", "lock")


def refuse_idle(recipes: Sequence[Recipe], changes: Iterable[str]) -> None:
    """Raise RecipeError for a field of `lora` that is set by hand where no part of these recipes has adapters."""
    idle = [name for name in changes if name.startswith("lora.")]
    if idle and not any("lora" in recipe.parts.values() for recipe in recipes):
        parts = ", ".join(f"{name} {state}" for name, state in recipes[0].parts.items())
        raise RecipeError(
            f"{idle[0]} is set, and no part has adapters: {parts}.",
            where=f"--{idle[0]}",
            fix=f"leave it out, or adapt a part: --parts.{next(iter(recipes[0].parts))} lora",
        )


def refuse_unseen(
    encoder: ObjectEncoder, datasets: Sequence[Dataset], splits: Sequence[str], *, limit: int | None = None, fix: str
) -> None:
    """Raise DataError, with ids and `fix`, for images in the first `limit` rows of these splits that the model cannot
    see. Their sizes are known without decoding them; a step that drew one would stop the run."""
    why: dict[tuple[int, int], str | None] = {}
    found: list[tuple[str, str]] = []
    for dataset in datasets:
        for split in splits:
            index = dataset.index(split)
            for name, layout in zip(index.ids[:limit], encoder.layouts(index), strict=False):
                for size in layout:
                    if size not in why:
                        why[size] = encoder.unseen(*size)
                    if (reason := why[size]) is not None:
                        found.append((f"{split} {name}", reason))
    if found:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise DataError(
            f"{counted(len(found), 'image is', 'images are')} of a size that the model cannot see. {found[0][1]}",
            where=", ".join(name for name, _ in found[:5]) + more,
            fix=fix,
        )


def refuse_taken(run: Run) -> None:
    """Raise RunError if the folder is a file, or holds a run or a group of runs already, or things that `train` did not
    write. What was planned there and never took a step is removed: it can be planned anew."""
    if run.path.exists() and not run.path.is_dir():
        raise RunError("This is a file, and a run is a folder.", where=str(run.path), fix="choose another --out")
    if not run.path.is_dir():
        return
    opened = open_run(run.path) if run.recipe_path.exists() or RunGroup.stands_at(run.path) else None
    if opened is None:
        _refuse_others(run.path, WRITTEN_BEFORE)
        return
    members = list(opened.runs.values()) if isinstance(opened, RunGroup) else [opened]
    if any(member.began or member.status == "running" for member in members):
        raise RunError(
            "This folder holds a run already.",
            where=str(run.path),
            fix=f"`{command('resume', run.path)}` continues it; or choose another --out",
        )
    if isinstance(opened, RunGroup):
        _refuse_others(run.path, (*WRITTEN_BEFORE, PLAN_NAME, *(member.path.name for member in members)))
    for member in members:
        _refuse_others(member.path, (*WRITTEN_BEFORE, *(path.name for path in member.plan_paths)))
    note(f"what was planned in {run.path} never took a step, and is planned anew")
    for member in members:
        member.forget_plan()
    (run.path / PLAN_NAME).unlink(missing_ok=True)


def _refuse_others(folder: Path, expected: Collection[str]) -> None:
    """Raise RunError where other things than those stand in a folder; hidden ones do not count."""
    inside = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if others := [name for name in inside if name not in expected]:
        raise RunError(
            f"This folder holds other things: {', '.join(others[:5])}{', ...' if len(others) > 5 else ''}.",
            where=str(folder),
            fix="choose another --out: a run has a folder of its own",
        )
