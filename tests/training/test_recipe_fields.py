"""Every field of the recipe changes something: a flag that does nothing is a bug."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import visiontune
from tests.conftest import QUICK, planner
from tests.models import test_compiled, test_four_bit
from tests.training import (
    test_attention,
    test_document_recipes,
    test_document_runs,
    test_features,
    test_lightning_runs,
    test_object_runs,
    test_response_plans,
    test_response_runs,
    test_trackers,
)
from visiontune.data.dataset import Dataset
from visiontune.data.turns import question
from visiontune.errors import DataError, MachineError, ModelError, RecipeError
from visiontune.machine import hardware
from visiontune.recipe import Recipe, field_names
from visiontune.run import Run
from visiontune.training import loop, scoring
from visiontune.training.loop import train_run
from visiontune.training.model import load_base
from visiontune.training.plan import derive, plan_run

Plan = Callable[..., Run]

# Four steps of dropout-free LoRA on the tiny checkpoint; so few images that the evaluation at the end is short.
BASE: dict[str, Any] = {
    "data.limit": 12,
    "schedule.steps": 4,
    "evaluation.every": 4,
    "evaluation.samples": 4,
    "schedule.warmup": 0.25,
    "lora.dropout": 0.0,
    "features.cache": "never",
}

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
    "lora.layers": {"lora.layers": {"language_model": ["q_proj", "v_proj"]}},
    "lora.stabilised": {"lora.stabilised": True},
    "lora.decomposed": {"lora.decomposed": True},
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
}

# The same for the fields of a device, in runs for a device on coloured pictures that are no squares.
CHANGES_DEVICE_LOSSES: dict[str, dict[str, Any]] = {
    "device.image_size": {"device.image_size": 16},
    "device.fit": {"device.fit": "stretch"},
    "device.fill": {"device.fill": [200, 100, 50]},
    "device.resize": {"device.resize": "lanczos"},
    "device.colour_order": {"device.colour_order": "bgr"},
    "device.prompt": {"device.prompt": "{marker}{question}"},
}
ONE_VALUE = ("device.tile_layout", "device.sampler", "device.runtime")
TOLD_TO_THE_APP = {"device.prompt_form": "chat", "device.runtime_version": "2027.1"}


def losses(run: Run) -> list[float]:
    return [entry["loss"] for entry in run.metrics("step")]


@pytest.fixture(scope="module")
def base(digits: Dataset, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run that others differ from in a field."""
    return train_run(planner(digits, tiny_checkpoint, tmp_path_factory.mktemp("base"))("run", BASE))


