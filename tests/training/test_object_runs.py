"""Runs that find objects, through every verb, on drawn shapes and tiny models of the real classes."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import visiontune
from tests.object_runs import QUICK, train
from tests.paused import paused_at
from visiontune.data.dataset import Dataset
from visiontune.data.objects import Objects
from visiontune.demo_shapes import draw_source
from visiontune.errors import CertificateError, DataError, ModelError, PartlyReadError, RecipeError, RunError
from visiontune.machine import Hardware, hardware
from visiontune.models.objects import finds_objects, nothing
from visiontune.run import Run
from visiontune.run_group import RunGroup
from visiontune.training.loop import train_run
from visiontune.training.model import load_base, open_datasets
from visiontune.training.plan import plan_run
from visiontune.training.plan_objects import TINY, TINY_MULTIPLE, TINY_PATCH, derive_objects
from visiontune.training.teacher import Teacher


def weights(run: Run) -> dict[str, torch.Tensor]:
    folder = run.checkpoint_path(run.checkpoint_steps()[-1])
    return load_file(folder / "trained.safetensors") | {
        f"average {name}": tensor for name, tensor in load_file(folder / "average.safetensors").items()
    }


def test_annotations_alone_become_a_finished_run_with_receipts(detector_run: Run) -> None:
    assert detector_run.status == "finished"
    status = {receipt["name"]: receipt["status"] for receipt in detector_run.receipts}
    assert status["supervised"] == status["trained moved"] == status["seen"] == "passed"
    assert "failed" not in status.values()
    written = json.loads((detector_run.path / "evaluations/validation/metrics.json").read_text())
    assert {"box_ap", "box_ap50", "box_ar100", "mask_ap", "mask_ap_small"} <= set(written["metrics"])
    assert (detector_run.path / "report.html").is_file() and (detector_run.path / "measures.json").is_file()


def test_the_data_decide_whether_masks_are_learned(detector_run: Run, tmp_path: Path) -> None:
    assert detector_run.recipe.objects is not None and detector_run.recipe.objects.masks
    boxes = draw_source(tmp_path / "boxes", 20, masks=False)
    run = train(boxes, tmp_path / "run", **{"schedule.steps": 1, "checkpoints.every": 1})
    assert not run.recipe.objects.masks and run.recipe.evaluation.metric == "box_ap"


def test_a_run_that_was_paused_and_resumed_is_the_uninterrupted_run_bit_for_bit(
    shapes: Dataset, detector_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with paused_at(3, monkeypatch):
        train(shapes.path, tmp_path / "run")
    train_run(Run(tmp_path / "run"))
    again, whole = weights(Run(tmp_path / "run")), weights(detector_run)
    assert again.keys() == whole.keys() and all(torch.equal(again[name], whole[name]) for name in whole)


def test_a_finer_cut_into_micro_batches_gives_the_same_weights(
    shapes: Dataset, detector_run: Run, tmp_path: Path
) -> None:
    cut = weights(train(shapes.path, tmp_path / "run", **{"batch.tokens": 1}))
    for name, tensor in weights(detector_run).items():
        torch.testing.assert_close(cut[name], tensor, rtol=1e-3, atol=1e-5)


# Field -> its new value, where the losses of a short run must differ.
CHANGES_LOSSES: dict[str, Any] = {
    "objects.masks": False,
    "objects.mirror": "none",
    "objects.queries": 12,
    "objects.denoise": 0.4,
    "data.augment": 0.5,
}


def losses(run: Run) -> list[float]:
    return [entry["loss"] for entry in run.metrics("step")]


@pytest.mark.parametrize("field", CHANGES_LOSSES)
def test_a_field_changes_what_is_learned(shapes: Dataset, detector_run: Run, tmp_path: Path, field: str) -> None:
    changed = train(shapes.path, tmp_path / "run", **{"schedule.steps": 1, field: CHANGES_LOSSES[field]})
    assert losses(changed) != losses(detector_run)[:1]


def test_the_average_of_the_weights_is_what_is_evaluated_and_shipped(detector_run: Run) -> None:
    from visiontune.training.model import load_trained

    step = detector_run.checkpoint_steps()[-1]
    folder = detector_run.checkpoint_path(step)
    own, average = load_file(folder / "trained.safetensors"), load_file(folder / "average.safetensors")
    adapter, _ = load_trained(detector_run, detector_run.recipe, torch.device("cpu"), step)
    loaded = dict(adapter.trained_module.named_parameters())
    assert all(torch.equal(loaded[name], tensor) for name, tensor in average.items())
    assert any(not torch.equal(own[name], tensor) for name, tensor in average.items())


def test_so_many_objects_are_found_at_most(detector_run: Run, shapes: Dataset) -> None:
    from visiontune.models.objects import finds_objects
    from visiontune.training.model import load_trained

    recipe = detector_run.recipe
    assert recipe.objects is not None
    few = recipe.model_copy(update={"objects": recipe.objects.model_copy(update={"most": 3})})
    for wanted, one in ((recipe.objects.most, recipe), (3, few)):
        adapter = finds_objects(load_trained(detector_run, one, torch.device("cpu"))[0])
        batch = adapter.encoder.collate([adapter.encoder.encode(shapes.sample("test", 0))])
        with torch.no_grad():
            assert len(adapter.find(batch)[0]) == min(wanted, 16 * 2)


def test_other_classes_than_the_data_have_are_refused(shapes: Dataset, tmp_path: Path) -> None:
    for asked, said in (
        (["cat", *shapes.listed[:-1]], f"the data do not have: cat; the data have too: {shapes.listed[-1]}"),
        ([*shapes.listed, shapes.listed[0]], f"stand there twice: {shapes.listed[0]}"),
    ):
        with pytest.raises(RecipeError, match=said):
            train(shapes.path, tmp_path / "run", **{"objects.classes": asked})


def test_numbers_of_classes_follow_the_order_that_a_recipe_names_them_in(shapes: Dataset, tmp_path: Path) -> None:
    turned = shapes.listed[::-1]
    recipe = derive_objects([shapes], [None], "tiny/rf-detr", hardware("cpu"))[0]
    recipe = recipe.changed({**QUICK, "objects.classes": list(turned)})
    plan_run(run := Run(tmp_path / "run"), recipe, [shapes])
    (dataset,) = open_datasets(run.recipe)
    assert finds_objects(load_base(run, run.recipe, torch.device("cpu"))).encoder.classes == dataset.classes == turned
    ours, own = dataset.index("train").target(0), shapes.index("train").target(0)
    assert isinstance(ours, Objects) and isinstance(own, Objects)
    assert [turned[c] for c in ours.classes] == [shapes.listed[c] for c in own.classes]


def test_the_boxes_that_a_segmenter_is_told_are_jittered_while_it_learns(group: RunGroup, shapes: Dataset) -> None:
    from visiontune.models.objects import finds_objects
    from visiontune.training.model import load_base

    run = group.runs["segmenter"]
    encoder = finds_objects(load_base(run, run.recipe, torch.device("cpu"))).encoder
    encoder.data = encoder.data.model_copy(update={"augment": 0.0})
    encoder.choices = encoder.choices.model_copy(update={"mirror": "none"})
    sample = shapes.sample("train", 0)
    exact, first, second = (encoder.encode(sample, augmentation=number).boxes for number in (None, 1, 2))
    assert not torch.equal(exact, first) and not torch.equal(first, second)
    encoder.choices = encoder.choices.model_copy(update={"prompt_jitter": 0.0})
    assert torch.allclose(encoder.encode(sample, augmentation=1).boxes, exact, atol=1e-6)


def test_fields_of_texts_are_refused(shapes: Dataset, tmp_path: Path) -> None:
    for field, value in (("data.prompt", "What?"), ("evaluation.max_new_tokens", 4), ("evaluation.metric", "accuracy")):
        with pytest.raises(RecipeError, match=field.split(".")[1]):
            train(shapes.path, tmp_path / field, **{field: value})


def test_a_model_for_texts_is_refused_before_anything_is_trained(shapes: Dataset, tmp_path: Path) -> None:
    with pytest.raises((ModelError, DataError, RecipeError), match="text"):
        train(shapes.path, tmp_path / "run", model="tiny/smolvlm")


def test_found_objects_are_listed_and_drawn(detector_run: Run, source: Path, tmp_path: Path) -> None:
    picture = source.parent / "images" / "0000.png"
    (found,) = visiontune.predict(detector_run.path, [picture], pictures=tmp_path / "drawn", least_score=0.0)
    value = json.loads(json.dumps(found.to_json()))
    assert value["kind"] == "objects" and value["size"] == [96, 96] and value["objects"]
    assert {"category", "bbox", "score", "segmentation"} <= set(value["objects"][0])
    assert (tmp_path / "drawn" / "0000.png").is_file()
    with pytest.raises(RecipeError, match="knows the classes"):
        visiontune.predict(detector_run.path, [picture], classes=["dog"])
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(PartlyReadError, match=r"1 of 2 files(.|\n)*broken\.png") as caught:
        visiontune.predict(detector_run.path, [tmp_path / "broken.png", picture], pictures=tmp_path / "again")
    assert [answer.id for answer in caught.value.answers] == [str(picture)]


def test_a_run_is_what_its_folder_says(detector_run: Run, tmp_path: Path) -> None:
    assert {check.name: check.status for check in visiontune.verify(detector_run.path)}["answers"] == "passed"


def test_a_run_that_answered_few_samples_is_verified_by_those(detector_run: Run, tmp_path: Path) -> None:
    copy = Run(tmp_path / "copy")
    shutil.copytree(detector_run.path, copy.path)
    visiontune.evaluate(copy.path, split="validation", limit=2)
    assert "2 images again" in {check.name: check.found for check in visiontune.verify(copy.path)}["answers"]


def test_merged_weights_loaded_by_plain_transformers_find_the_same_objects(detector_run: Run, tmp_path: Path) -> None:
    folder = visiontune.export(detector_run.path, to="merged", out=tmp_path / "merged")["merged"]
    certificate = json.loads((folder / "certificate.json").read_text())
    (check,) = certificate["checks"]
    assert certificate["verdict"] == check["status"] == "passed" and check["numbers"]["objects"] > 0


def test_merged_weights_that_find_other_objects_are_kept_aside(
    detector_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from visiontune.exports import weights as exported

    save = exported._save_merged

    def changed(adapter: Any, folder: Path, dtype: str) -> None:
        with torch.no_grad():
            for parameter in adapter.network.parameters():
                parameter.mul_(0.5)
        save(adapter, folder, dtype)

    monkeypatch.setattr(exported, "_save_merged", changed)
    with pytest.raises(CertificateError, match="objects"):
        visiontune.export(detector_run.path, to="merged", out=tmp_path / "merged")
    assert not (tmp_path / "merged").exists() and (tmp_path / "merged.failed").is_dir()


def test_two_models_make_two_whole_runs_under_one_plan(group: RunGroup) -> None:
    assert {role: run.status for role, run in group.runs.items()} == {"detector": "finished", "segmenter": "finished"}
    assert group.runs["detector"].recipe.model.name == "tiny/mm-grounding-dino"
    assert group.runs["segmenter"].recipe.evaluation.metric == "prompted_mask_ap"


def test_the_pipeline_and_given_boxes_are_named_apart(group: RunGroup) -> None:
    scores: Any = visiontune.evaluate(group.path, split="test")
    assert scores.prompts == "detector boxes" and "mask_ap" in scores.metrics
    alone = json.loads((group.runs["segmenter"].path / "evaluations/test/metrics.json").read_text())
    assert alone["prompts"] == "ground-truth boxes" and "prompted_mask_ap" in alone["metrics"]
    assert json.loads((group.path / "evaluations/test/metrics.json").read_text())["prompts"] == "detector boxes"


def test_a_detector_that_is_asked_by_names_finds_other_classes(group: RunGroup, source: Path, tmp_path: Path) -> None:
    picture = source.parent / "images" / "0000.png"
    (found,) = visiontune.predict(group.path, [picture], classes=["car", "bicycle"], pictures=tmp_path, least_score=0)
    assert found.classes == ("car", "bicycle") and len(found.target)
    assert all(mask is not None for mask in found.target.masks)


def test_a_student_learns_from_people_and_from_what_a_teacher_finds(
    group: RunGroup, shapes: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = draw_source(tmp_path / "more", 6, seed=9).parent / "images"
    options: dict[str, Any] = {"model": "tiny/rf-detr", "teacher": group.path, "unlabelled": [more]}
    options["overrides"] = {**QUICK, "schedule.steps": 2, "checkpoints.every": 1}
    with pytest.raises(DataError, match="nothing to learn from this teacher"):  # it has hardly been trained
        visiontune.train(shapes.path, out=tmp_path / "untaught", **options)
    truths = {sample.id: sample.target for split in ("train", "validation") for sample in samples_of(shapes, split)}

    def find(self: Teacher, samples: Any) -> list[Objects]:
        return [sure(truths[sample.id]) if sample.id in truths else nothing(2) for sample in samples]

    monkeypatch.setattr(Teacher, "find", find)
    student = visiontune.train(shapes.path, out=tmp_path / "student", **options)
    assert isinstance(student, Run) and student.status == "finished"
    assert [Path(use.path).name for use in student.recipe.data.datasets] == ["labelled-1", "unlabelled"]
    record = json.loads((student.path / "distilled" / "distillation.json").read_text())
    assert {name: one["threshold"] for name, one in record["thresholds"].items()} == {"disc": 0.9, "square": 0.9}


def samples_of(dataset: Dataset, split: str) -> list[Any]:
    return [dataset.sample(split, i) for i in range(dataset.count(split))]


def sure(objects: Objects) -> Objects:
    """What people drew, as a teacher finds it."""
    return replace(objects, scores=np.full(len(objects), 0.9), soft=0.9 * np.eye(2)[objects.classes])


def test_features_of_a_frozen_segmenter_are_kept_and_change_no_loss(shapes: Dataset, tmp_path: Path) -> None:
    frozen = {f"parts.{name}": "frozen" for name in ("vision_encoder", "vision_encoder_late", "prompt_encoder")}
    plain = {**frozen, "objects.mirror": "none", "data.augment": 0.0, "data.image_longest_edge": 64}
    read, drawn = (
        train(shapes.path, tmp_path / cache, "tiny/sam", **plain, **{"features.cache": cache, "schedule.steps": 3})
        for cache in ("always", "never")
    )
    assert losses(read) == losses(drawn) and read.read_json("features.json")["kept"]
    with pytest.raises(RecipeError, match="mirrored or augmented"):
        train(
            shapes.path,
            tmp_path / "mirrored",
            "tiny/sam",
            **{**plain, "objects.mirror": "all"},
            **{"features.cache": "always"},
        )
    with pytest.raises(RecipeError, match="not kept for models of the family"):
        train(shapes.path, tmp_path / "whole", **{"features.cache": "always", "objects.masks": False})


def test_a_picture_that_is_exchanged_is_seen_whole(group: RunGroup, tmp_path: Path) -> None:
    from visiontune.models.objects import finds_objects
    from visiontune.training.model import load_base

    run = group.runs["detector"]
    adapter = finds_objects(load_base(run, run.recipe, torch.device("cpu")))
    wide, high = (
        visiontune.prepare(draw_source(tmp_path / f"{w}", 12, size=(w, h)), tmp_path / f"data-{w}").sample("train", 0)
        for w, h in ((128, 80), (80, 128))
    )
    encoded = adapter.encoder.exchanged(wide, high)
    assert encoded.pixel_values is not None and encoded.picture == tuple(encoded.pixel_values.shape[1:])
    assert torch.equal(encoded.boxes, adapter.encoder.encode(wide).boxes)


def test_what_a_detector_knew_before_is_asked_with_and_without_its_adapter(
    group: RunGroup, shapes: Dataset, tmp_path: Path
) -> None:
    merged = visiontune.export(group.runs["detector"].path, to="merged", out=tmp_path / "merged")["merged"]
    quick = {name: value for name, value in QUICK.items() if name != "data.image_longest_edge"} | {"schedule.steps": 1}
    tuned: Any = visiontune.train(shapes.path, model=str(merged), out=tmp_path / "tuned", overrides=quick)
    assert tuned.recipe.data.image_longest_edge == group.runs["detector"].recipe.data.image_longest_edge
    assert {part for part, state in tuned.recipe.parts.items() if state == "lora"} == {"fusion", "decoder"}
    assert set(tuned.recipe.parts.values()) == {"frozen", "lora"}, "heads that learn in full forget other classes"
    other = visiontune.prepare(draw_source(tmp_path / "other", 20, classes=("cross", "bar")), tmp_path / "known")
    visiontune.evaluate(tuned.path, split="test", known=other.path)
    named = f"evaluations/known-known-test-{other.info.content_hash[:8]}.json"
    written = json.loads((tuned.path / named).read_text())
    assert written["n"] == other.count("test")
    assert {"box_ap", "box_ap50", "box_ap.cross", "box_ap.bar"} == set(written["metrics"])
    # Neither another split nor other data whose folder has the same name take its place.
    twin = visiontune.prepare(draw_source(tmp_path / "more", 20, seed=5, classes=("bar",)), tmp_path / "twin/known")
    visiontune.evaluate(tuned.path, split="validation", known=other.path)
    visiontune.evaluate(tuned.path, split="test", known=twin.path)
    assert len(list((tuned.path / "evaluations").glob("known-known-*.json"))) == 3
    assert json.loads((tuned.path / named).read_text()) == written
    again = visiontune.evaluate(group.path, split="test")
    assert again.n == shapes.count("test")
    with pytest.raises(ModelError, match="adapter to switch off"):
        visiontune.evaluate(group.runs["detector"].path, known=other.path)


def test_a_folder_that_holds_a_group_is_not_trained_into_again(group: RunGroup, shapes: Dataset) -> None:
    with pytest.raises(RunError, match="holds a run already"):
        train(shapes.path, group.path)


def test_options_that_would_do_nothing_are_refused(detector_run: Run, source: Path) -> None:
    picture = source.parent / "images" / "0000.png"
    with pytest.raises(RecipeError, match="no --prompt"):
        visiontune.predict(detector_run.path, [picture], prompt="What?")
    with pytest.raises(RecipeError, match="of texts"):
        visiontune.evaluate(detector_run.path, ratios=[5])


def test_all_datasets_of_a_run_are_measured(shapes: Dataset, tmp_path: Path) -> None:
    more = visiontune.prepare(draw_source(tmp_path / "more", 20, seed=3), tmp_path / "data").path
    run = visiontune.train(
        shapes.path, more, model="tiny/rf-detr", out=tmp_path / "run", overrides={**QUICK, "schedule.steps": 1}
    )
    measured = json.loads((run.path / "measures.json").read_text())
    assert measured["images"] == shapes.count("train") + Dataset.open(more).count("train")


def test_segmenters_need_masks(tmp_path: Path) -> None:
    boxes = draw_source(tmp_path / "boxes", 12, masks=False)
    with pytest.raises(DataError, match="no masks"):
        train(boxes, tmp_path / "run", model="tiny/sam")
    with pytest.raises(ModelError, match="both a detector"):
        train(boxes, tmp_path / "other", model="tiny/rf-detr,tiny/mm-grounding-dino")


def test_a_small_detector_learns_faster_where_steps_hold_more_objects() -> None:
    """Measured in 1,500 steps with 54 objects each: 3e-4 learns next to nothing. With 8, 1e-3 does so for long."""
    rates = [TINY["rf_detr"].rate(objects)[0] for objects in (1, 8, 50, 1000)]
    assert rates == [3e-4, 3e-4, 1e-3, 1e-3]
    assert TINY["sam"].rate(1000)[0] == TINY["sam"].rate(1)[0]


def test_queries_stand_at_objects_where_there_are_many() -> None:
    """Measured at a fixed number of steps: 14 objects an image are learned sooner with them, two are not."""
    usual = TINY["rf_detr"]
    assert [usual.queries_at_objects(objects)[0] for objects in (0, 2, 14, 300)] == [0.0, 0.0, 0.4, 0.4]
    assert TINY["sam"].queries_at_objects(14)[0] == 0.0


def test_masks_are_learned_in_small_steps_where_images_hold_many_objects() -> None:
    usual = TINY["rf_detr"]
    assert [usual.samples_of_masks(4, objects)[0] for objects in (0, 3, 12, 25, 300)] == [4, 4, 2, 1, 1]
    assert TINY["sam"].samples_of_masks(4, 25)[0] == 4


def test_masks_are_learned_from_images_no_larger_than_a_small_model_can_pay_for(
    shapes: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TINY, "rf_detr", replace(TINY["rf_detr"], small_object=60.0))
    machine = Hardware("cpu", "cpu", 8 * 2**30, 2, bf16=False)
    sides = {}
    for masks in (True, False):
        recipe, _ = derive_objects([shapes], [None], "tiny/rf-detr", machine, asked={"objects.masks": masks})
        sides[masks] = recipe.data.image_longest_edge
    assert sides[True] == 256 < sides[False]


def test_random_rf_detrs_see_small_objects_in_fewer_patches_than_other_models(shapes: Dataset) -> None:
    machine = Hardware("cpu", "cpu", 8 * 2**30, 2, bf16=False)
    for model, patches in (("tiny/rf-detr", 1.5), ("tiny/mm-grounding-dino", 2.0)):
        recipe, measures = derive_objects([shapes], [None], model, machine, asked={"objects.masks": False})
        wanted = patches * TINY_PATCH / measures.sizes["10%"]
        assert recipe.data.image_longest_edge == max(128, math.ceil(wanted / TINY_MULTIPLE) * TINY_MULTIPLE)
