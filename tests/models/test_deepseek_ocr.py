"""DeepSeek-OCR of both generations sees what its own processor makes and gives transformers' own numbers."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import planner, png
from visiontune.contract import contract_for
from visiontune.data.dataset import Dataset, Index
from visiontune.data.sample import ImageFile, Images, Sample, Text
from visiontune.errors import DataError, ModelError, RecipeError
from visiontune.models.labels import LabelTree
from visiontune.models.load import build_tiny, chat_prompt, load_adapter
from visiontune.models.parts import check_parts
from visiontune.recipe import Recipe
from visiontune.recipe_sections import Data
from visiontune.run import Run
from visiontune.training.loop import train_run

PROMPT = "Which digit is this?"
TINY = ("tiny/deepseek-ocr", "tiny/deepseek-ocr2")
SIDE = 32


@pytest.fixture(scope="module", params=TINY)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint of each generation."""
    folder = tmp_path_factory.mktemp("checkpoint") / request.param.rpartition("/")[2]
    build_tiny(request.param, folder, [PROMPT, *"0123456789"], 1, SIDE)
    return folder


@pytest.fixture
def data(recipe_of: Recipe) -> Data:
    return recipe_of.data.model_copy(update={"image_longest_edge": SIDE})


@pytest.fixture
def adapter(folder: Path, data: Data) -> Any:
    return load_adapter(str(folder), None, data)


@pytest.fixture
def some(digit_scans: tuple[np.ndarray, np.ndarray]) -> list[Sample]:
    """Samples with one, three, no and two pages; questions and answers of different lengths."""
    scans, labels = digit_scans
    pages = [1, 3, 0, 2, 1]
    answers = ["0", "a longer answer", "yes", "3", str(labels[9])]
    prompts = [PROMPT, None, "Is water wet?", PROMPT + " Look twice.", PROMPT]
    samples, at = [], 0
    for number, (count, answer, prompt) in enumerate(zip(pages, answers, prompts, strict=True)):
        files = tuple(ImageFile(png(scan), "s.png") for scan in scans[at : at + count])
        samples.append(Sample(str(number), Images(files), Text(answer, prompt)))
        at += count
    return samples


def plain(folder: Path) -> Any:
    """The checkpoint as transformers alone loads it."""
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