@pytest.mark.parametrize("field", CHANGES_LOSSES)
def test_the_field_changes_the_losses(field: str, plan: Plan, base: Run) -> None:
    changes = CHANGES_LOSSES[field]
    model = changes.get("model.name")
    run = plan("changed", {**BASE, **changes}, model)
    try:
        train_run(run)
    except DataError as error:
        assert field == "data.max_tokens" and "images are never cut" in error.found
        return
    assert losses(run) != losses(base)


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """40 coloured pictures of 40x20 pixels, of two classes."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("colours")
    for number in range(40):
        place = folder / "photos" / ("warm", "cold")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 40, 3), dtype=np.uint8)).save(place / f"{number}.png")
    return visiontune.prepare(folder / "photos", folder / "prepared", workers=1)


@pytest.fixture
def plan_for_device(colours: Dataset, tiny_checkpoint: Path, tmp_path: Path) -> Plan:
    """Plan a short run for a device on the coloured pictures, dropout-free."""

    def make(name: str, overrides: dict[str, Any]) -> Run:
        recipe = derive([colours], [None], str(tiny_checkpoint), hardware("cpu"), profile="android-256")
        changes = {**QUICK, **BASE, "schedule.steps": 2, "device.image_size": 32}
        run = Run(tmp_path / name)
        plan_run(run, recipe.changed({**changes, **overrides}), [colours])
        return run

    return make


_DEVICE_LOSSES: list[list[float]] = []


@pytest.mark.parametrize("field", CHANGES_DEVICE_LOSSES)
def test_the_field_of_a_device_changes_the_losses(field: str, plan_for_device: Plan) -> None:
    if not _DEVICE_LOSSES:
        _DEVICE_LOSSES.append(losses(train_run(plan_for_device("base", {}))))
    assert losses(train_run(plan_for_device("changed", CHANGES_DEVICE_LOSSES[field]))) != _DEVICE_LOSSES[0]


def test_the_marker_is_what_the_app_writes_and_no_question_may_hold_it(plan_for_device: Plan) -> None:

    usual, other = plan_for_device("usual", {}), plan_for_device("other", {"device.marker": "<img>"})
    prompts = [run.recipe.device.prompt_for("Who?") for run in (usual, other) if run.recipe.device]
    assert prompts == ["<__media__>\nWho?\nAnswer:", "<img>\nWho?\nAnswer:"]
    encoders: list[Any] = [load_base(run, run.recipe, torch.device("cpu")).encoder for run in (usual, other)]
    ids = [encoder.tokenise(question("Who?", 1), "warm", ((1, 1),)) for encoder in encoders]
    assert ids[0] == ids[1], "the model never sees it"
    assert encoders[0].tokenise(question("<img>", 1), "warm", ((1, 1),))
    with pytest.raises(ModelError, match="picture's marker"):
        encoders[1].tokenise(question("<img>", 1), "warm", ((1, 1),))


@pytest.mark.parametrize("field", TOLD_TO_THE_APP)
def test_what_the_app_is_told_is_another_contract(field: str, plan_for_device: Plan) -> None:
    usual = plan_for_device("usual", {}).recipe.device
    other = plan_for_device("other", {field: TOLD_TO_THE_APP[field]}).recipe.device
    assert usual is not None and other is not None
    (difference,) = usual.differences(other)
    assert difference.startswith(f"{field.removeprefix('device.')}: ") and TOLD_TO_THE_APP[field] in difference


@pytest.mark.parametrize("field", ONE_VALUE)
def test_what_a_device_does_in_one_way_only_cannot_be_asked_for_otherwise(field: str, plan_for_device: Plan) -> None:
    with pytest.raises(RecipeError, match=field):
        plan_for_device("other", {field: "another"})


def test_picture_size_and_longest_answer_of_a_run_are_the_devices(plan_for_device: Plan) -> None:
    recipe = plan_for_device("small", {"device.image_size": 16, "device.max_new_tokens": 5}).recipe
    assert (recipe.data.image_longest_edge, recipe.evaluation.max_new_tokens) == (16, 5)
    assert plan_for_device("same", {"data.image_longest_edge": 32, "evaluation.max_new_tokens": 32}).recipe.device


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"data.image_longest_edge": 16}, "data.image_longest_edge is 16, but the device does 32"),
        ({"evaluation.max_new_tokens": 5}, "evaluation.max_new_tokens is 5, but the device does 32"),
        ({"device.max_new_tokens": 5, "evaluation.max_new_tokens": 6}, "max_new_tokens is 6, but the device does 5"),
        ({"data.image_splitting": True}, "data.image_splitting is True, but the device does False"),
    ],
)
def test_a_recipe_that_trains_what_its_device_does_not_do_is_refused(
    changes: dict[str, Any], fault: str, plan_for_device: Plan
) -> None:
    with pytest.raises(RecipeError, match=fault):
        plan_for_device("other", changes)


def test_a_devices_answers_are_no_longer_than_it_says(plan_for_device: Plan) -> None:
    free = {"evaluation.answers": "generated", "optimizer.learning_rate": 1e-9, "schedule.steps": 1}
    short = train_run(plan_for_device("short", {**free, "device.max_new_tokens": 1}))
    long = train_run(plan_for_device("long", {**free, "device.max_new_tokens": 12}))
    assert max(map(len, answers(short))) < max(map(len, answers(long)))


@pytest.mark.parametrize("field", [name for name in field_names() if name.startswith("device.")])
def test_a_field_of_a_device_without_a_device_is_refused_with_the_option_to_give(field: str, recipe_of: Recipe) -> None:
    with pytest.raises(RecipeError, match=f"'{field}' is set, but the recipe is for no device") as caught:
        recipe_of.changed({field: "anything"})
    assert "--for android-256" in (caught.value.fix or "")


def test_for_names_the_device_and_its_fields_may_be_changed(
    digits: Dataset, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    overrides = {**QUICK, **BASE, "schedule.steps": 2, "device.image_size": 32, "device.fill": [1, 2, 3]}
    options: dict[str, Any] = {"model": str(tiny_checkpoint), "overrides": overrides}
    run = visiontune.train(digits.path, out=tmp_path / "run", device_profile="android-256", **options)
    device = run.recipe.device
    assert device is not None and (device.profile, device.fill, device.image_size) == ("android-256", (1, 2, 3), 32)
    assert run.recipe.why["device.fill"] == "set by hand" and run.recipe.why["data.image_longest_edge"]
    with pytest.raises(RecipeError, match="no device profile 'toaster'"):
        visiontune.train(digits.path, out=tmp_path / "other", device_profile="toaster", **options)
    with pytest.raises(RecipeError, match="for no device"):
        visiontune.train(digits.path, out=tmp_path / "none", **options)


def answers(run: Run) -> list[str]:
    lines = (run.path / "evaluations" / "validation" / "predictions.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines]


@pytest.fixture(scope="module")
def generating(digits: Dataset, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that has hardly learned and answers at length what it likes."""
    free = {**BASE, "schedule.steps": 1, "optimizer.learning_rate": 1e-9, "evaluation.answers": "generated"}
    make = planner(digits, tiny_checkpoint, tmp_path_factory.mktemp("generating"))
    return train_run(make("run", {**free, "evaluation.max_new_tokens": 12}))


