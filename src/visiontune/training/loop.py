"""The training loop: one for every model and target. Everything it needs stands in the run folder.

A step: read its micro-batches, add up their targets over all ranks, forward and backward each, sum the gradients over
the ranks, clip, update. Then, where due: evaluate, checkpoint, pause.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from visiontune.data.dataset import Dataset
from visiontune.data.order import Order, key
from visiontune.errors import MachineError, PausedError, ReceiptError, RunError
from visiontune.files import write_json
from visiontune.machine import hardware, versions
from visiontune.metrics.text import score_texts
from visiontune.models.adapter import Batch, ModelAdapter
from visiontune.models.parts import frozen_tensors, set_training_mode, summarise, tensors_sha256, trained_tensors
from visiontune.progress import note, progress, warn
from visiontune.recipe import Recipe
from visiontune.run import Run
from visiontune.training import checkpoint, receipts
from visiontune.training import optimizer as optimizers
from visiontune.training.batches import Reading, load_steps, plan_steps, plan_window, promised
from visiontune.training.checkpoint import Progress
from visiontune.training.evaluate import closed_labels, evaluate_split, predict_split
from visiontune.training.memory import predicted_peak
from visiontune.training.model import adapt, load_base, open_datasets
from visiontune.training.pause import PauseRequests
from visiontune.training.precision import autocast, loss_scaler
from visiontune.training.ranks import Ranks

SUPERVISED_SHOWN = 6
PROBE_SAMPLES = 4


@dataclass
class Session:
    """What a training process holds in memory; all of it can be made again from the run folder."""

    run: Run
    recipe: Recipe
    ranks: Ranks
    datasets: list[Dataset]
    adapter: ModelAdapter
    optimizer: torch.optim.AdamW
    scaler: Any
    order: Order
    lengths: list[np.ndarray]
    book: receipts.ReceiptBook
    progress: Progress
    attempt: int
    start: dict[str, Any]
    predicted_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def module(self) -> torch.nn.Module:
        return self.adapter.trained_module

    @property
    def reading(self) -> Reading:
        return Reading(self.datasets, self.adapter.encoder)


def train_run(run: Run) -> Run:
    """Train the run that is planned in this folder, from its latest checkpoint where one stands, to its end.

    Raises PausedError when it was asked to pause, ReceiptError when a receipt fails, and what its parts raise. Whatever
    happens, the folder says so and `train_run` can be called again.
    """
    recipe = run.recipe
    hardware(recipe.machine.device)  # an absent device is an error before anything is loaded
    torch.set_num_threads(recipe.machine.threads)
    ranks = Ranks(recipe.machine.device)
    if not ranks.is_first:
        return _train(run, recipe, ranks)
    with run.locked():
        try:
            return _train(run, recipe, ranks)
        except PausedError:
            run.set_state("paused")
            raise
        except BaseException as error:
            run.set_state("failed", reason=str(error) or type(error).__name__)
            raise


def _train(run: Run, recipe: Recipe, ranks: Ranks) -> Run:
    if ranks.from_first(run.status) == "finished":
        if ranks.is_first:
            note(f"{run.path} is finished; nothing to do")
        return run
    session = _set_up(run, recipe, ranks)
    with PauseRequests(run) as pauses:
        _run_steps(session, pauses)
    _finish(session)
    return run


# Setting up


def _set_up(run: Run, recipe: Recipe, ranks: Ranks) -> Session:
    """Data, model and state as the latest checkpoint has them, and the facts that the receipts compare with at the end."""
    datasets = open_datasets(recipe)
    adapter = load_base(run, recipe, ranks.device)
    book = receipts.ReceiptBook(run, write=ranks.is_first)
    probe = _probe_losses(adapter, datasets, recipe, ranks.device, book)
    adapt(adapter, recipe)
    optimizer = optimizers.build(adapter.trained_module, adapter.parts, recipe.optimizer)
    scaler = loss_scaler(ranks.device, recipe.machine.precision)
    sizes = [min(d.count("train"), recipe.data.limit or d.count("train")) for d in datasets]
    weights = [use.weight for use in recipe.data.datasets]
    order = Order(recipe.seed, sizes, [w for w in weights if w is not None] or None)
    lengths = [adapter.encoder.lengths(dataset.index("train")) for dataset in datasets]
    state = ranks.from_first(run.state)
    session = Session(
        run, recipe, ranks, datasets, adapter, optimizer, scaler, order, lengths,
        book, Progress(), state["attempt"] + 1, start={},
    )  # fmt: skip
    session.start = _facts_at_start(session, probe)
    summaries = summarise(session.module, adapter.parts, recipe.parts)
    if ranks.is_first:
        write_json(run.path / "parts.json", [summary.to_json() for summary in summaries])
        for s in summaries:
            note(f"  {s.part:16} {s.state:8} {s.parameters:>14,} parameters, {s.trainable:,} trained")
    _continue_from_checkpoint(session)
    _check_before_first_step(session)
    if ranks.is_first:
        run.set_state("running", attempt=session.attempt, step=session.progress.step, steps=recipe.schedule.steps)
    ranks.wait()
    return session


def _probe_losses(
    adapter: ModelAdapter, datasets: Sequence[Dataset], recipe: Recipe, device: torch.device, book: receipts.ReceiptBook
) -> list[float]:
    """The losses of a few training samples, by which the base model is known again, bit for bit."""
    samples = [datasets[0].sample("train", i) for i in range(min(PROBE_SAMPLES, datasets[0].count("train")))]
    return receipts.sample_losses(adapter, samples, recipe, device, book).tolist()


def _facts_at_start(session: Session, probe: list[float]) -> dict[str, Any]:
    """Hashes before the first step, written once; a later attempt must find the same base model."""
    adapter, recipe, run = session.adapter, session.recipe, session.run
    frozen = frozen_tensors(session.module, adapter.parts, recipe.parts)
    trained = trained_tensors(session.module, adapter.parts, recipe.parts)
    facts = {
        "frozen_sha256": tensors_sha256(frozen),
        "trained_sha256": receipts.hashes_by_part(trained, adapter.parts),
        "probe_losses": probe,
        "versions": versions(),
    }
    earlier = session.ranks.from_first(run.read_json("start.json"))
    if earlier is None:
        if session.ranks.is_first:
            write_json(run.path / "start.json", facts)
        return facts
    for name in ("frozen_sha256", "trained_sha256"):
        if earlier[name] != facts[name]:
            raise RunError(
                "The base model is not the one that the run was started with.",
                where=str(run.path / "start.json"),
                fix=f"put the weights of {recipe.model.name} back, or start a new run",
            )
    if earlier["versions"] != facts["versions"]:
        changed = [name for name in facts["versions"] if facts["versions"][name] != earlier["versions"].get(name)]
        warn(f"{', '.join(changed)}: another version than at the start; the resumed run may differ in its last bits")
    return earlier


def _continue_from_checkpoint(session: Session) -> None:
    latest = checkpoint.load_latest(session.run)
    if latest is None:
        return
    checkpoint.put_tensors(session.module, latest.trained)
    optimizers.put_state(session.optimizer, session.module, latest.moments)
    session.progress = latest.progress
    if latest.progress.loss_scale:
        session.scaler.load_state_dict(latest.progress.loss_scale)
    if session.ranks.is_first:
        note(f"continuing from the checkpoint of step {latest.progress.step}")


def _check_before_first_step(session: Session) -> None:
    recipe, adapter = session.recipe, session.adapter
    steps = plan_window(session.order, session.lengths, recipe.batch, 0)
    refs = [ref for step in steps for micro_batch in step for ref in micro_batch.samples]
    answers = {d: session.datasets[d].index("train").answers for d in {ref[0] for ref in refs[:SUPERVISED_SHOWN]}}
    shown = [(ref, answers[ref[0]][ref[1]]) for ref in refs[:SUPERVISED_SHOWN]]
    session.book.require(receipts.supervised(session.reading, [r for r, _ in shown], [a for _, a in shown]))
    largest = max(
        (m for step in steps for m in step),
        key=lambda m: len(m.samples) * max(int(session.lengths[d][i]) for d, i, _ in m.samples),
    )
    adapter.trained_module.eval()
    try:
        batch = session.reading.batch(largest.samples)
        receipts.check_placeholders(session.book, batch)
        session.predicted_bytes = predicted_peak(adapter, batch, recipe.machine, session.ranks.device)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()  # the first step will say so, and cut finer
    if session.ranks.is_first and len(steps[0]) < session.ranks.count:
        warn(
            f"a step has {len(steps[0])} micro-batches for {session.ranks.count} ranks; some are idle. "
            f"Lower batch.tokens (now {recipe.batch.tokens})"
        )


# Steps


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
    if session.ranks.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    first_of_attempt = True
    finished = time.perf_counter()
    with progress("training", recipe.schedule.steps, "steps", show=session.ranks.is_first) as advance:
        advance(at.step)
        for step, batches in loaded:
            session.seconds = {"data": time.perf_counter() - finished}
            entry = _step(session, step, batches, check=first_of_attempt)
            first_of_attempt = False
            now = time.perf_counter()
            total, finished = now - finished, now
            at.seconds += total
            spent = {name: round(s, 6) for name, s in session.seconds.items()}
            spent["other"] = round(total - sum(session.seconds.values()), 6)
            if log:
                log.write({**entry, "attempt": session.attempt, "seconds": {**spent, "total": round(total, 6)}})
            advance(1, f"loss {entry['loss']:.4f}")
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
    if pausing and not (last or at.stopped_early):
        pauses.clear()
        raise PausedError(
            f"Paused at step {at.step} of {recipe.schedule.steps}.",
            where=str(session.run.checkpoint_path(at.step)),
            fix=f"visiontune resume {session.run.path}",
        )


def _step(session: Session, step: int, batches: list[tuple[int, Batch]], *, check: bool) -> dict[str, Any]:
    """One optimiser step; returns its line for the metrics."""
    recipe, at, ranks = session.recipe, session.progress, session.ranks
    for _, batch in batches:
        receipts.check_placeholders(session.book, batch)
    terms = sorted({term for _, batch in batches for term in batch.weights} | {"text"})
    counts = [float(sum(batch.weights.get(term, 0) for _, batch in batches)) for term in terms]
    sizes = [float(sum(n)) for n in zip(*((len(b.ids), b.tokens, b.padded_tokens) for _, b in batches), strict=True)]
    *totals, samples, tokens, padded = ranks.total([*counts, *(sizes or [0.0, 0.0, 0.0])])
    weights = dict(zip(terms, totals, strict=True))
    loss = _gradients(session, step, batches, weights)
    started = time.perf_counter()
    ranks.sum_gradients(p for group in session.optimizer.param_groups for p in group["params"])
    if check:
        receipts.check_gradients(session.book, session.module, session.adapter.parts, recipe.parts)
    norm = _update(session, step)
    _synchronise(ranks.device)
    session.seconds["optimizer"] = time.perf_counter() - started
    if not math.isfinite(loss):
        raise RunError(
            f"The loss of step {step + 1} is {loss}.",
            where=", ".join(batch.ids[0] for _, batch in batches),
            fix="lower optimizer.learning_rate, or use --machine.precision bf16 or fp32; the last checkpoint is sound",
        )
    _count(session, batches)
    return {
        "kind": "step",
        "step": at.step,
        "loss": loss,
        "learning_rate": max(group["lr"] for group in session.optimizer.param_groups),
        "gradient_norm": norm if math.isfinite(norm) else None,
        "samples": int(samples),
        "target_tokens": int(sum(weights.values())),
        "tokens": int(tokens),
        "padding": round(1 - tokens / padded, 4),
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if ranks.device.type == "cuda" else None,
    }


def _gradients(session: Session, step: int, batches: list[tuple[int, Batch]], weights: dict[str, float]) -> float:
    """Fill the gradients of a step and return its loss. Where memory runs out, all micro-batches are cut finer."""
    at, ranks = session.progress, session.ranks
    while True:
        session.optimizer.zero_grad(set_to_none=True)
        ran_out = False
        loss = 0.0
        try:
            loss = _forward_backward(session, step, batches, weights)
        except torch.OutOfMemoryError:
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
                terms = [losses[term].sum() / weights[term] for term in losses if weights[term]]
                if not terms:
                    continue
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
    predictions = predict_split(
        session.adapter, session.datasets, "validation", recipe, session.ranks, limit=recipe.evaluation.samples
    )
    scores = score_texts(predictions, closed_labels(session.datasets))
    set_training_mode(session.module, session.adapter.network, session.adapter.parts, recipe.parts)
    value = scores.metric(recipe.evaluation.metric).value if predictions else None
    if value is not None:
        better = at.best_value is None or value > at.best_value
        at.evaluations_without_better = 0 if better else at.evaluations_without_better + 1
        if better:
            at.best_value, at.best_step = value, at.step
        patience = recipe.evaluation.patience
        at.stopped_early = patience is not None and at.evaluations_without_better >= patience
    if log:
        metrics = scores.to_json()["metrics"]
        entry = {"kind": "evaluation", "attempt": session.attempt, "step": at.step, "split": "validation"}
        log.write({**entry, "metrics": metrics, "seconds": round(time.perf_counter() - started, 4)})
        shown = f"{recipe.evaluation.metric} {value:.3f}" if value is not None else "no validation samples"
        note(f"step {at.step}: {shown}" + (", stopping early" if at.stopped_early else ""))


def _save(session: Session) -> None:
    at, adapter, recipe = session.progress, session.adapter, session.recipe
    at.loss_scale = session.scaler.state_dict()
    if session.ranks.is_first:
        trained = trained_tensors(session.module, adapter.parts, recipe.parts)
        moments = optimizers.state_tensors(session.optimizer, session.module)
        checkpoint.save(session.run, at, trained, moments, recipe.checkpoints.keep)
        if at.best_value is not None:
            best = {"step": at.best_step, "metric": recipe.evaluation.metric, "value": at.best_value}
            write_json(session.run.checkpoints_folder / "best.json", best)
        session.run.set_state("running", step=at.step)
    session.ranks.wait()


# Finishing


def _finish(session: Session) -> None:
    """The receipts that need the end of the run, then the evaluation of the best checkpoint on the whole validation split."""
    run, recipe, adapter, at = session.run, session.recipe, session.adapter, session.progress
    book, ranks = session.book, session.ranks
    samples = at.step * recipe.batch.samples
    failed = []
    for receipt in (
        receipts.placeholders(at, samples),
        receipts.seen(promised(session.order, session.lengths, recipe.batch, at.step), at),
        _frozen_receipt(session),
        _moved_receipt(session),
        _memory_receipt(session),
    ):
        book.add(receipt)
        failed += [receipt.name] if receipt.status == "failed" else []
    best = at.best_step or at.step
    checkpoint.put_tensors(session.module, checkpoint.load(run, best, with_optimizer=False).trained)
    held_out = receipts.held_out(session.datasets, recipe.data.limit)
    true = receipts.sample_losses(adapter, held_out, recipe, ranks.device, book)
    others = receipts.sample_losses(adapter, receipts.exchanged(held_out), recipe, ranks.device, book)
    book.add(receipt := receipts.image_matters(true, others))
    failed += [receipt.name] if receipt.status == "failed" else []
    if sum(dataset.count("validation") for dataset in session.datasets):
        evaluate_split(run, adapter, session.datasets, "validation", recipe, ranks, best)
    if failed:
        raise ReceiptError(
            f"The run came to its end, but receipts failed: {'; '.join(f'{n}: {book.receipts[n].reason}' for n in failed)}",
            where=str(run.path / "receipts.json"),
            fix="do not ship this model before the reason is understood; report.html shows the numbers",
        )
    if ranks.is_first:
        run.set_state("finished", step=at.step, best_step=best, seconds=round(at.seconds, 3))


def _frozen_receipt(session: Session) -> receipts.Receipt:
    adapter, recipe = session.adapter, session.recipe
    touched = [name for name, p in session.module.named_parameters() if not p.requires_grad and p.grad is not None]
    after = tensors_sha256(frozen_tensors(session.module, adapter.parts, recipe.parts))
    summaries = summarise(session.module, adapter.parts, recipe.parts)
    return receipts.frozen_stayed_frozen(summaries, session.start["frozen_sha256"], after, touched)


def _moved_receipt(session: Session) -> receipts.Receipt:
    adapter, recipe = session.adapter, session.recipe
    trained = trained_tensors(session.module, adapter.parts, recipe.parts)
    probe_off = None
    if adapter.peft is not None:
        with adapter.peft.disable_adapter():
            probe_off = _probe_losses(adapter, session.datasets, recipe, session.ranks.device, session.book)
    after = receipts.hashes_by_part(trained, adapter.parts)
    return receipts.trained_moved(session.start["trained_sha256"], after, session.start["probe_losses"], probe_off)


def _memory_receipt(session: Session) -> receipts.Receipt:
    device = session.ranks.device.type
    measured = torch.cuda.max_memory_allocated() if device == "cuda" else None
    return receipts.memory(device, session.predicted_bytes, measured)