def asked_plainly(processor: Any, one: Sample, prompt: str) -> Any:
    """A question through transformers' own processor alone."""
    content = [*({"type": "image"} for _ in one.seen.files), {"type": "text", "text": one.target.prompt or prompt}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    pictures = [Image.open(io.BytesIO(file.data)).convert("RGB") for file in one.seen.files]
    return processor(text=text, images=pictures or None, return_tensors="pt", add_special_tokens=False)


def test_the_learned_span_is_the_answer_and_its_end_token(adapter: Any, some: list[Sample]) -> None:
    encoded = adapter.encoder.encode(some[1])
    assert adapter.encoder.tokenizer.decode(encoded.input_ids[encoded.supervised]) == (
        "a longer answer<｜end▁of▁sentence｜>"
    )
    assert adapter.encoder.answers_of(encoded) == ["a longer answer"]
    shown = "".join(text for text, _ in adapter.encoder.segments(adapter.encoder.encode(some[3])))
    tokens = adapter.encoder.features(1)
    pages = f"<image>×{tokens}\n" * 2
    assert shown == f"<｜begin▁of▁sentence｜>{pages}Which digit is this? Look twice.3<｜end▁of▁sentence｜>"
    label = adapter.encoder.label_tokens("a longer answer")
    assert tuple(encoded.input_ids[encoded.supervised].tolist()) == label


def test_an_answer_learns_its_end_though_the_template_does_not_close_it(adapter: Any, some: list[Sample]) -> None:
    processor = adapter.encoder.processor
    processor.chat_template = processor.chat_template.replace("{{ eos_token }}", "")
    encoded = adapter.encoder.encode(some[0])
    assert adapter.encoder.tokenizer.decode(encoded.input_ids[encoded.supervised]) == "0<｜end▁of▁sentence｜>"


def test_ids_and_pixels_are_those_of_the_models_own_processor(
    adapter: Any, some: list[Sample], data: Data, tmp_path: Path
) -> None:
    from transformers import AutoProcessor

    adapter.encoder.save(tmp_path)
    stock = AutoProcessor.from_pretrained(tmp_path, backend="pil" if "2" in adapter.network.config.model_type else None)
    # The published processors would cut this one into tiles, and stretch or pad it.
    large = ImageFile(png(np.kron(np.eye(8) * 16, np.ones((60, 100)))), "large.png")
    for one in [*some, Sample("large", Images((large, *some[0].seen.files)), Text("0", PROMPT))]:
        encoded = adapter.encoder.encode(one, with_answer=False)
        theirs = asked_plainly(stock, one, data.prompt)
        assert encoded.input_ids.tolist() == theirs["input_ids"][0].tolist()
        if one.seen.files:
            assert torch.equal(encoded.pixel_values, theirs["pixel_values"])
            assert "pixel_values_local" not in theirs


@pytest.mark.parametrize("side", [32, 64, 96, 160])
def test_image_tokens_are_as_many_as_the_features_that_the_model_delivers(
    folder: Path, data: Data, digit_scans: Any, side: int
) -> None:
    adapter: Any = load_adapter(str(folder), None, data.model_copy(update={"image_longest_edge": side}))
    wide = np.kron(digit_scans[0][0], np.ones((20, 50)))  # larger than a tile of the published models' processors
    encoded = adapter.encoder.encode(Sample("s", Images((ImageFile(png(wide), "s.png"),)), Text("0", PROMPT)))
    assert encoded.pixel_values.shape == (1, 3, side, side)
    with torch.no_grad():
        (features,) = adapter.network.get_image_features(encoded.pixel_values).pooler_output
    assert len(features) == encoded.image_features == int((encoded.input_ids == adapter.encoder.image_token_id).sum())


def test_the_published_sizes_take_the_published_numbers_of_tokens(folder: Path, data: Data) -> None:
    encoder: Any = load_adapter(str(folder), None, data).encoder
    processor, kind = encoder.processor, type(encoder)
    processor.patch_size, processor.downsample_ratio = 16, 4  # as the published processors have it
    first = {512: 73, 640: 111, 1024: 273, 1280: 421}
    for side, tokens in (first if "ocr2" not in folder.name else {512: 145, 768: 145, 1024: 257}).items():
        fresh = kind(processor, data.model_copy(update={"image_longest_edge": side}))
        assert fresh.features(1) == tokens
        assert fresh.placeholder(((1, 1),), 0) == "<image>" * tokens


def test_every_side_takes_as_many_tokens_in_the_text_as_features(folder: Path, data: Data) -> None:
    encoder: Any = load_adapter(str(folder), None, data).encoder
    encoder.processor.patch_size = 16
    for side in range(64, 2049, 64):
        fresh = type(encoder)(encoder.processor, data.model_copy(update={"image_longest_edge": side}))
        assert fresh.placeholder(((1, 1),), 0).count("<image>") == fresh.features(1)


def test_loss_equals_that_of_plain_transformers(adapter: Any, folder: Path, some: list[Sample]) -> None:
    batch = adapter.encoder.collate([adapter.encoder.encode(one) for one in some])
    ours = adapter.losses(batch)["text"].sum() / batch.weights["text"]
    labels = batch.tensors["input_ids"].masked_fill(~batch.tensors["supervised"], -100)
    pages = [adapter.encoder.encode(one).pixel_values for one in some if one.seen.files]
    theirs = plain(folder)(
        input_ids=batch.tensors["input_ids"],
        attention_mask=batch.tensors["attention_mask"],
        pixel_values=torch.cat(pages),
        labels=labels,
    ).loss
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)