def test_scored_answers_are_labels_and_generated_ones_what_the_model_says(plan: Plan, generating: Run) -> None:
    untrained = {**BASE, "schedule.steps": 1, "optimizer.learning_rate": 1e-9}
    scored = train_run(plan("scored", {**untrained, "evaluation.answers": "scored"}))
    labels = {str(digit) for digit in range(10)}
    assert set(answers(scored)) <= labels and not set(answers(generating)) <= labels


def test_labels_are_scored_where_there_are_labels_and_nothing_else_can_be(recipe_of: Recipe, plan: Plan) -> None:
    from visiontune.training.evaluate import tree_to_score

    assert recipe_of.evaluation.answers == "scored"
    run = plan("scored")
    adapter = load_base(run, run.recipe, torch.device("cpu"))
    with pytest.raises(RecipeError, match="data have free text") as caught:
        tree_to_score(adapter, None, run.recipe)
    assert caught.value.fix == "--evaluation.answers generated"
    assert tree_to_score(adapter, None, run.recipe.changed({"evaluation.answers": "generated"})) is None


def test_a_label_longer_than_an_answer_may_be_is_refused_by_name(plan: Plan) -> None:
    from visiontune.training.evaluate import label_tree

    run = plan("short", {"evaluation.max_new_tokens": 3})
    with pytest.raises(DataError, match=r"takes \d+ tokens; 3 are allowed") as caught:
        label_tree(load_base(run, run.recipe, torch.device("cpu")), ["0", "a long label"], run.recipe)
    assert caught.value.where == "a long label" and caught.value.fix == "raise evaluation.max_new_tokens"


