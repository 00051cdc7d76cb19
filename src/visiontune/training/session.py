"""A training process: what it holds in memory, made from the run folder, and checked before the first step."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from visiontune.data.curriculum import StagedOrder, StagePlan
from visiontune.data.dataset import Dataset
from visiontune.data.order import Order
from visiontune.data.split import SPLITS
from visiontune.errors import DataError, RunError
from visiontune.files import write_json
from visiontune.machine import versions
from visiontune.models.adapter import ModelAdapter
from visiontune.models.objects import ObjectEncoder
from visiontune.models.parts import frozen_tensors, set_training_mode, summarise, tensors_sha256, trained_tensors
from visiontune.progress import note, warn
from visiontune.recipe import Recipe
from visiontune.run import Run
from visiontune.training import checkpoint, receipts
from visiontune.training import optimizer as optimizers
from visiontune.training.average import WeightAverage
from visiontune.training.batches import Reading, plan_window
from visiontune.training.callbacks import Callback
from visiontune.training.checkpoint import Progress
from visiontune.training.features import FeatureStore, features_of, fill
from visiontune.training.forecast import FORECAST_NAME, Forecast, forecast, refuse_full_disk
from visiontune.training.memory import predicted_peak, ran_out
from visiontune.training.model import adapt, load_base, open_datasets
from visiontune.training.precision import loss_scaler
from visiontune.training.ranks import Ranks
from visiontune.training.refusals import refuse_unseen
from visiontune.training.scoring import refuse_unscored
from visiontune.words import counted

SUPERVISED_SHOWN = 6
PROBE_SAMPLES = 4


@dataclass
class Session:
    """What a training process holds in memory; all but the callbacks can be made again from the run folder."""

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
    predicted_bytes: int = 0  # 0 where the largest micro-batch did not fit
    features_bytes: int = 0
    peak_bytes: int = 0
    gradients_checked: bool = False  # by the attempt's first step that has targets of every loss term
    features: FeatureStore | None = None
    average: WeightAverage | None = None
    callbacks: Callback = field(default_factory=Callback)  # called in the first process alone
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def module(self) -> torch.nn.Module:
        return self.adapter.trained_module

    @property
    def reading(self) -> Reading:
        views = self.recipe.data.augmented_views
        return Reading(self.datasets, self.adapter.encoder, "train", True, self.recipe.seed, views, self.features)


def set_up(run: Run, recipe: Recipe, ranks: Ranks, *, dry: bool = False) -> Session:
    """Data, model and state as the latest checkpoint has them, and the facts that receipts compare with at the end.

    A `dry` session does not compute the features that a run would keep.
    """
    datasets = open_datasets(recipe)
    adapter = load_base(run, recipe, ranks.device)
    _refuse_too_long(adapter, datasets, recipe)
    if isinstance(adapter.encoder, ObjectEncoder):
        fix = "raise --data.image_longest_edge, or cut off the longer side of these images"
        refuse_unseen(adapter.encoder, datasets, SPLITS, limit=recipe.data.limit, fix=fix)
    book = receipts.ReceiptBook(run, write=ranks.is_first)
    probe = probe_losses(adapter, datasets, recipe, ranks.device, book)
    adapt(adapter, recipe)
    optimizer = optimizers.build(adapter.trained_module, adapter.parts, recipe.optimizer, adapter.undecayed)
    scaler = loss_scaler(ranks.device, recipe.machine.precision)
    order = order_of(recipe, datasets)
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
    kept = features_of(run, recipe, ranks, adapter, datasets)
    if kept is not None and not dry:
        session.features = kept[0]
        fill(kept[0], recipe, ranks, adapter, datasets, book)
    if recipe.optimizer.average:
        session.average = WeightAverage(session.module, recipe.optimizer.average)
    _continue_from_checkpoint(session)
    session.features_bytes = 0 if kept is None or recipe.features.folder else kept[1].bytes
    _check_before_first_step(session)
    if ranks.is_first:
        run.set_state("running", attempt=session.attempt, step=session.progress.step, steps=recipe.schedule.steps)
    ranks.wait()
    return session


def order_of(recipe: Recipe, datasets: Sequence[Dataset]) -> Order:
    """Which training sample comes k-th in a run."""
    sizes = [min(d.count("train"), recipe.data.limit or d.count("train")) for d in datasets]
    weights = [use.weight for use in recipe.data.datasets if use.weight is not None] or None
    curriculum = recipe.data.curriculum
    if curriculum is None:
        return Order(recipe.seed, sizes, weights)
    samples = recipe.schedule.steps * recipe.batch.samples
    stages = [StagePlan(round(stage.until * samples), stage.weights) for stage in curriculum.stages]
    scores = [dataset.scores("train") for dataset in datasets]
    return StagedOrder(recipe.seed, sizes, weights, [one[curriculum.score] for one in scores], stages)


def probe_losses(
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
    if session.average is not None:
        session.average.put(latest.average)
    if latest.progress.loss_scale:
        session.scaler.load_state_dict(latest.progress.loss_scale)
    if session.ranks.is_first:
        note(f"continuing from the checkpoint of step {latest.progress.step}")


def foresee(session: Session) -> Forecast:
    """What the run will take; in forecast.json stands that of its first start, or of a dry run of the same recipe.

    Raises MachineError where the disk cannot hold it.
    """
    run, recipe, adapter = session.run, session.recipe, session.adapter
    layouts = [list(adapter.encoder.layouts(dataset.index("train"))) for dataset in session.datasets]
    bytes_of = {"memory_bytes": session.predicted_bytes, "features_bytes": session.features_bytes}
    found = forecast(recipe, adapter, session.order, session.lengths, layouts, **bytes_of)
    if session.ranks.is_first:
        refuse_full_disk(found, run.path, resumed=session.progress.step > 0)
        stood = run.read_json(FORECAST_NAME)
        if stood is None or (stood["recipe_sha256"] != recipe.sha256 and session.progress.step == 0):
            write_json(run.path / FORECAST_NAME, {"recipe_sha256": recipe.sha256, **found.to_json()})
            for line in found.lines():
                note(f"  {line}")
    return found


def _check_before_first_step(session: Session) -> None:
    recipe, adapter = session.recipe, session.adapter
    refuse_unscored(adapter, session.datasets, recipe)  # what cannot be scored is said before training
    steps = plan_window(session.order, session.lengths, recipe.batch, 0)
    refs = [ref for step in steps for micro_batch in step for ref in micro_batch.samples]
    session.book.require(receipts.supervised(session.reading, refs[:SUPERVISED_SHOWN]))
    largest = max(
        (m for step in steps for m in step),
        key=lambda m: len(m.samples) * max(int(session.lengths[d][i]) for d, i, _ in m.samples),
    )
    set_training_mode(session.module, adapter.network, adapter.parts, recipe.parts)  # it decides what a step keeps
    try:
        batch = session.reading.batch(largest.samples)
        receipts.check_placeholders(session.book, batch)
        several = any(len(step) > session.ranks.count for step in steps)
        session.predicted_bytes = predicted_peak(adapter, batch, recipe.machine, session.ranks.device, several=several)
    except RuntimeError as error:
        if not ran_out(error):
            raise
        torch.cuda.empty_cache()  # the first step will say so, and cut finer
    if session.ranks.is_first and len(steps[0]) < session.ranks.count:
        warn(
            f"a step has {len(steps[0])} micro-batches for {session.ranks.count} ranks; some are idle. "
            f"Lower batch.tokens (now {recipe.batch.tokens})"
        )


def _refuse_too_long(adapter: ModelAdapter, datasets: Sequence[Dataset], recipe: Recipe) -> None:
    """Raise DataError where images and question leave no room for an answer: images are never cut."""
    if recipe.target != "text":
        return
    most, found = recipe.data.max_tokens, []
    for dataset in datasets:
        for split in SPLITS:
            index = dataset.index(split)
            lengths = adapter.encoder.lengths(index)
            found += [f"{split} {index.ids[i]}" for i in np.flatnonzero(lengths[: recipe.data.limit] > most)[:1000]]
    if found:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise DataError(
            f"{counted(len(found), 'sample leaves', 'samples leave')} no room for an answer: images and question take "
            f"the {most} tokens allowed, and images are never cut.",
            where=", ".join(found[:5]) + more,
            fix="prepare with --max-pages, raise --data.max_tokens, or lower --data.image_longest_edge",
        )
