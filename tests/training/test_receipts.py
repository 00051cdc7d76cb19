"""Each receipt sees its own failure, planted; the run stops where it must."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import visiontune
from tests.conftest import QUICK, planner, png
from visiontune.data.dataset import Dataset
from visiontune.errors import ReceiptError
from visiontune.models.smolvlm import SmolVLMEncoder
from visiontune.run import Run
from visiontune.training import loop, receipts, session
from visiontune.training import model as models
from visiontune.training.loop import train_run

Plan = Callable[..., Run]
SHORT = {"schedule.steps": 2}


def statuses(run: Run) -> dict[str, str]:
    return {receipt["name"]: receipt["status"] for receipt in run.receipts}


def receipt(run: Run, name: str) -> dict[str, Any]:
    return next(r for r in run.receipts if r["name"] == name)


def fails(run: Run, name: str, reason: str) -> None:
    """The run stops or ends with this receipt failed, and says why."""
    with pytest.raises(ReceiptError, match=name):
        train_run(run)
    assert receipt(run, name)["status"] == "failed"
    assert reason in receipt(run, name)["reason"]
    assert run.status == "failed" and name in run.state["reason"]


def test_a_sound_run_passes_every_receipt_that_applies(
    three_digits: Dataset, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    learns = {
        "data.limit": None,
        "schedule.steps": 60,
        "evaluation.every": 30,
        "batch.samples": 16,
        "batch.tokens": 4096,
        "optimizer.learning_rate": 2e-3,
        "parts.vision_encoder": "full",
        "parts.projector": "full",
        "parts.embeddings": "full",
    }
    run = train_run(planner(three_digits, tiny_checkpoint, tmp_path)("sound", learns))
    assert statuses(run) == {
        "supervised": "passed",
        "placeholders": "passed",
        "image matters": "passed",
        "frozen stayed frozen": "passed",
        "trained moved": "passed",
        "seen": "passed",
        "memory": "not applicable",
    }
    example = receipt(run, "supervised")["examples"][0]
    learned = [segment["text"] for segment in example["segments"] if segment["supervised"]]
    assert len(learned) == 1 and learned[0].endswith("<end_of_utterance>")


def encode_with(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], dict[str, Any]]) -> None:
    from dataclasses import replace

    original = SmolVLMEncoder.encode

    def encode(self: SmolVLMEncoder, sample: Any, **options: Any) -> Any:
        encoded = original(self, sample, **options)
        return replace(encoded, **change(encoded))

    monkeypatch.setattr(SmolVLMEncoder, "encode", encode)


def test_supervised_sees_a_span_that_holds_the_question(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    encode_with(monkeypatch, lambda e: {"supervised": torch.ones_like(e.supervised)})
    run = plan()
    fails(run, "supervised", "instead of")
    assert run.metrics("step") == []


def test_supervised_sees_that_nothing_is_learned(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    encode_with(monkeypatch, lambda e: {"supervised": torch.zeros_like(e.supervised)})
    fails(plan(), "supervised", "instead of")


def test_placeholders_sees_images_dropped_by_the_collator(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    original = SmolVLMEncoder.collate

    def collate(self: SmolVLMEncoder, encoded: Any, *, pad_left: bool = False) -> Any:
        batch = original(self, encoded, pad_left=pad_left)
        if not pad_left and len(encoded) > 1:
            batch.tensors["pixel_values"][0] = 0
        return batch

    monkeypatch.setattr(SmolVLMEncoder, "collate", collate)
    run = plan()
    fails(run, "placeholders", "image tiles reached the batch")
    assert run.metrics("step") == []


def test_placeholders_sees_a_cut_image_span(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(encoded: Any) -> dict[str, Any]:
        keep = torch.ones(len(encoded.input_ids), dtype=torch.bool)
        keep[8] = False  # inside the image
        return {"input_ids": encoded.input_ids[keep], "supervised": encoded.supervised[keep]}

    encode_with(monkeypatch, cut)
    fails(plan(), "placeholders", "image tokens stand in the text")


def test_trained_moved_sees_an_adapter_switched_off(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    original = models.adapt

    def adapt(adapter: Any, recipe: Any) -> None:
        original(adapter, recipe)
        adapter.peft.base_model.disable_adapter_layers()
        for name, parameter in adapter.peft.named_parameters():
            parameter.requires_grad_("lora_" in name)

    monkeypatch.setattr(session, "adapt", adapt)
    run = plan()
    fails(run, "trained moved", "no gradient reaches")
    assert run.metrics("step") == []


def test_trained_moved_sees_one_part_that_is_cut_off(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    original = models.adapt

    def adapt(adapter: Any, recipe: Any) -> None:
        original(adapter, recipe)
        connector = adapter.network.model.connector
        connector.register_forward_hook(lambda module, inputs, output: output.detach())

    monkeypatch.setattr(session, "adapt", adapt)
    fails(plan(), "trained moved", "no gradient reaches projector")


def test_trained_moved_sees_a_part_that_did_not_change() -> None:
    made = receipts.trained_moved({"a": "1", "b": "2"}, {"a": "9", "b": "2"}, [], None)
    assert made.status == "failed" and "b did not change" in made.reason


def test_trained_moved_sees_a_base_model_that_changed() -> None:
    made = receipts.trained_moved({"a": "1"}, {"a": "2"}, [0.5, 0.25], [0.5, 0.25000001])
    assert made.status == "failed" and "not the base model" in made.reason


def after_each_step(monkeypatch: pytest.MonkeyPatch, act: Callable[[Any], None]) -> None:
    original = loop._count

    def count(training: Any, batches: Any) -> None:
        original(training, batches)
        act(training)

    monkeypatch.setattr(loop, "_count", count)


def test_frozen_sees_a_frozen_weight_that_moved(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def nudge(training: Any) -> None:
        weight = next(p for n, p in training.module.named_parameters() if "vision_model" in n)
        weight.data.view(-1)[0] += 1e-6

    after_each_step(monkeypatch, nudge)
    fails(plan("run", SHORT), "frozen stayed frozen", "changed during the run")


def test_frozen_sees_a_buffer_that_moved(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    after_each_step(monkeypatch, lambda training: next(training.module.buffers()).mul_(1.0001))
    fails(plan("run", SHORT), "frozen stayed frozen", "changed during the run")


def test_frozen_sees_a_frozen_weight_that_learns(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    original = session.optimizers.build

    def build(module: Any, parts: Any, recipe: Any, undecayed: Any) -> Any:
        optimizer = original(module, parts, recipe, undecayed)
        weight = next(p for n, p in module.named_parameters() if "vision_model" in n)
        weight.grad = torch.zeros_like(weight)
        return optimizer

    monkeypatch.setattr(session.optimizers, "build", build)
    fails(plan(), "frozen stayed frozen", "received a gradient")


def test_seen_sees_a_sample_that_was_skipped_and_one_that_was_another(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop._count

    def skip(training: Any, batches: Any) -> None:
        batches[0][1].origins = batches[0][1].origins[1:]
        original(training, batches)

    monkeypatch.setattr(loop, "_count", skip)
    fails(plan("skipped", SHORT), "seen", "other numbers of samples")

    def exchange(training: Any, batches: Any) -> None:
        batches[0][1].origins[0] = (0, 10**6, 0)
        original(training, batches)

    monkeypatch.setattr(loop, "_count", exchange)
    fails(plan("exchanged", SHORT), "seen", "other samples were seen")


def test_image_matters_sees_a_prompt_that_gives_the_answer_away(tmp_path: Path, digit_scans: Any) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    rows = []
    for number, (scan, label) in enumerate(zip(*(half[:1150] for half in digit_scans), strict=True)):
        if label in (0, 1, 3):
            (photos / f"{number}.png").write_bytes(png(scan))
            rows.append({"file_name": f"{number}.png", "label": str(label), "prompt": f"{label}"})
    (photos / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    overrides = {**QUICK, "data.limit": None, "schedule.steps": 60, "batch.tokens": 4096, "batch.samples": 16}
    with pytest.raises(ReceiptError, match="does not need the image"):
        visiontune.train(photos, model="tiny/smolvlm", out=tmp_path / "run", overrides=overrides)
    run = Run(tmp_path / "run")
    assert receipt(run, "image matters")["status"] == "failed"
    assert run.best is not None and run.best["value"] == 1.0  # it did learn: from the prompt


def test_image_matters_needs_an_interval_above_zero() -> None:
    generator = np.random.default_rng(0)
    true = generator.normal(1, 0.1, 64)
    assert receipts.image_matters(true, true + 0.5).status == "passed"
    assert receipts.image_matters(true, true + generator.normal(0, 1, 64)).status == "failed"
    assert receipts.image_matters(true, true + 0.005).status == "failed"  # certain, and next to nothing
    assert receipts.image_matters(true[:63], true[:63] + 1).status == "not applicable"


def test_exchanged_images_come_from_samples_with_other_answers(digits: Any) -> None:
    samples = [digits.sample("train", i) for i in range(100)]
    partners = receipts.partners(samples)
    assert sorted(p.id for p in partners) == sorted(s.id for s in samples)
    assert sum(p.text.answer != s.text.answer for p, s in zip(partners, samples, strict=True)) >= 95


def test_memory_is_held_to_ten_percent_on_cuda_and_not_claimed_elsewhere() -> None:
    assert receipts.memory("cuda", 1000, 1090, {}).status == "passed"
    assert receipts.memory("cuda", 1000, 1200, {}).status == "failed"
    assert receipts.memory("cpu", 1000, 5000, {}).status == "not applicable"
    assert receipts.memory("cuda", 0, 1000, {}).status == "not applicable", "the largest micro-batch did not fit"


def test_part_counts_are_saved_with_the_run(plan: Plan) -> None:
    run = train_run(plan("run", SHORT))
    parts = json.loads((run.path / "parts.json").read_text())
    assert [(p["part"], p["state"]) for p in parts] == list(run.recipe.parts.items())
    assert {p["part"] for p in parts if p["trainable"]} == {"projector", "language_model"}