def test_the_wanted_accuracy_decides_where_to_abstain(plan: Plan) -> None:
    coverage = []
    for wanted in (0.01, 1.0):
        run = train_run(plan(str(wanted), {**BASE, "data.limit": 30, "evaluation.wanted_accuracy": wanted}))
        calibration = run.read_json("calibration.json")
        assert calibration is not None and calibration["wanted_accuracy"] == wanted
        coverage.append(calibration["coverage"])
    assert coverage[0] > coverage[1]


def test_every_field_of_the_recipe_is_shown_to_matter() -> None:
    by_name = {
        "model.revision": test_revision_is_handed_to_the_hub,
        "model.four_bit": test_four_bit.test_a_run_on_four_bits_learns_resumes_and_keeps_its_base,
        "machine.attention": test_attention.test_flash_attention_is_asked_of_the_model_or_refused,
        "model.allow_missing": test_lightning_runs.test_what_a_checkpoint_lacks_has_to_be_allowed_and_is_trained,
        "data.pages": test_document_runs.test_other_pages_than_those_of_the_dataset_are_refused,
        "data.datasets": test_datasets_and_weights_decide_what_is_drawn,
        "schedule.steps": test_steps_checkpoints_and_evaluations_come_when_asked,
        "checkpoints.every": test_steps_checkpoints_and_evaluations_come_when_asked,
        "checkpoints.keep": test_steps_checkpoints_and_evaluations_come_when_asked,
        "evaluation.every": test_steps_checkpoints_and_evaluations_come_when_asked,
        "evaluation.samples": test_steps_checkpoints_and_evaluations_come_when_asked,
        "evaluation.metric": test_metric_decides_the_best_checkpoint,
        "evaluation.patience": test_patience_stops_early,
        "evaluation.answers": test_scored_answers_are_labels_and_generated_ones_what_the_model_says,
        "evaluation.wanted_accuracy": test_the_wanted_accuracy_decides_where_to_abstain,
        "evaluation.max_new_tokens": test_answers_are_no_longer_than_asked,
        "batch.tokens": test_tokens_cut_micro_batches_and_leave_the_result,
        "batch.packing": test_packing_leaves_no_padding_and_the_result,
        "machine.device": test_an_absent_device_is_an_error_before_anything_is_loaded,
        "machine.workers": test_workers_and_threads_are_those_asked_for,
        "machine.threads": test_workers_and_threads_are_those_asked_for,
        "device.marker": test_the_marker_is_what_the_app_writes_and_no_question_may_hold_it,
        "device.max_new_tokens": test_a_devices_answers_are_no_longer_than_it_says,
    }
    by_name |= {
        "data.augmented_views": test_features.test_augmented_views_take_turns_with_and_without_features,
        "data.least_x_height": test_document_recipes.test_letters_too_low_for_the_model_are_refused_before_training,
        "features.cache": test_features.test_arithmetic_decides_whether_features_pay,
        "optimizer.average": test_object_runs.test_the_average_of_the_weights_is_what_is_evaluated_and_shipped,
        "objects.classes": test_object_runs.test_other_classes_than_the_data_have_are_refused,
        "objects.most": test_object_runs.test_so_many_objects_are_found_at_most,
        "objects.prompt_jitter": test_object_runs.test_the_boxes_that_a_segmenter_is_told_are_jittered_while_it_learns,
        "features.folder": test_features.test_runs_share_features_in_a_folder_and_a_runs_own_are_removed_at_its_end,
        "moe_dropout.experts": test_document_recipes.test_dropout_of_experts_and_gates_changes_the_losses,
        "moe_dropout.gates": test_document_recipes.test_dropout_of_experts_and_gates_changes_the_losses,
        "moe_dropout.keep_experts": test_document_recipes.test_dropout_of_experts_and_gates_changes_the_losses,
        "responses.rate": test_response_runs.test_a_core_is_not_given_what_it_was_not_made_for,
        "responses.behaviour": test_response_runs.test_a_core_is_not_given_what_it_was_not_made_for,
        "schedule.hours": test_response_plans.test_hours_become_a_recorded_number_of_steps,
        "machine.precision": test_bf16_changes_the_losses_and_keeps_trained_weights_in_float32,
        "machine.compile": test_compiled.test_compiled_layers_leave_the_losses_and_answer_uncompiled,
        "tracking.trackers": test_trackers.test_tensorboard_shows_each_step_once_with_the_numbers_of_the_metrics,
        "tracking.project": test_trackers.test_wandb_goes_on_in_one_run_of_the_project,
        "machine.recompute": test_recomputing_layers_keeps_less_and_leaves_the_losses,
    }
    tables = [*CHANGES_LOSSES, *CHANGES_DEVICE_LOSSES, *ONE_VALUE, *TOLD_TO_THE_APP]
    tables += [name for name in test_object_runs.CHANGES_LOSSES if name.startswith("objects.")]
    tables += test_response_runs.CHANGES_LOSSES
    assert sorted([*tables, *by_name]) == sorted(field_names())


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


