"""Hours turned into steps: some steps are timed before the first one, and what they allow is recorded."""

import time
from collections.abc import Callable
from typing import Any

from visiontune.errors import RecipeError
from visiontune.models.adapter import Batch
from visiontune.models.parts import set_training_mode
from visiontune.progress import note
from visiontune.recipe import Recipe
from visiontune.training.batches import load_steps, plan_steps
from visiontune.training.derived import OFTEN, often
from visiontune.training.scoring import score_some
from visiontune.training.session import Session, order_of
from visiontune.words import counted

WARM, TIMED = 2, 6  # steps: the first ones are slower, whatever the device
KEPT = 0.95  # share of the time for the steps and evaluations; the rest is checkpoints and the run's end
TIMES = 10  # evaluations and checkpoints of a run

Computed = Callable[[int, list[tuple[int, Batch]]], None]


def resolve_hours(session: Session, computed: Computed) -> tuple[float, float] | None:
    """Give the session, and the run folder, a recipe in which `schedule.hours` has become `schedule.steps`.

    `computed` does all of a step (its number, its micro-batches) but the update. Nothing is learned here. All ranks
    agree on the slowest. A resumed run finds the steps that were recorded. Returns what was `timed`; None where the
    recipe has no hours. Raises RecipeError where the time is not enough for a step.
    """
    recipe, ranks = session.recipe, session.ranks
    hours = recipe.schedule.hours
    if hours is None:
        return None
    step_seconds, evaluation_seconds = timed(session, computed)
    left = hours * 3600 * KEPT - TIMES * evaluation_seconds
    steps = int(left / step_seconds)
    if steps < 1:
        raise RecipeError(
            f"{hours:g} hours are {hours * 3600:.0f} s; ten evaluations take {TIMES * evaluation_seconds:.0f} s and a "
            f"step {step_seconds:.2f} s.",
            where="schedule.hours",
            fix="give more time, or lower evaluation.samples",
        )
    given = counted(hours, "hour", form="g")
    reason = f"{given}; a step takes {step_seconds:.3g} s and an evaluation {evaluation_seconds:.3g} s"
    session.recipe = with_steps(recipe, steps, reason)
    session.order = order_of(session.recipe, session.datasets)
    if ranks.is_first:
        session.recipe.save(session.run.recipe_path)
        note(f"{counted(steps, 'step')}: {reason}")
    ranks.wait()
    return step_seconds, evaluation_seconds


def timed(session: Session, computed: Computed) -> tuple[float, float]:
    """Seconds that a step and an evaluation take, on the slowest rank. Nothing is learned."""
    recipe, ranks = session.recipe, session.ranks
    set_training_mode(session.module, session.adapter.network, session.adapter.parts, recipe.parts)
    plan = plan_steps(session.order, session.lengths, recipe.batch, 0, WARM + TIMED)
    started = ended = time.perf_counter()
    for step, batches in load_steps(plan, session.reading, rank=ranks.rank, ranks=ranks.count):
        computed(step, batches)
        ended = time.perf_counter()
        started = ended if step == WARM - 1 else started
    session.optimizer.zero_grad(set_to_none=True)
    step_seconds = max(ranks.gathered([(ended - started) / TIMED]))
    started = time.perf_counter()
    score_some(session.adapter, session.datasets, recipe, ranks)
    return step_seconds, max(ranks.gathered([time.perf_counter() - started]))


def with_steps(recipe: Recipe, steps: int, reason: str) -> Recipe:
    """The recipe with so many steps and no hours; evaluations and checkpoints ten times, unless they were asked for."""
    changed: dict[str, Any] = {"schedule.steps": steps, "schedule.hours": None}
    derived = (None, *OFTEN.values())  # checkpoints that are derived have no reason of their own
    follow = [name for name in ("evaluation.every", "checkpoints.every") if recipe.why.get(name) in derived]
    changed |= dict.fromkeys(follow, often(steps, TIMES))
    why = {name: said for name, said in recipe.why.items() if name != "schedule.hours"} | {"schedule.steps": reason}
    why |= {name: OFTEN[TIMES] for name in follow if name in why}
    return recipe.changed(changed).model_copy(update={"why": why})
