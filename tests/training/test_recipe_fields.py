"""Every field of the recipe changes something: a flag that does nothing is a bug."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import visiontune
from tests.conftest import QUICK
from visiontune.data.dataset import Dataset
from visiontune.errors import DataError, MachineError, RecipeError
from visiontune.machine import hardware
from visiontune.recipe import Recipe, field_names
from visiontune.run import Run
from visiontune.training import loop
from visiontune.training.loop import train_run
from visiontune.training.plan import derive, plan_run

Plan = Callable[..., Run]

# Four steps; losses of dropout-free LoRA on the tiny checkpoint.
BASE: dict[str, Any] = {"schedule.steps": 4, "evaluation.every": 4, "evaluation.samples": 4, "schedule.warmup": 0.25}

# Field -> the overrides that change it, where the losses of a short run must differ.
CHANGES_LOSSES: dict[str, dict[str, Any]] = {
    "seed": {"seed": 7},
    "model.name": {"model.name": "tiny/smolvlm"},
    "data.prompt": {"data.prompt": "What is this?"},
    "data.limit": {"data.limit": 8},
    "data.image_longest_edge": {"data.image_longest_edge": 16},
    "data.image_splitting": {"data.image_splitting": True, "data.image_longest_edge": 64},
    "data.max_tokens": {"data.max_tokens": 80},
    "data.augment": {"data.augment": 0.5},
    "parts": {"parts.vision_encoder": "lora"},
    "lora.rank": {"lora.rank": 2},
    "lora.alpha": {"lora.alpha": 1.0},
    "lora.dropout": {"lora.dropout": 0.5},
    "optimizer.learning_rate": {"optimizer.learning_rate": 1e-3},
    "optimizer.part_learning_rates": {"optimizer.part_learning_rates": {"projector": 1e-4}},
    "optimizer.weight_decay": {"optimizer.weight_decay": 5.0},
    "optimizer.beta1": {"optimizer.beta1": 0.5},
    "optimizer.beta2": {"optimizer.beta2": 0.5},
    "optimizer.epsilon": {"optimizer.epsilon": 1e-2},
    "optimizer.clip_norm": {"optimizer.clip_norm": 1e-12},
    "schedule.kind": {"schedule.kind": "constant"},
    "schedule.warmup": {"schedule.warmup": 0.5},
    "batch.samples": {"batch.samples": 16},
    "batch.window": {"batch.window": 16},
    "machine.precision": {"machine.precision": "bf16"},
}


def losses(run: Run) -> list[float]:
    return [entry["loss"] for entry in run.metrics("step")]


_BASE_LOSSES: list[list[float]] = []


@pytest.fixture
def base_losses(plan: Plan) -> list[float]:
    if not _BASE_LOSSES:
        _BASE_LOSSES.append(losses(train_run(plan("base", {**BASE, "lora.dropout": 0.0}))))
    return _BASE_LOSSES[0]


@pytest.mark.parametrize("field", CHANGES_LOSSES)
def test_the_field_changes_the_losses(field: str, plan: Plan, base_losses: list[float]) -> None:
    changes = CHANGES_LOSSES[field]
    model = changes.get("model.name")
    run = plan("changed", {**BASE, "lora.dropout": 0.0, **changes}, model)
    try:
        train_run(run)
    except DataError as error:
        assert field == "data.max_tokens" and "images are never cut" in error.found
        return
    assert losses(run) != base_losses


def test_every_field_of_the_recipe_is_shown_to_matter() -> None:
    by_name = {
        "model.revision": test_revision_is_handed_to_the_hub,
        "data.datasets": test_datasets_and_weights_decide_what_is_drawn,
        "schedule.steps": test_steps_checkpoints_and_evaluations_come_when_asked,
        "checkpoints.every": test_steps_checkpoints_and_evaluations_come_when_asked,
        "checkpoints.keep": test_steps_checkpoints_and_evaluations_come_when_asked,
        "evaluation.every": test_steps_checkpoints_and_evaluations_come_when_asked,
        "evaluation.samples": test_steps_checkpoints_and_evaluations_come_when_asked,
        "evaluation.metric": test_metric_decides_the_best_checkpoint,
        "evaluation.patience": test_patience_stops_early,
        "evaluation.max_new_tokens": test_answers_are_no_longer_than_asked,
        "batch.tokens": test_tokens_cut_micro_batches_and_leave_the_result,
        "machine.device": test_an_absent_device_is_an_error_before_anything_is_loaded,
        "machine.workers": test_workers_and_threads_are_those_asked_for,
        "machine.threads": test_workers_and_threads_are_those_asked_for,
    }
    assert sorted([*CHANGES_LOSSES, *by_name]) == sorted(field_names())


def test_revision_is_handed_to_the_hub(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    asked: list[Any] = []
    for name in ("AutoConfig", "AutoProcessor", "AutoImageProcessor", "AutoModelForImageTextToText"):
        auto = getattr(transformers, name)
        original = auto.from_pretrained

        def from_pretrained(*args: Any, original: Any = original, **options: Any) -> Any:
            asked.append(options.get("revision"))
            return original(*args, **options)

        monkeypatch.setattr(auto, "from_pretrained", from_pretrained)
    train_run(plan("revised", {**BASE, "model.revision": "v1.2"}))
    assert len(asked) >= 4 and set(asked) - {None} == {"v1.2"}
    assert asked.count("v1.2") >= 4


def test_datasets_and_weights_decide_what_is_drawn(digits: Dataset, tiny_checkpoint: Path, tmp_path: Path) -> None:
    recipe = derive([digits, digits], [3.0, 1.0], str(tiny_checkpoint), hardware("cpu"))
    run = Run(tmp_path / "mixed")
    plan_run(run, recipe.changed({**QUICK, **BASE, "schedule.steps": 8, "data.limit": 12}), [digits, digits])
    train_run(run)
    seen = next(r for r in run.receipts if r["name"] == "seen")
    assert seen["status"] == "passed" and seen["numbers"]["seen"] == {"0": 48, "1": 16}
    scores = run.read_json("evaluations/validation/metrics.json")
    assert scores is not None and scores["n"] == 24  # data.limit rows of each


def test_a_weight_for_one_dataset_only_is_refused(recipe_of: Recipe) -> None:
    uses = [use.model_dump() for use in recipe_of.data.datasets]
    with pytest.raises(RecipeError, match="weight"):
        recipe_of.changed({"data.datasets": [*uses, {**uses[0], "weight": 2.0}]})


def test_steps_checkpoints_and_evaluations_come_when_asked(plan: Plan) -> None:
    run = train_run(
        plan(
            "when",
            {
                "schedule.steps": 9,
                "evaluation.every": 4,
                "evaluation.samples": 5,
                "checkpoints.every": 2,
                "checkpoints.keep": 3,
            },
        )
    )
    assert len(run.metrics("step")) == 9
    evaluations = run.metrics("evaluation")
    assert [e["step"] for e in evaluations] == [4, 8, 9]
    assert {e["metrics"]["accuracy"]["n"] for e in evaluations} == {5}
    assert run.best is not None
    assert set(run.checkpoint_steps()) == {6, 8, 9, run.best["step"]}


def test_metric_decides_the_best_checkpoint(plan: Plan) -> None:
    for metric in ("accuracy", "exact_match"):
        run = train_run(plan(metric, {**BASE, "evaluation.metric": metric}))
        assert run.best is not None and run.best["metric"] == metric


def test_patience_stops_early(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    original = loop.score_texts
    values = iter([0.5, 0.6, 0.6, 0.4, 0.9])

    def scored(predictions: Any, labels: Any) -> Any:
        from dataclasses import replace

        scores = original(predictions, labels)
        metric = replace(scores.metric("accuracy"), value=next(values))
        return replace(scores, metrics={**scores.metrics, "accuracy": metric})

    monkeypatch.setattr(loop, "score_texts", scored)
    run = train_run(plan("patient", {"evaluation.every": 2, "evaluation.patience": 2}))
    assert [e["step"] for e in run.metrics("evaluation")] == [2, 4, 6, 8]
    assert len(run.metrics("step")) == 8 and run.status == "finished"
    assert run.best is not None and run.best["step"] == 6  # as good as step 4, and later


def test_answers_are_no_longer_than_asked(plan: Plan) -> None:
    untrained = {**BASE, "optimizer.learning_rate": 1e-9}
    run = train_run(plan("short", {**untrained, "evaluation.max_new_tokens": 1}))
    longer = train_run(plan("long", {**untrained, "evaluation.max_new_tokens": 12}))

    def longest(run: Run) -> int:
        import json

        lines = (run.path / "evaluations" / "validation" / "predictions.jsonl").read_text().splitlines()
        return max(len(json.loads(line)["text"]) for line in lines)

    assert longest(run) < longest(longer)


def test_tokens_cut_micro_batches_and_leave_the_result(plan: Plan) -> None:
    overrides = {**BASE, "lora.dropout": 0.0}
    whole = train_run(plan("whole", {**overrides, "batch.tokens": 4096}))
    cut = train_run(plan("cut", {**overrides, "batch.tokens": 100}))
    assert losses(cut) == pytest.approx(losses(whole), abs=1e-5)


def test_an_absent_device_is_an_error_before_anything_is_loaded(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visiontune.machine.available_devices", lambda: ["cpu"])  # as on a machine without a GPU
    with pytest.raises(MachineError, match="'cuda' was asked for") as caught:
        train_run(plan("gpu", {"machine.device": "cuda"}))
    assert "cpu" in (caught.value.fix or "")


def test_workers_and_threads_are_those_asked_for(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    from visiontune.training import batches

    asked: list[int] = []
    original = batches.DataLoader

    def loader(*args: Any, **options: Any) -> Any:
        asked.append(options["num_workers"])
        return original(*args, **options)

    monkeypatch.setattr(batches, "DataLoader", loader)
    try:
        train_run(plan("two", {**BASE, "machine.workers": 2, "machine.threads": 2}))
        assert 2 in asked and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_out_of_memory_cuts_finer_says_so_once_and_leaves_the_result(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from visiontune.models.smolvlm import SmolVLMAdapter

    whole = train_run(plan("whole", {"lora.dropout": 0.0, "batch.tokens": 4096}))
    original = SmolVLMAdapter.losses
    refused: list[int] = []

    def losses_of_three(self: Any, batch: Any) -> Any:
        if torch.is_grad_enabled() and len(batch.ids) > 3:
            refused.append(len(batch.ids))
            raise torch.OutOfMemoryError("planted")
        return original(self, batch)

    monkeypatch.setattr(SmolVLMAdapter, "losses", losses_of_three)
    capsys.readouterr()
    cut = train_run(plan("cut", {"lora.dropout": 0.0, "batch.tokens": 4096}))
    assert losses(cut) == pytest.approx(losses(whole), abs=1e-5)
    said = [line for line in capsys.readouterr().err.splitlines() if "out of memory" in line]
    assert len(said) == 2  # to two pieces of four, then to four pieces of two; not again in later steps
    assert max(refused) == 8 and len(refused) <= 4


def test_one_sample_that_does_not_fit_is_a_clear_error(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    from visiontune.models.smolvlm import SmolVLMAdapter

    original = SmolVLMAdapter.losses

    def never(self: Any, batch: Any) -> Any:
        if torch.is_grad_enabled():
            raise torch.OutOfMemoryError("planted")
        return original(self, batch)

    monkeypatch.setattr(SmolVLMAdapter, "losses", never)
    with pytest.raises(MachineError, match="one sample does not fit"):
        train_run(plan("never"))


def test_fp16_scales_the_loss_and_skips_a_step_that_overflows(plan: Plan) -> None:
    run = train_run(plan("half", {**BASE, "machine.precision": "fp16"}))
    full = train_run(plan("full", {**BASE, "machine.precision": "fp32"}))
    assert losses(run) == pytest.approx(losses(full), rel=0.05)
    scale = run.read_json(f"checkpoints/step-{run.checkpoint_steps()[-1]}/state.json")
    assert scale is not None and scale["loss_scale"]["scale"] > 0


def test_bf16_keeps_trained_weights_in_float32(plan: Plan) -> None:
    from safetensors.torch import load_file

    run = train_run(plan("bf16", {**BASE, "machine.precision": "bf16"}))
    weights = load_file(run.checkpoint_path(run.checkpoint_steps()[-1]) / "trained.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    receipts = {r["name"]: r["status"] for r in run.receipts}
    assert receipts["trained moved"] == receipts["frozen stayed frozen"] == "passed"


def test_a_recipe_file_changes_the_derived_recipe_and_the_command_line_the_file(
    digits: Dataset, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text("lora:\n  rank: 2\nschedule:\n  kind: linear\n")
    overrides = {**QUICK, **BASE, "schedule.kind": "constant"}
    run = visiontune.train(
        digits.path,
        model=str(tiny_checkpoint),
        out=tmp_path / "run",
        recipe=tmp_path / "mine.yaml",
        overrides=overrides,
    )
    assert run.recipe.lora.rank == 2 and run.recipe.schedule.kind == "constant"
    assert run.recipe.why["lora.rank"] == "set by hand"


def test_epochs_and_limit_decide_the_steps(digits: Dataset, tiny_checkpoint: Path) -> None:
    def steps(**options: Any) -> int:
        return derive([digits], [None], str(tiny_checkpoint), hardware("cpu"), **options).schedule.steps

    assert steps(epochs=4) == pytest.approx(2 * steps(epochs=2), abs=1)
    assert steps(limit=40) < steps()


def test_buffers_keep_float32_in_a_run_of_lower_precision(plan: Plan) -> None:
    from visiontune.training.model import load_base

    run = plan("bf16", {"machine.precision": "bf16"})
    network = load_base(run, run.recipe, torch.device("cpu")).network
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in network.buffers() if b.is_floating_point()} == {torch.float32}


def test_a_loss_that_is_not_a_number_stops_the_run_with_the_step_and_the_fix(plan: Plan) -> None:
    from visiontune.errors import RunError

    with pytest.raises(RunError, match=r"The loss of step \d+ is") as caught:
        train_run(plan("diverged", {"optimizer.learning_rate": 1e30, "optimizer.clip_norm": None}))
    assert "learning_rate" in (caught.value.fix or "")


def test_a_gradient_that_overflows_stops_the_run_before_its_weights_are_kept(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    from visiontune.errors import RunError

    original = loop._forward_backward

    def overflow(session: Any, *rest: Any) -> float:
        loss = original(session, *rest)
        next(p for p in session.module.parameters() if p.grad is not None).grad.fill_(float("inf"))
        return loss

    monkeypatch.setattr(loop, "_forward_backward", overflow)
    run = plan("overflow")
    with pytest.raises(RunError, match="gradient has norm inf"):
        train_run(run)
    assert run.checkpoint_steps() == [] and run.status == "failed"