def test_metric_decides_the_best_checkpoint(plan: Plan, base: Run) -> None:
    other = train_run(plan("other", {**BASE, "schedule.steps": 1, "evaluation.metric": "normalised_match"}))
    assert [(run.best or {})["metric"] for run in (base, other)] == ["accuracy", "normalised_match"]


def test_patience_stops_early(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    original = scoring.score_texts
    values = iter([0.5, 0.6, 0.6, 0.4, 0.9])

    def scored(predictions: Any, labels: Any) -> Any:
        from dataclasses import replace

        scores = original(predictions, labels)
        metric = replace(scores.metric("accuracy"), value=next(values))
        return replace(scores, metrics={**scores.metrics, "accuracy": metric})

    monkeypatch.setattr(scoring, "score_texts", scored)
    run = train_run(plan("patient", {"evaluation.every": 2, "evaluation.patience": 2}))
    assert [e["step"] for e in run.metrics("evaluation")] == [2, 4, 6, 8]
    assert len(run.metrics("step")) == 8 and run.status == "finished"
    assert run.best is not None and run.best["step"] == 6  # as good as step 4, and later


def test_answers_are_no_longer_than_asked(plan: Plan, generating: Run) -> None:
    free = {**BASE, "schedule.steps": 1, "optimizer.learning_rate": 1e-9, "evaluation.answers": "generated"}
    run = train_run(plan("short", {**free, "evaluation.max_new_tokens": 1}))
    assert max(map(len, answers(run))) < max(map(len, answers(generating)))


def test_tokens_cut_micro_batches_and_leave_the_result(plan: Plan, base: Run) -> None:
    cut = train_run(plan("cut", {**BASE, "batch.tokens": 100}))
    assert losses(cut) == pytest.approx(losses(base), abs=1e-5)


def test_packing_leaves_no_padding_and_the_result(plan: Plan, base: Run) -> None:
    for name, more in (("packed", {}), ("cut", {"batch.tokens": 100}), ("recomputed", {"machine.recompute": True})):
        packed = train_run(plan(name, {**BASE, "batch.packing": True, **more}))
        assert losses(packed) == pytest.approx(losses(base), abs=1e-5)
        assert load_base(packed, packed.recipe, torch.device("cpu")).encoder.packing  # type: ignore[attr-defined]
        assert {receipt["status"] for receipt in packed.receipts} <= {"passed", "not applicable"}


def test_recomputing_layers_keeps_less_and_leaves_the_losses(plan: Plan) -> None:
    kept = train_run(plan("kept", {**BASE, "lora.dropout": 0.5}))
    again = train_run(plan("again", {**BASE, "lora.dropout": 0.5, "machine.recompute": True}))
    predicted = [
        next(one for one in run.receipts if one["name"] == "memory")["numbers"]["predicted_bytes"]
        for run in (kept, again)
    ]
    assert predicted[1] < predicted[0]
    assert losses(again) == losses(kept)


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
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)  # two beside another test would wait for each other
    train_run(plan("two", {**BASE, "schedule.steps": 1, "machine.workers": 2, "machine.threads": 2}))
    assert 2 in asked and threads == [2]


