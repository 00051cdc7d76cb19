"""The same checks on published checkpoints, for whoever has a connection: `make test-hub`."""

import re
from pathlib import Path
from typing import Any

import pytest

import visiontune
from tests.conftest import QUICK
from visiontune.data.dataset import Dataset
from visiontune.models.load import load_adapter
from visiontune.recipe import Recipe

pytestmark = pytest.mark.hub

CHECKPOINTS = ("HuggingFaceTB/SmolVLM-256M-Instruct", "HuggingFaceTB/SmolVLM2-256M-Video-Instruct")


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_learned_span_and_the_loss_are_those_of_plain_transformers(
    name: str, digits: Dataset, recipe_of: Recipe
) -> None:
    data = recipe_of.data.model_copy(update={"image_longest_edge": 512})
    adapter: Any = load_adapter(name, None, data)
    encoded = adapter.encoder.encode(digits.sample("train", 0))
    learned = adapter.encoder.tokenizer.decode(encoded.input_ids[encoded.supervised])
    assert learned == f" {digits.index('train').answers[0]}<end_of_utterance>"
    batch = adapter.encoder.collate([encoded])
    assert batch.image_tokens == batch.image_features == 64
    ours = adapter.losses(batch)["text"].sum() / batch.weights["text"]
    labels = batch.tensors["input_ids"].masked_fill(~batch.tensors["supervised"], -100)
    inputs = {key: tensor for key, tensor in batch.tensors.items() if key != "supervised"}
    assert ours.item() == pytest.approx(adapter.network(**inputs, labels=labels).loss.item(), abs=1e-4)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_published_checkpoint_is_tuned_and_exported(name: str, digits: Dataset, tmp_path: Path) -> None:
    overrides = {**QUICK, "schedule.steps": 3, "evaluation.every": 3, "optimizer.learning_rate": 1e-4}
    run = visiontune.train(digits.path, model=name, out=tmp_path / "run", overrides=overrides)
    assert run.status == "finished"
    folders = visiontune.export(run.path, to="adapter,merged", out=tmp_path / "ship")
    assert (folders["adapter"] / "adapter_model.safetensors").is_file()
    assert (folders["merged"] / "chat_template.jinja").is_file()


def test_a_published_dataset_is_prepared_with_its_classes_and_splits(tmp_path: Path) -> None:
    dataset = visiontune.prepare("hub:ylecun/mnist", tmp_path / "digits", limit=20)
    assert dataset.info.labels is not None and set(dataset.info.labels) <= set("0123456789")
    assert dataset.info.splits["test"] and dataset.info.images is not None and dataset.info.images.width.max == 28
    (place,) = dataset.info.provenance.hub
    assert re.fullmatch(r"hub:ylecun/mnist@[0-9a-f]{40}", place)


def test_questions_about_published_charts_are_read(tmp_path: Path) -> None:
    dataset = visiontune.prepare("hub:HuggingFaceM4/ChartQA", tmp_path / "charts", limit=20)
    assert len(dataset) and dataset.info.labels is None and not dataset.info.left_out
