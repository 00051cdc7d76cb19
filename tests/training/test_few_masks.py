"""Runs on data of which few objects have masks: steps and evaluations without one are no fault of the run."""

import json
import shutil
from pathlib import Path

import pytest

import visiontune
from tests.object_runs import train
from tests.training.test_object_runs import samples_of
from visiontune.data.dataset import Dataset
from visiontune.data.split import SPLITS
from visiontune.demo_shapes import draw_source

ONE_BY_ONE = {"batch.samples": 1, "schedule.steps": 4}


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Shapes with masks in the training images but the first that a run takes, and in no other."""
    folder = tmp_path_factory.mktemp("few")
    for seed, split in enumerate(("train", "valid", "test")):
        drawn = draw_source(folder / "drawn" / split, 8, seed=seed, masks=split == "train")
        shutil.copytree(drawn.parent / "images", folder / "source" / split)
        shutil.copyfile(drawn, folder / "source" / split / "_annotations.coco.json")
    whole = visiontune.prepare(folder / "source", folder / "whole")
    first = train(whole.path, folder / "run", **{**ONE_BY_ONE, "schedule.steps": 1}).receipts[0]["examples"][0]["id"]
    annotations = folder / "source" / "train" / "_annotations.coco.json"
    told = json.loads(annotations.read_text())
    number = next(image["id"] for image in told["images"] if image["file_name"] == Path(first).name)
    for annotation in told["annotations"]:
        if annotation["image_id"] == number:
            del annotation["segmentation"]
    annotations.write_text(json.dumps(told))
    return visiontune.prepare(folder / "source", folder / "few")


@pytest.mark.parametrize("model", ["tiny/rf-detr", "tiny/sam"])
def test_a_run_starts_goes_on_and_ends_though_hardly_an_image_has_masks(
    few: Dataset, model: str, tmp_path: Path
) -> None:
    masks = [
        {mask is not None for sample in samples_of(few, split) for mask in sample.target.masks} for split in SPLITS
    ]
    assert masks == [{True, False}, {False}, {False}]
    run = train(few.path, tmp_path / "run", model, **ONE_BY_ONE)
    assert run.status == "finished" and len(run.metrics("step")) == 4
    metric = "prompted_mask_ap" if model == "tiny/sam" else "mask_ap"
    assert [entry["metrics"][metric]["value"] for entry in run.metrics("evaluation")] == [None, None]
    scores = visiontune.evaluate(run.path)
    assert scores.metric(metric).value is None