def test_out_of_memory_cuts_finer_says_so_once_and_leaves_the_result(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from visiontune.models.smolvlm import SmolVLMAdapter

    whole = train_run(plan("whole", {**BASE, "batch.tokens": 4096}))
    original = SmolVLMAdapter.losses
    refused: list[int] = []

    def losses_of_three(self: Any, batch: Any) -> Any:
        if torch.is_grad_enabled() and len(batch.ids) > 3:
            refused.append(len(batch.ids))
            raise torch.OutOfMemoryError("planted")
        return original(self, batch)

    monkeypatch.setattr(SmolVLMAdapter, "losses", losses_of_three)
    capsys.readouterr()
    cut = train_run(plan("cut", {**BASE, "batch.tokens": 4096}))
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


def test_fp16_scales_the_loss_and_skips_a_step_that_overflows(plan: Plan, base: Run) -> None:
    run = train_run(plan("half", {**BASE, "machine.precision": "fp16"}))
    assert losses(run) == pytest.approx(losses(base), rel=0.05)
    scale = run.read_json(f"checkpoints/step-{run.checkpoint_steps()[-1]}/state.json")
    assert scale is not None and scale["loss_scale"]["scale"] > 0


def test_bf16_changes_the_losses_and_keeps_trained_weights_in_float32(plan: Plan, base: Run) -> None:
    from safetensors.torch import load_file

    run = train_run(plan("bf16", {**BASE, "machine.precision": "bf16"}))
    assert losses(run) != losses(base)
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
    assert run.recipe.why["lora.rank"] == "from mine.yaml" and run.recipe.why["schedule.kind"] == "set by hand"


def test_data_model_limit_and_weights_of_the_command_line_go_before_a_whole_recipe(
    digits: Dataset,
    three_digits: Dataset,
    tiny_checkpoint: Path,
    plan: Plan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(loop, "train_run", lambda run, callbacks: run)
    first = plan("first", {"lora.rank": 3, "data.limit": 12})
    whole: dict[str, Any] = {"recipe": first.recipe_path, "overrides": {"features.cache": "never"}}
    again = visiontune.train(digits.path, model=str(tiny_checkpoint), out=tmp_path / "again", **whole).recipe
    assert again.data == first.recipe.data and again.model == first.recipe.model
    assert "not taken over" not in capsys.readouterr().err
    options: dict[str, Any] = {"model": "tiny/smolvlm", "weights": [3], "limit": 20}
    other = visiontune.train(three_digits.path, out=tmp_path / "other", **options, **whole).recipe
    assert [(use.path, use.weight) for use in other.data.datasets] == [(str(three_digits.path.resolve()), 3)]
    assert (other.model.name, other.data.limit, other.lora.rank) == ("tiny/smolvlm", 20, 3)
    said = capsys.readouterr().err
    assert all(f"{name}, as" in said for name in ("data.datasets", "data.limit", "model.name")), said


def test_epochs_and_limit_decide_the_steps(digits: Dataset, tiny_checkpoint: Path) -> None:
    def steps(**options: Any) -> int:
        return derive([digits], [None], str(tiny_checkpoint), hardware("cpu"), **options).schedule.steps

    assert steps(epochs=4) == pytest.approx(2 * steps(epochs=2), abs=1)
    assert steps(limit=40) < steps()


def test_buffers_keep_float32_in_a_run_of_lower_precision(plan: Plan) -> None:

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


def test_labels_that_cannot_be_scored_are_refused_before_the_first_step(plan: Plan) -> None:
    run = plan("long labels", {"evaluation.max_new_tokens": 1})
    with pytest.raises(DataError, match="The label takes") as caught:
        train_run(run)
    assert "max_new_tokens" in (caught.value.fix or "") and run.metrics("step") == []
