"""A run that was trained on another machine, computed on this one."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from visiontune.api import object_verbs
from visiontune.api.devices import computed_on
from visiontune.data.dataset import Dataset
from visiontune.machine import hardware
from visiontune.recipe import Recipe
from visiontune.run import Run
from visiontune.run_group import RunGroup
from visiontune.training.teacher import Teacher


def trained_on_cuda(recipe: Recipe) -> Recipe:
    machine = recipe.machine.model_copy(update={"device": "cuda", "precision": "fp16", "attention": "flash"})
    model = recipe.model.model_copy(update={"four_bit": ("fusion",)})
    return recipe.model_copy(update={"machine": machine, "model": model})


def test_off_cuda_a_run_computes_in_float32_with_whole_weights_and_torchs_attention(
    group: RunGroup,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = trained_on_cuda(group.runs["detector"].recipe)
    here, there = computed_on(recipe, "cpu"), computed_on(recipe, "cuda")
    assert (here.machine.device, here.machine.precision, here.machine.attention) == ("cpu", "fp32", "sdpa")
    assert here.model.four_bit == () and "four bits" in capsys.readouterr().err
    assert there == recipe and not capsys.readouterr().err


def test_a_teacher_that_was_trained_on_cuda_labels_images_on_a_machine_without_it(
    group: RunGroup,
    shapes: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(group.runs["detector"].path, tmp_path / "teacher")
    before = torch.get_num_threads()
    elsewhere = trained_on_cuda(Run(tmp_path / "teacher").recipe)
    monkeypatch.setattr(Run, "recipe", property(lambda _: elsewhere))
    made: list[Teacher] = []

    def found(teacher: Teacher, *_: Any, **__: Any) -> list[Dataset]:
        made.append(teacher)
        assert len(teacher.find([shapes.sample("train", 0)])) == 1
        return []

    monkeypatch.setattr("visiontune.training.distil.distil", found)
    object_verbs.distilled(tmp_path / "teacher", [shapes], [], tmp_path / "out", hardware("cpu"), None)
    (teacher,) = made
    assert teacher.detector.precision == "fp32" and teacher.detector.device.type == "cpu"
    assert torch.get_num_threads() == before