def test_losses_do_not_depend_on_the_batch(adapter: Any, some: list[Sample]) -> None:
    encoded = [adapter.encoder.encode(one) for one in some]
    batch = adapter.encoder.collate(encoded)
    assert batch.image_tokens == batch.image_features == 7 * adapter.encoder.features(1) and batch.tiles == 7
    together = adapter.losses(batch)["text"]
    alone = torch.cat([adapter.losses(adapter.encoder.collate([one]))["text"] for one in encoded])
    assert torch.allclose(together, alone, atol=1e-5)
    for count in (2, 3, 5):  # pieces as the loop cuts them; of five, one has no page at all
        pieces = [adapter.losses(piece)["text"] for piece in batch.pieces(count)]
        assert torch.allclose(together, torch.cat(pieces), atol=1e-5)


def test_the_pages_matter_and_so_does_their_order(adapter: Any, some: list[Sample]) -> None:
    one = some[1]
    turned = Sample("t", Images(one.seen.files[::-1]), one.target)
    batch = adapter.encoder.collate([adapter.encoder.encode(one), adapter.encoder.encode(turned)])
    first, second = adapter.losses(batch)["text"].tolist()
    assert abs(first - second) > 1e-4


def test_greedy_answers_equal_those_of_plain_transformers_alone_or_in_a_batch(
    adapter: Any, folder: Path, some: list[Sample], data: Data
) -> None:
    from transformers import AutoProcessor

    encoded = [adapter.encoder.encode(one, with_answer=False) for one in some]
    traces = adapter.trace(adapter.encoder.collate(encoded, pad_left=True), 8)
    network, stock = plain(folder), adapter.encoder.processor
    assert isinstance(stock, type(AutoProcessor.from_pretrained(folder)))
    for one, mine in zip(some, traces, strict=True):
        theirs = asked_plainly(stock, one, data.prompt)
        out = network.generate(**theirs, max_new_tokens=8, do_sample=False)[0, theirs["input_ids"].shape[1] :].tolist()
        end = adapter.encoder.end_token_id
        assert list(mine.tokens) == (out[: out.index(end) + 1] if end in out else out)
    assert len({trace.tokens for trace in traces}) > 1, "the questions are told apart"


def test_a_long_answer_is_read_back_without_a_window(adapter: Any, some: list[Sample]) -> None:
    """`unlimited_ocr` forgets its answer beyond `sliding_window` tokens; a DeepSeek-OCR does not."""
    encoded = adapter.encoder.encode(some[0], with_answer=False)
    with torch.no_grad():  # neither an end nor, since the answer is read again as a question, an image
        adapter.network.lm_head.weight[[adapter.encoder.end_token_id, adapter.encoder.image_token_id]] = 0
    (trace,) = adapter.trace(adapter.encoder.collate([encoded], pad_left=True), 150)
    read = torch.cat([encoded.input_ids, torch.tensor(trace.tokens)])[None]
    with torch.no_grad():
        logits = adapter.network(input_ids=read, pixel_values=encoded.pixel_values).logits[0].log_softmax(-1)
    again = logits[len(encoded.input_ids) - 1 : -1].gather(1, torch.tensor(trace.tokens)[:, None])[:, 0]
    assert len(trace.tokens) == 150
    assert trace.log_probabilities == pytest.approx(again.tolist(), abs=1e-4)


def test_label_scores_are_those_of_reading_each_label_behind_the_prompt(adapter: Any, some: list[Sample]) -> None:
    labels = ("red car", "red cart", "red", "blue", "0", "1")
    tree = LabelTree(labels, tuple(adapter.encoder.label_tokens(label) for label in labels))
    assert len(tree.branches) > 2 and max(map(len, tree.branches)) > 2, "the labels part late, and more than once"
    encoded = [adapter.encoder.encode(one, with_answer=False) for one in some]
    scores = adapter.score_labels(adapter.encoder.collate(encoded, pad_left=True), tree)
    for row, one in zip(scores, encoded, strict=True):
        for column, tokens in enumerate(tree.tokens):
            pixels = {} if one.pixel_values is None else {"pixel_values": one.pixel_values}
            read = torch.cat([one.input_ids, torch.tensor(tokens)])[None]
            with torch.no_grad():
                logits = adapter.network(input_ids=read, **pixels, use_cache=False).logits[0]
            log = 0.0
            for place, token in enumerate(tokens):
                after = sorted({t[place] for t in tree.tokens if t[:place] == tokens[:place]})
                predicted = logits[len(one.input_ids) + place - 1, after].log_softmax(-1)
                log += predicted[after.index(token)].item()
            assert row[column] == pytest.approx(log, abs=1e-5)
    assert np.exp(scores).sum(axis=1) == pytest.approx(1)


