"""The end of a run: the receipts that need it, and the evaluation of the best checkpoint."""

from visiontune.errors import ReceiptError
from visiontune.models.cortex import predicts_responses
from visiontune.models.parts import frozen_tensors, summarise, tensors_sha256, trained_tensors
from visiontune.progress import progress, warn
from visiontune.training import checkpoint, features, receipts
from visiontune.training.batches import promised
from visiontune.training.forecast import FORECAST_NAME
from visiontune.training.receptive_fields import write_fields
from visiontune.training.scoring import evaluate_validation
from visiontune.training.session import Session, probe_losses


def finish(session: Session) -> None:
    """The receipts that need the run's end, and the evaluation of its best checkpoint on the whole validation split."""
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
    best = ranks.from_first(checkpoint.standing_best(run, at, recipe.evaluation.metric))
    if ranks.is_first:
        _name_best(session, best)
    checkpoint.put_tensors(session.module, checkpoint.load(run, best, with_optimizer=False).shipped)
    held_out = receipts.held_out(session.datasets, recipe.data.limit)
    if len(held_out) < receipts.HELD_OUT_AT_LEAST:
        receipt = receipts.too_few_held_out(len(held_out))
    else:
        partners = receipts.partners(held_out)
        with progress("images exchanged", 2 * len(held_out), "samples", show=ranks.is_first) as advance:
            true = receipts.sample_losses(adapter, held_out, recipe, ranks.device, book, advance)
            others = receipts.sample_losses(adapter, held_out, recipe, ranks.device, book, advance, partners)
        receipt = receipts.image_matters(true, others)
    book.add(receipt)
    failed += [receipt.name] if receipt.status == "failed" else []
    if sum(dataset.count("validation") for dataset in session.datasets):
        evaluate_validation(run, adapter, session.datasets, recipe, ranks, best)
    if recipe.responses is not None and ranks.is_first:
        write_fields(run, predicts_responses(adapter), session.datasets, recipe, ranks.device, best)
    if failed:
        reasons = "; ".join(f"{name}: {book.receipts[name].reason}" for name in failed)
        raise ReceiptError(
            f"The run came to its end, but receipts failed: {reasons}",
            where=str(run.path / "receipts.json"),
            fix="do not ship this model before the reason is understood; report.html shows the numbers",
        )
    if ranks.is_first:
        features.forget(run)
        run.set_state("finished", step=at.step, best_step=best, seconds=round(at.seconds, 3))


def _name_best(session: Session, step: int) -> None:
    """Write that the checkpoint of a step is the best one, where a kill left another named or the better one was
    removed."""
    run, at, metric = session.run, session.progress, session.recipe.evaluation.metric
    if step == (at.best_step or at.step):
        if at.best_value is not None and (run.best is None or run.best["step"] != step):
            checkpoint.write_best(run, step, metric, at.best_value)
        return
    warn(f"the best checkpoint, of step {at.best_step}, is missing; that of step {step} is taken")
    entry = next((entry for entry in run.metrics("evaluation") if entry["step"] == step), {"metrics": {}})
    value = entry["metrics"].get(metric, {}).get("value")
    if value is None:  # it was never scored, and is no best one: the last is taken
        (run.checkpoints_folder / "best.json").unlink(missing_ok=True)
    else:
        checkpoint.write_best(run, step, metric, value)


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
            probe_off = probe_losses(adapter, session.datasets, recipe, session.ranks.device, session.book)
    after = receipts.hashes_by_part(trained, adapter.parts)
    return receipts.trained_moved(session.start["trained_sha256"], after, session.start["probe_losses"], probe_off)


def _memory_receipt(session: Session) -> receipts.Receipt:
    run, at = session.run, session.progress
    files = [file for file in run.checkpoints_folder.rglob("*") if file.is_file()]
    measured = {
        "measured_checkpoint_bytes": sum(file.stat().st_size for file in files),
        "measured_step_seconds": round(at.seconds / max(1, at.step), 6),
    }
    foreseen = {name: value for name, value in (run.read_json(FORECAST_NAME) or {}).items() if name != "recipe_sha256"}
    return receipts.memory(
        session.ranks.device.type, session.predicted_bytes, session.peak_bytes, {**foreseen, **measured}
    )
