"""The training loop: one for every model and target. Everything it needs stands in the run folder.

A step: read its micro-batches, add up their targets over all ranks, forward and backward each, sum the gradients over
the ranks, clip, update. Then, where due: evaluate, checkpoint, pause.
"""

import math
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from visiontune.data.order import key
from visiontune.errors import MachineError, PausedError, RunError
from visiontune.files import full_disk_said
from visiontune.machine import hardware, process_peak_bytes
from visiontune.models.adapter import Batch
from visiontune.models.parts import set_training_mode, trained_tensors
from visiontune.progress import note, progress, warn
from visiontune.recipe import Recipe
from visiontune.run import Run
from visiontune.training import checkpoint, memory, receipts
from visiontune.training import optimizer as optimizers
from visiontune.training.batches import load_steps, plan_steps
from visiontune.training.callbacks import Callback, CallbackList
from visiontune.training.finish import finish
from visiontune.training.forecast import Forecast
from visiontune.training.pause import PauseRequests
from visiontune.training.precision import autocast
from visiontune.training.ranks import Ranks
from visiontune.training.scoring import score_some
from visiontune.training.session import Session, foresee, set_up
from visiontune.training.time_limit import resolve_hours, timed
from visiontune.training.trackers import refuse_missing, tracked
from visiontune.words import command


def train_run(run: Run, callbacks: Sequence[Callback] = ()) -> Run:
    """Train the run that is planned in this folder, from its latest checkpoint where one stands, to its end.

    Raises PausedError when it was asked to pause, ReceiptError when a receipt fails, and what its parts raise. Whatever
    happens, the folder says so and `train_run` can be called again.
    """
    recipe = run.recipe
    hardware(recipe.machine.device)  # an absent device is an error before anything is loaded
    refuse_missing(recipe.tracking)
    torch.set_num_threads(recipe.machine.threads)
    ranks = Ranks(recipe.machine.device)
    told = full_disk_said(run.path, f"make room, then `{command('resume', run.path)}`")
    if not ranks.is_first:
        with told:
            return _train(run, recipe, ranks, ())
    with run.locked():
        try:
            with told:
                return _train(run, recipe, ranks, callbacks)
        except PausedError:
            run.set_state("paused")
            raise
        except BaseException as error:
            with suppress(OSError):  # on a full disk; the error that stands says why
                run.set_state("failed", reason=str(error) or type(error).__name__)
            raise


