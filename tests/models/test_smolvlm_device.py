"""Training for a device: the tokens and pixels are llama.cpp's, laid out as it does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import QUICK, png
from visiontune.contract import DeviceContract, contract_for
from visiontune.data.dataset import Dataset
from visiontune.data.images import decode
from visiontune.data.sample import ImageFile, Images, Sample, Text
from visiontune.errors import DataError, ModelError
from visiontune.machine import hardware
from visiontune.models.load import chat_prompt, load_adapter
from visiontune.models.smolvlm import build_tiny
from visiontune.recipe import Recipe
from visiontune.run import Run
from visiontune.training.loop import train_run
from visiontune.training.plan import derive, plan_run

PROMPT = "Which digit is this?"
END = "<end_of_utterance>"


def sample(answer: str = "3", images: int = 1, prompt: str = PROMPT) -> Sample:
    rng = np.random.default_rng(5)
    files = tuple(ImageFile(png(rng.uniform(0, 16, (12, 20))), f"{i}.png") for i in range(images))
    return Sample("s", Images(files), Text(answer, prompt))


def contract(profile: str = "android-256", **fields: Any) -> DeviceContract:
    made = contract_for(profile, image_size=32, chat_prompt=chat_prompt("tiny/smolvlm"))
    return DeviceContract.model_validate({**made.model_dump(), "image_size": 32, **fields})


@pytest.fixture
def adapter(tiny_checkpoint: Path, recipe_of: Recipe) -> Any:
    return load_adapter(str(tiny_checkpoint), None, recipe_of.data, contract(fill=(9, 8, 7)))


def test_the_tokens_are_those_of_llama_cpp_with_two_tiles(adapter: Any) -> None:
    encoded = adapter.encoder.encode(sample())
    tokens = adapter.encoder.tokenizer.convert_ids_to_tokens(encoded.input_ids.tolist())
    tile = ["<image>"] * 4
    picture = ["<fake_token_around_image>", "<row_1_col_1>", *tile, "ĊĊ", "<fake_token_around_image>", "<global-img>"]
    picture += [*tile, "<fake_token_around_image>"]
    assert tokens[: len(picture)] == picture
    assert adapter.encoder.tokenizer.decode(encoded.input_ids[len(picture) :]) == f"\n{PROMPT}\nAnswer: 3{END}"
    assert encoded.image_features == 8


def test_the_learned_span_is_the_answer_and_its_end_token_and_a_labels_tokens(adapter: Any) -> None:
    for answer in ("3", "red cart"):
        encoded = adapter.encoder.encode(sample(answer))
        learned = encoded.input_ids[encoded.supervised]
        assert adapter.encoder.tokenizer.decode(learned) == f" {answer}{END}"
        assert tuple(learned.tolist()) == adapter.encoder.label_tokens(answer)
        assert learned[-1] == adapter.encoder.end_token_id
        assert adapter.encoder.answers_of(encoded) == [answer]


def test_the_model_is_asked_with_the_very_tokens_that_it_was_trained_behind(adapter: Any) -> None:
    trained, asked = adapter.encoder.encode(sample()), adapter.encoder.encode(sample(), with_answer=False)
    assert torch.equal(trained.input_ids[~trained.supervised], asked.input_ids)


def test_both_tiles_are_the_contracts_picture_normalised(adapter: Any) -> None:
    one = sample()
    encoded = adapter.encoder.encode(one)
    processor = adapter.encoder.processor.image_processor
    picture = np.asarray(adapter.encoder.contract.picture(decode(one.seen.files[0].data)), np.float32) / 255
    wanted = ((picture - np.float32(processor.image_mean)) / np.float32(processor.image_std)).transpose(2, 0, 1)
    assert encoded.pixel_values.shape == (2, 3, 32, 32)
    for tile in encoded.pixel_values:
        assert np.array_equal(tile.numpy(), wanted)
    assert encoded.pixel_values[0, :, 0, 0].numpy() == pytest.approx(
        (np.array([9, 8, 7]) / 255 - processor.image_mean) / processor.image_std, abs=1e-6
    )
    assert encoded.images["pixel_attention_mask"].all()


@pytest.mark.parametrize(
    "change",
    [{"fill": (0, 0, 0)}, {"fit": "stretch"}, {"colour_order": "bgr"}, {"resize": "lanczos"}],
    ids=lambda change: next(iter(change)),
)
def test_what_the_device_does_to_pictures_reaches_the_model(
    adapter: Any, tiny_checkpoint: Path, recipe_of: Recipe, change: dict[str, Any]
) -> None:
    # A picture in colour: bgr would do nothing to a grey one.
    colours = np.random.default_rng(0).integers(0, 255, (20, 40, 3), dtype=np.uint8)
    other = load_adapter(str(tiny_checkpoint), None, recipe_of.data, contract(**{"fill": (9, 8, 7), **change}))
    seen = [one.encoder.see([Image.fromarray(colours)])[0]["pixel_values"] for one in (adapter, other)]  # pyright: ignore
    assert not torch.equal(*seen)


def test_a_model_of_larger_tiles_runs_natively_at_the_devices_size(tmp_path: Path, recipe_of: Recipe) -> None:
    build_tiny(tmp_path, [PROMPT, "0123456789"], 1, image_size=64, width=64, layers=2, patches_per_side=8)
    adapter: Any = load_adapter(str(tmp_path), None, recipe_of.data, contract())
    encoded = [adapter.encoder.encode(sample("3")), adapter.encoder.encode(sample("7"))]
    batch = adapter.encoder.collate(encoded)
    assert (batch.tensors["input_ids"] == adapter.encoder.image_token_id).sum(dim=1).tolist() == [8, 8]
    tiles = batch.tensors["pixel_values"]
    assert tiles.shape == (2, 2, 3, 32, 32)
    features = adapter.network.model.get_image_features(tiles, batch.tensors["pixel_attention_mask"]).pooler_output
    assert sum(len(tile.reshape(-1, 64)) for tile in features) == 16, "four tiles of four features each"
    assert batch.image_tokens == batch.image_features == 16
    embeddings = adapter.network.model.vision_model.embeddings
    patches = embeddings.patch_embedding(tiles[0, :1]).flatten(2).transpose(1, 2)
    places = embeddings(tiles[0, :1], torch.ones(1, 4, 4, dtype=torch.bool)) - patches
    every_second = embeddings.position_embedding.weight.reshape(8, 8, -1)[::2, ::2].reshape(16, -1)
    assert torch.allclose(places[0], every_second, atol=1e-6)
    assert torch.isfinite(adapter.losses(batch)["text"]).all()  # the network itself refuses counts that differ


@pytest.mark.parametrize("size", [8, 24, 40, 64])
def test_a_size_that_the_model_cannot_take_is_refused_with_those_it_can(
    size: int, tiny_checkpoint: Path, recipe_of: Recipe
) -> None:
    with pytest.raises(ModelError, match=f"pictures of {size}x{size} pixels") as caught:
        load_adapter(str(tiny_checkpoint), None, recipe_of.data, contract(image_size=size))
    assert caught.value.where == "device.image_size" and caught.value.fix == "sizes: 16, 32"


@pytest.mark.parametrize("images", [0, 2])
def test_a_sample_without_exactly_one_picture_is_refused(adapter: Any, images: int) -> None:
    with pytest.raises(DataError, match=f"one picture at a time; a sample has {images}") as caught:
        adapter.encoder.encode(sample(images=images))
    assert "--for" in (caught.value.fix or "")


def test_placeholders_and_markers_inside_the_text_are_refused(adapter: Any) -> None:
    with pytest.raises(DataError, match="question holds an image placeholder"):
        adapter.encoder.encode(sample(prompt="what is <image> this?"))
    with pytest.raises(DataError, match="answer holds an image placeholder"):
        adapter.encoder.encode(sample("<image>"))
    with pytest.raises(ModelError, match="picture's marker"):
        adapter.encoder.encode(sample(prompt="what is <__media__> this?"))


def test_the_length_known_before_decoding_is_the_length(adapter: Any, digits: Dataset) -> None:
    index = digits.index("validation")
    real = [len(adapter.encoder.encode(digits.sample("validation", i)).input_ids) for i in range(5)]
    assert adapter.encoder.lengths(index)[:5].tolist() == real


def test_the_chat_prompt_is_what_the_models_own_template_makes(tiny_checkpoint: Path, recipe_of: Recipe) -> None:
    encoder: Any = load_adapter(str(tiny_checkpoint), None, recipe_of.data, contract("desktop-llama")).encoder
    content = [{"type": "image"}, {"type": "text", "text": PROMPT}]
    messages = [{"role": "user", "content": content}]
    own = encoder.processor.apply_chat_template(messages, add_generation_prompt=True)
    assert own == f"<|im_start|>User:<image>{PROMPT}{END}\nAssistant:"
    for prompt in (chat_prompt("tiny/smolvlm"), chat_prompt(str(tiny_checkpoint))):
        made = contract("desktop-llama", prompt=prompt)
        assert made.prompt_for(PROMPT).replace(made.marker, "<image>") == own
    encoded = encoder.encode(sample())
    text = encoder.tokenizer.decode(encoded.input_ids).replace("<image>", "")
    picture = "<fake_token_around_image><row_1_col_1>\n\n<fake_token_around_image><global-img><fake_token_around_image>"
    assert text == f"<|im_start|>User:{picture}{PROMPT}{END}\nAssistant: 3{END}"


def test_a_chat_prompt_that_is_not_the_models_own_is_drift_and_refused(
    tiny_checkpoint: Path, recipe_of: Recipe
) -> None:
    drifted = contract("desktop-llama", prompt="User:{marker}{question}\nAssistant:")
    with pytest.raises(ModelError, match="not what the chat template of the model makes") as caught:
        load_adapter(str(tiny_checkpoint), None, recipe_of.data, drifted)
    assert "<|im_start|>User:{marker}{question}" in (caught.value.fix or "")
    load_adapter(str(tiny_checkpoint), None, recipe_of.data, drifted.model_copy(update={"prompt_form": "raw"}))


@pytest.mark.parametrize("profile", ["android-256", "desktop-llama"])
def test_a_run_for_a_device_trains_and_its_receipts_hold(
    profile: str, digits: Dataset, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    recipe = derive([digits], [None], str(tiny_checkpoint), hardware("cpu"), profile=profile)
    run = Run(tmp_path / "run")
    changes = {**QUICK, "schedule.steps": 2, "evaluation.samples": 4, "device.image_size": 32}
    plan_run(run, recipe.changed(changes), [digits])
    train_run(run)
    receipts = {receipt["name"]: receipt for receipt in run.receipts}
    assert receipts["placeholders"]["status"] == receipts["supervised"]["status"] == "passed"
    assert receipts["placeholders"]["numbers"]["image_tokens"] == 2 * 8 * 8, receipts["placeholders"]
    assert run.status == "finished" and run.labels == [str(digit) for digit in range(10)]