def test_the_length_known_before_decoding_is_the_length(adapter: Any, some: list[Sample]) -> None:
    sizes = [[8] * len(one.seen.files) for one in some]
    prompts = [one.target.prompt for one in some]
    index = Index([one.id for one in some], prompts, [one.target.answer for one in some], sizes, sizes, ["c"] * 5)
    assert adapter.encoder.lengths(index).tolist() == [len(adapter.encoder.encode(one).input_ids) for one in some]


@pytest.mark.parametrize("size", [(3, 50), (50, 3), (3, 3), (1, 1)])
def test_a_picture_of_any_shape_is_seen_in_colour(adapter: Any, size: tuple[int, int]) -> None:
    picture = Image.new("RGB", size, (255, 0, 0))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    one = Sample("s", Images((ImageFile(buffer.getvalue(), "s.png"),)), Text("red", PROMPT))
    middle = adapter.encoder.encode(one).pixel_values[0, :, SIDE // 2, SIDE // 2]
    mean = adapter.encoder.processor.image_processor.image_mean
    assert middle.tolist() == pytest.approx([(c - m) / 0.5 for c, m in zip((1, 0, 0), mean, strict=True)], abs=1e-6)


def test_what_does_not_fit_is_an_error_with_the_fix(folder: Path, adapter: Any, data: Data, some: list[Sample]) -> None:
    short: Any = load_adapter(str(folder), None, data.model_copy(update={"max_tokens": 20})).encoder
    with pytest.raises(DataError, match="images are never cut") as caught:
        short.encode(some[0])
    assert "max_tokens" in (caught.value.fix or "")
    full = adapter.encoder.encode(some[1])
    room = data.model_copy(update={"max_tokens": len(full.input_ids) - 4})
    cut: Any = load_adapter(str(folder), None, room).encoder.encode(some[1])
    assert cut.shortened == 4 and cut.image_features == full.image_features
    with pytest.raises(DataError, match="placeholder"):
        adapter.encoder.encode(Sample("s", some[0].seen, Text("0", "what is <image> this?")))
    with pytest.raises(DataError, match="placeholder"):
        adapter.encoder.encode(Sample("s", some[0].seen, Text("<image>", PROMPT)))


def test_what_cannot_be_done_is_refused_at_load(folder: Path, data: Data) -> None:
    with pytest.raises(RecipeError, match="without local tiles"):
        load_adapter(str(folder), None, data.model_copy(update={"image_splitting": True}))
    with pytest.raises(RecipeError, match="does not divide") as caught:
        load_adapter(str(folder), None, data.model_copy(update={"image_longest_edge": 50}))
    assert "48" in (caught.value.fix or "")
    device = contract_for("desktop-llama", image_size=SIDE, chat_prompt="{marker}{question}")
    with pytest.raises(ModelError, match="device"):
        load_adapter(str(folder), None, data, device)
    for name in (TINY[0], str(folder)):
        with pytest.raises(ModelError, match="device"):
            chat_prompt(name)


def test_a_checkpoint_without_a_chat_template_gets_that_of_the_published_models(
    folder: Path, data: Data, some: list[Sample], tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(folder, tmp_path / "bare")
    (tmp_path / "bare" / "chat_template.jinja").unlink()
    bare: Any = load_adapter(str(tmp_path / "bare"), None, data).encoder
    whole: Any = load_adapter(str(folder), None, data).encoder
    assert bare.encode(some[3]).input_ids.tolist() == whole.encode(some[3]).input_ids.tolist()


def test_parts_hold_every_weight_once(adapter: Any) -> None:
    check_parts(adapter.network, adapter.parts, {part.name: "full" for part in adapter.parts})
    named = dict(adapter.network.named_parameters())
    assert all(path in named for part in adapter.parts for path in (*part.loose, *part.stacked))
    assert sum(len(part.stacked) for part in adapter.parts) == sum("mlp.experts." in name for name in named) > 0


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_model_follows_from_its_seed(name: str, tmp_path: Path) -> None:
    def files(folder: str, seed: int) -> dict[str, bytes]:
        state = torch.get_rng_state()
        build_tiny(name, tmp_path / folder, [PROMPT, "yes", "no"], seed, SIDE)
        assert torch.equal(state, torch.get_rng_state())
        return {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()}

    first, again, other = files("a", 1), files("b", 1), files("c", 2)
    assert first == again
    assert first["model.safetensors"] != other["model.safetensors"]


def losses_of(run: Run) -> list[float]:
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "step"]


@pytest.mark.parametrize("name", TINY)
def test_a_run_passes_its_receipts(name: str, plan: Callable[..., Run]) -> None:
    run = train_run(plan("run", {"schedule.steps": 6, "optimizer.learning_rate": 1e-3}, name))
    status = {receipt["name"]: receipt["status"] for receipt in run.receipts}
    assert {status[n] for n in ("supervised", "placeholders", "trained moved", "seen")} == {"passed"}
    assert "failed" not in status.values()


@pytest.mark.parametrize("name", TINY)
def test_a_run_with_lora_on_the_experts_passes_its_receipts(name: str, plan: Callable[..., Run]) -> None:
    parts = {"vision_encoder": "frozen", "projector": "lora", "language_model": "lora", "embeddings": "frozen"}
    changes = {f"parts.{part}": state for part, state in parts.items()}
    run = train_run(plan("run", {**changes, "schedule.steps": 6, "lora.rank": 4, "lora.dropout": 0.1}, name))
    status = {receipt["name"]: receipt["status"] for receipt in run.receipts}
    assert {status[n] for n in ("supervised", "placeholders", "frozen stayed frozen", "trained moved")} == {"passed"}
    assert "failed" not in status.values()


def test_a_longer_run_reads_digits_from_the_image(three_digits: Dataset, tmp_path: Path) -> None:
    changes = {"data.limit": None, "batch.samples": 16, "batch.tokens": 4096, "schedule.steps": 35}
    seldom = {"evaluation.every": 35, "checkpoints.every": 35, "optimizer.learning_rate": 2e-3, "data.augment": 0.0}
    run = train_run(planner(three_digits, TINY[0], tmp_path)("run", {**changes, **seldom}))
    (matters,) = [receipt for receipt in run.receipts if receipt["name"] == "image matters"]
    assert matters["status"] == "passed", matters["reason"]


def test_a_finer_cut_into_micro_batches_changes_nothing_but_rounding(plan: Callable[..., Run]) -> None:
    def losses(name: str, tokens: int) -> list[float]:
        changes = {"schedule.steps": 3, "batch.tokens": tokens, "optimizer.learning_rate": 1e-3}
        return losses_of(train_run(plan(name, changes, TINY[0])))

    assert losses("coarse", 4096) == pytest.approx(losses("fine", 160), abs=1e-5)


def test_experts_are_not_decomposed(plan: Callable[..., Run]) -> None:
    parts = {"parts.vision_encoder": "frozen", "parts.projector": "frozen", "parts.embeddings": "frozen"}
    parts |= {"parts.language_model": "lora", "lora.decomposed": True}
    with pytest.raises(RecipeError, match="no DoRA for stacked weights"):
        train_run(plan("run", parts, TINY[0]))
    layers = {"lora.layers": {"language_model": ["q_proj", "o_proj"]}, "schedule.steps": 2}
    assert train_run(plan("attention", parts | layers, TINY[0])).status == "finished"