def dry_run(run: Run) -> Forecast:
    """What the run that is planned in this folder will take, its time included: some steps are computed and timed, and
    one evaluation is made; nothing is learned. Raises what `train_run` would before its first step.
    """
    recipe = run.recipe
    hardware(recipe.machine.device)
    torch.set_num_threads(recipe.machine.threads)
    session = set_up(run, recipe, Ranks(recipe.machine.device), dry=True)

    def computed(step: int, batches: list[tuple[int, Batch]]) -> None:
        _computed(session, step, batches)

    clock = resolve_hours(session, computed) or timed(session, computed)
    found, (step, evaluation) = foresee(session), clock
    evaluations = -(-found.steps // session.recipe.evaluation.every)
    seconds = found.steps * step + evaluations * evaluation
    return replace(found, step_seconds=step, evaluation_seconds=evaluation, seconds=seconds)


def _train(run: Run, recipe: Recipe, ranks: Ranks, callbacks: Sequence[Callback]) -> Run:
    if ranks.from_first(run.status) == "finished":
        missing = ranks.from_first(run.missing_steps)
        if ranks.is_first and missing:
            note(f"{run.path} was finished; of its checkpoints {missing} are missing, and it is finished anew")
        elif ranks.is_first:
            note(f"{run.path} is finished; nothing to do")
        if not missing:
            return run
    session = set_up(run, recipe, ranks)
    resolve_hours(session, lambda step, batches: _computed(session, step, batches))
    foresee(session)
    trackers = tracked(run, session.recipe, session.progress.step) if ranks.is_first else nullcontext([])
    with trackers as own:
        session.callbacks = CallbackList([*own, *callbacks])
        with PauseRequests(run) as pauses:
            _run_steps(session, pauses)
        finish(session)
    return run


def _run_steps(session: Session, pauses: PauseRequests) -> None:
    recipe, at = session.recipe, session.progress
    if at.stopped_early or at.step >= recipe.schedule.steps:
        return
    set_training_mode(session.module, session.adapter.network, session.adapter.parts, recipe.parts)
    plan = plan_steps(session.order, session.lengths, recipe.batch, at.step, recipe.schedule.steps)
    loaded = load_steps(
        plan, session.reading, rank=session.ranks.rank, ranks=session.ranks.count, workers=recipe.machine.workers
    )
    log = session.run.open_metrics() if session.ranks.is_first else None
    finished = time.perf_counter()
    shown = progress("training", recipe.schedule.steps, "steps", show=session.ranks.is_first)
    with closing(loaded), shown as advance:  # closing ends the loader's workers
        advance(at.step)
        for step, batches in loaded:
            session.seconds = {"data": time.perf_counter() - finished}
            entry = _step(session, step, batches)
            now = time.perf_counter()
            total, finished = now - finished, now
            at.seconds += total
            spent = {name: round(s, 6) for name, s in session.seconds.items()}
            spent["other"] = round(total - sum(session.seconds.values()), 6)
            advance(1, f"loss {entry['loss']:.4f}")
            if log:
                entry |= {"attempt": session.attempt, "seconds": {**spent, "total": round(total, 6)}}
                log.write(entry)
                session.callbacks.on_step(session.run, entry)
            _after_step(session, pauses, log)
            if at.stopped_early:
                break
            finished = time.perf_counter()
    if log:
        log.close()


def _after_step(session: Session, pauses: PauseRequests, log: Any) -> None:
    """Evaluate, checkpoint and pause where due."""
    recipe, at = session.recipe, session.progress
    last = at.step == recipe.schedule.steps
    evaluated = last or at.step % recipe.evaluation.every == 0
    if evaluated:
        _evaluate(session, log)
    pausing = session.ranks.any(pauses.asked())
    if evaluated or pausing or at.step % recipe.checkpoints.every == 0:
        _save(session)
    if pausing:
        pauses.clear()
    if pausing and not (last or at.stopped_early):
        raise PausedError(
            f"Paused at step {at.step} of {recipe.schedule.steps}.",
            where=str(session.run.checkpoint_path(at.step)),
            fix=command("resume", session.run.path),
        )


def _step(session: Session, step: int, batches: list[tuple[int, Batch]]) -> dict[str, Any]:
    """One optimiser step; returns its line for the metrics."""
    recipe, at, ranks = session.recipe, session.progress, session.ranks
    for _, batch in batches:
        receipts.check_placeholders(session.book, batch)
    weights = _weights(session, batches)
    sizes = np.array([(len(b.ids), b.tokens, b.padded_tokens) for _, b in batches], dtype=np.float64).reshape(-1, 3)
    samples, tokens, padded = ranks.total(sizes.sum(axis=0).tolist())
    if ranks.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()  # evaluations between the steps do not count
    loss = _gradients(session, step, batches, weights)
    started = time.perf_counter()
    penalty = _penalise(session, step)
    ranks.sum_gradients(p for group in session.optimizer.param_groups for p in group["params"])
    if not session.gradients_checked and all(weights.values()):  # images without an object teach no mask
        receipts.check_gradients(session.book, session.module, session.adapter.parts, recipe.parts)
        session.gradients_checked = True
    norm = _update(session, step)
    if session.average is not None:
        session.average.update(step + 1)
    _synchronise(ranks.device)
    session.seconds["optimizer"] = time.perf_counter() - started
    overflowed = not math.isfinite(norm) and recipe.machine.precision != "fp16"  # where the scaler skips such a step
    if not math.isfinite(loss) or overflowed:
        raise RunError(
            f"The loss of step {step + 1} is {loss}, its gradient has norm {norm}.",
            where=", ".join(batch.ids[0] for _, batch in batches),
            fix="lower optimizer.learning_rate, or use --machine.precision bf16 or fp32; the last checkpoint is sound",
        )
    _count(session, batches)
    peak = torch.cuda.max_memory_allocated() if ranks.device.type == "cuda" else process_peak_bytes()
    session.peak_bytes = max(peak, session.peak_bytes)
    return {
        "kind": "step",
        "step": at.step,
        "loss": loss,
        **({} if penalty is None else {"penalty": penalty}),
        "learning_rate": max(group["lr"] for group in session.optimizer.param_groups),
        "gradient_norm": norm if math.isfinite(norm) else None,
        "samples": int(samples),
        "target_tokens": int(max(weights.values())),  # of objects how many, of responses bins of units
        "tokens": int(tokens),
        "padding": round(1 - tokens / padded, 4),
        "peak_memory_bytes": peak,
    }


def _weights(session: Session, batches: list[tuple[int, Batch]]) -> dict[str, float]:
    """What each loss term of a step is divided by: its targets on all ranks."""
    terms = session.adapter.terms
    counts = [float(sum(batch.weights[term] for _, batch in batches)) for term in terms]
    return dict(zip(terms, session.ranks.total(counts), strict=True))


def _computed(session: Session, step: int, batches: list[tuple[int, Batch]]) -> None:
    """All of a step but its update, for a clock."""
    _gradients(session, step, batches, _weights(session, batches))
    _penalise(session, step)
    session.ranks.sum_gradients(p for group in session.optimizer.param_groups for p in group["params"])
    _synchronise(session.ranks.device)


def _gradients(session: Session, step: int, batches: list[tuple[int, Batch]], weights: dict[str, float]) -> float:
    """Fill the gradients of a step and return its loss. Where memory runs out, all micro-batches are cut finer."""
    at, ranks = session.progress, session.ranks
    while True:
        session.optimizer.zero_grad(set_to_none=True)
        ran_out = False
        loss = 0.0
        try:
            loss = _forward_backward(session, step, batches, weights)
        except RuntimeError as error:
            if not memory.ran_out(error):
                raise
            ran_out = True
        if not ranks.any(ran_out):
            return ranks.total([loss])[0]
        largest = max((len(batch.ids) for _, batch in batches), default=1)
        if at.micro_batch_pieces >= ranks.total([float(largest)])[0]:
            raise MachineError(
                "A micro-batch of one sample does not fit into memory.",
                fix="set a part from full to lora or frozen, lower data.image_longest_edge, or use a larger device",
            )
        at.micro_batch_pieces *= 2
        if ranks.device.type == "cuda":
            torch.cuda.empty_cache()
        warn(f"out of memory at step {step + 1}: micro-batches are cut into {at.micro_batch_pieces} from here on")


def _forward_backward(
    session: Session, step: int, batches: list[tuple[int, Batch]], weights: dict[str, float]
) -> float:
    recipe, ranks, seconds = session.recipe, session.ranks, session.seconds
    seconds |= {"forward": 0.0, "backward": 0.0}
    summed = torch.zeros((), device=ranks.device)
    for number, batch in batches:
        for piece_number, piece in enumerate(batch.pieces(session.progress.micro_batch_pieces)):
            started = time.perf_counter()
            on_device = piece.to(ranks.device)
            with torch.random.fork_rng(devices=[ranks.device] if ranks.device.type == "cuda" else []):
                # Dropout follows from the place in the run, not from what this process has drawn before.
                torch.manual_seed(key(recipe.seed, 5, step, number, piece_number))
                with autocast(ranks.device, recipe.machine.precision):
                    losses = session.adapter.losses(on_device)
                # An image without objects teaches too: what it adds is divided by no less than one.
                terms = [losses[term].sum() / max(1.0, weights[term]) for term in losses]
                loss = torch.stack(terms).sum()
                _synchronise(ranks.device)
                seconds["forward"] += time.perf_counter() - started
                started = time.perf_counter()
                if loss.requires_grad:  # else no trained weight is reached, and the receipt says so
                    session.scaler.scale(loss).backward()
                _synchronise(ranks.device)
                seconds["backward"] += time.perf_counter() - started
            summed += loss.detach()
    return float(summed)


def _penalise(session: Session, step: int) -> float | None:
    """Add the gradient of the penalties, on one rank of all; returns their sum, None where there are none."""
    penalty = session.adapter.penalty(step, session.recipe.schedule.steps)
    if penalty is None:
        return None
    if session.ranks.is_first:
        session.scaler.scale(penalty).backward()
    return float(penalty.detach())


def _update(session: Session, step: int) -> float:
    """Clip and take the optimiser's step; returns the gradient's norm before clipping."""
    recipe, optimizer, scaler = session.recipe, session.optimizer, session.scaler
    optimizers.set_learning_rates(optimizer, optimizers.schedule_factor(recipe.schedule, step))
    scaler.unscale_(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, recipe.optimizer.clip_norm or math.inf)
    scaler.step(optimizer)
    scaler.update()
    return float(norm)


def _count(session: Session, batches: list[tuple[int, Batch]]) -> None:
    """Move on by one step, and count what was seen on all ranks."""
    at, batch = session.progress, session.recipe.batch
    own = [(b.origins, b.shortened, b.image_tokens) for _, b in batches]
    for origins, shortened, image_tokens in session.ranks.gathered(own):
        at.add_seen(origins)
        at.shortened += shortened
        at.image_tokens += image_tokens
    at.step += 1
    at.window, at.step_in_window = divmod(at.step, batch.window // batch.samples)


def _synchronise(device: torch.device) -> None:
    """Wait for the device, so that a clock tells how long its work took."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def _evaluate(session: Session, log: Any) -> None:
    """Answer a subset of the validation split; keep the best step, and stop early where the recipe says so."""
    recipe, at = session.recipe, session.progress
    started = time.perf_counter()
    with session.average.in_place() if session.average is not None else nullcontext():
        scores = score_some(session.adapter, session.datasets, recipe, session.ranks)
    set_training_mode(session.module, session.adapter.network, session.adapter.parts, recipe.parts)
    value = scores.metric(recipe.evaluation.metric).value if scores else None
    if value is not None:
        better = at.best_value is None or value > at.best_value
        at.evaluations_without_better = 0 if better else at.evaluations_without_better + 1
        if at.best_value is None or value >= at.best_value:  # of equals the later one, which has learned longer
            at.best_value, at.best_step = value, at.step
        patience = recipe.evaluation.patience
        at.stopped_early = patience is not None and at.evaluations_without_better >= patience
    if log:
        metrics = scores.to_json()["metrics"] if scores else {}
        entry = {"kind": "evaluation", "attempt": session.attempt, "step": at.step, "split": "validation"}
        entry |= {"metrics": metrics, "seconds": round(time.perf_counter() - started, 4)}
        log.write(entry)
        nothing = "no validation samples" if scores is None else f"{recipe.evaluation.metric}: nothing to score"
        shown = f"{recipe.evaluation.metric} {value:.3f}" if value is not None else nothing
        note(f"step {at.step}: {shown}" + (", stopping early" if at.stopped_early else ""))
        session.callbacks.on_evaluate(session.run, entry)


def _save(session: Session) -> None:
    at, adapter, recipe = session.progress, session.adapter, session.recipe
    at.loss_scale = session.scaler.state_dict()
    if session.ranks.is_first:
        trained = trained_tensors(session.module, adapter.parts, recipe.parts)
        moments = optimizers.state_tensors(session.optimizer, session.module)
        average = None if session.average is None else session.average.tensors
        path = checkpoint.save(session.run, at, trained, moments, average)
        if at.best_value is not None:
            checkpoint.write_best(session.run, at.best_step, recipe.evaluation.metric, at.best_value)
        checkpoint.remove_old(session.run, at, recipe.checkpoints.keep)
        session.run.set_state("running", step=at.step)
        session.callbacks.on_checkpoint(session.run, path, at.step)
    session.ranks.wait()
