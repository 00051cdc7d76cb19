"""Qwen2.5-VL, Qwen3-VL and Gemma 3: the same inputs, losses and answers as plain transformers."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from visiontune.data.dataset import Index
from visiontune.data.sample import ImageFile, Images, Sample, Text
from visiontune.data.turns import Turn
from visiontune.errors import DataError, ModelError, RecipeError
from visiontune.models.adapter import Batch
from visiontune.models.labels import LabelTree
from visiontune.models.load import build_tiny, load_adapter, native_image_size, page_tokens
from visiontune.recipe_sections import Data, DatasetUse

NAMES = ("tiny/qwen-vl", "tiny/qwen3-vl", "tiny/gemma3")
TEXTS = ("What is it?", "Which is larger, and why?", "A cat.", "The second one, because it is nearer.", "Be brief.")
SIDE = 48


def png(height: int, width: int, seed: int) -> ImageFile:
    pixels = np.random.default_rng(seed).integers(0, 255, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((width, height)).save(buffer, "PNG")
    return ImageFile(buffer.getvalue(), "x.png")


def samples() -> list[Sample]:
    several = Images((png(40, 90, 1), png(31, 17, 2)))
    turns = (
        Turn("user", ("Which is larger,", None, "or", None, "?")),
        Turn("assistant", ("The second one.",)),
        Turn("user", ("Be brief.",)),
    )
    return [
        Sample("one", Images((png(24, 24, 0),)), Text("A cat.")),
        Sample("two", several, Text("The second one, because it is nearer.", "Which is larger, and why?")),
        Sample("none", Images(()), Text("A cat.", "Be brief.")),
        Sample("chat", several, Text("The second.", "Be brief.", turns)),
    ]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    made = {}
    for name in NAMES:
        made[name] = str(tmp_path_factory.mktemp("tiny"))
        build_tiny(name, tmp_path_factory.getbasetemp() / made[name], TEXTS, 0, SIDE)
    return made


def data(side: int = SIDE, **fields: Any) -> Data:
    use = DatasetUse(path="data", content_hash="0")
    return Data(datasets=(use,), prompt="What is it?", image_longest_edge=side, max_tokens=512, **fields)


@pytest.fixture(params=NAMES)
def name(request) -> str:
    return request.param


@pytest.fixture
def adapter(name, folders) -> Any:
    adapter: Any = load_adapter(folders[name], None, data())
    adapter.network.eval()
    return adapter


def stock(adapter: Any, sample: Sample, *, answer: bool = True) -> dict[str, Any]:
    """A sample as the checkpoint's processor itself makes it, text and images in one call."""
    processor, text = adapter.encoder.processor, sample.text
    images = [Image.open(io.BytesIO(file.data)).convert("RGB") for file in sample.seen.files]
    said = text.turns or (Turn("user", (*(None for _ in images), text.prompt or "What is it?")),)
    messages = [
        {"role": t.role, "content": [{"type": "text", "text": p} if p else {"type": "image"} for p in t.content]}
        for t in said
    ]
    asked = processor.apply_chat_template(messages, add_generation_prompt=True)
    if answer:
        asked += text.answer + adapter.encoder.tokenizer.decode([adapter.encoder.end_token_id])
    return processor(text=[asked], images=[images] if images else None, return_tensors="pt", add_special_tokens=False)


def test_ids_and_pixels_are_those_of_the_stock_processor(adapter):
    for sample in samples():
        mine, theirs = adapter.encoder.encode(sample), stock(adapter, sample)
        assert mine.input_ids.tolist() == theirs["input_ids"][0].tolist()
        for key, value in mine.images.items():
            assert torch.equal(value, theirs[key])
        assert set(theirs) - {"input_ids", "attention_mask", adapter.kind.types} == set(mine.images)
        batch = adapter.encoder.collate([mine])
        assert torch.equal(batch.tensors[adapter.kind.types], theirs[adapter.kind.types])
        assert mine.image_features == int((mine.input_ids == adapter.encoder.image_token_id).sum())


def test_the_loss_is_that_of_transformers(adapter):
    """Alone and side by side, with padding between."""
    some = samples()
    with torch.no_grad():
        together = adapter.losses(adapter.encoder.collate([adapter.encoder.encode(one) for one in some]))["text"]
        for sample, loss in zip(some, together, strict=True):
            encoded, theirs = adapter.encoder.encode(sample), stock(adapter, sample)
            labels = torch.where(encoded.supervised, encoded.input_ids, -100)[None]
            expected = adapter.network(**theirs, labels=labels).loss * int(encoded.supervised.sum())
            alone = adapter.losses(adapter.encoder.collate([encoded]))["text"][0]
            assert alone.item() == pytest.approx(expected.item(), rel=1e-5)
            assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_greedy_answers_are_those_of_transformers(adapter):
    """Of each sample alone by plain transformers, and of all of them side by side, padded on the left, by ours."""
    some = samples()
    asked = [adapter.encoder.encode(one, with_answer=False) for one in some]
    traces = adapter.trace(adapter.encoder.collate(asked, pad_left=True), 6)
    for sample, trace in zip(some, traces, strict=True):
        theirs = stock(adapter, sample, answer=False)
        made = adapter.network.generate(
            **theirs, max_new_tokens=6, do_sample=False, eos_token_id=adapter.encoder.end_token_id
        )
        assert list(trace.tokens) == made[0, theirs["input_ids"].shape[1] :].tolist()


def test_scores_of_labels_are_those_of_whole_answers(adapter):
    """One reading of the prompt and a cache give what reading every label behind it gives."""
    labels = ("A cat.", "A", "The second one.")
    tree = LabelTree(labels, tuple(adapter.encoder.label_tokens(label) for label in labels))
    for some in (samples()[:2], samples()[1:3], samples()[2:3]):
        asked = [adapter.encoder.encode(one, with_answer=False) for one in some]
        found = adapter.score_labels(adapter.encoder.collate(asked, pad_left=True), tree)
        for row, sample in enumerate(some):
            logs = []
            for label, tokens in zip(labels, tree.tokens, strict=True):
                one = Sample("x", sample.seen, Text(label, sample.text.prompt))
                theirs = stock(adapter, one)
                with torch.no_grad():
                    logits = adapter.network(**theirs).logits[0].double()
                start = theirs["input_ids"].shape[1] - len(tokens)
                logs.append([(logits[start + i - 1], token) for i, token in enumerate(tokens)])
            expected = tree.log_probabilities(
                {prefix: at_branch(logs, tree, prefix, follow) for prefix, follow in tree.branches.items()}
            )
            np.testing.assert_allclose(found[row], expected[0], atol=1e-4)


def test_labels_are_scored_behind_a_prompt_longer_than_the_sliding_window(folders):
    adapter: Any = load_adapter(folders["tiny/gemma3"], None, data())
    adapter.network.eval()
    window = adapter.network.config.text_config.sliding_window
    text, pixels, labels = (
        "What is it? " * (window // 4),
        Images((png(24, 24, 0),)),
        ("A cat.", "A second one.", "A second cat."),
    )
    tree = LabelTree(labels, tuple(adapter.encoder.label_tokens(label) for label in labels))
    adapter.encoder.data = data().model_copy(update={"max_tokens": 2 * window})
    asked = adapter.encoder.collate([adapter.encoder.encode(Sample("x", pixels, Text("", text)), with_answer=False)])
    assert asked.tokens > window and sum(map(bool, tree.branches)) > 1
    logs = []
    for label, tokens in zip(labels, tree.tokens, strict=True):
        whole = adapter.encoder.collate([adapter.encoder.encode(Sample("x", pixels, Text(label, text)))])
        with torch.no_grad():
            logits = adapter.network(**adapter.inputs(whole)).logits[0].double()
        logs.append([(logits[asked.tokens + i - 1], token) for i, token in enumerate(tokens)])
    branches = {prefix: at_branch(logs, tree, prefix, follow) for prefix, follow in tree.branches.items()}
    np.testing.assert_allclose(adapter.score_labels(asked, tree), tree.log_probabilities(branches), atol=1e-4)


def at_branch(logs: list[Any], tree: LabelTree, prefix: tuple[int, ...], follow: tuple[int, ...]) -> np.ndarray:
    """The logits of the tokens that may follow a beginning, from a label that begins so."""
    label = next(i for i, tokens in enumerate(tree.tokens) if tokens[: len(prefix)] == prefix)
    return logs[label][len(prefix)][0][list(follow)].numpy()[None]


def test_lengths_are_known_from_sizes_alone(adapter):
    some = samples()
    index = Index(
        ids=[one.id for one in some],
        prompts=[one.text.prompt for one in some],
        answers=[one.text.answer for one in some],
        heights=[[24], [40, 31], [], [40, 31]],
        widths=[[24], [90, 17], [], [90, 17]],
        contents=[""] * 4,
        turns=[one.text.turns for one in some],
    )
    assert adapter.encoder.lengths(index).tolist() == [len(adapter.encoder.encode(one).input_ids) for one in some]
    layouts = list(adapter.encoder.layouts(index))
    assert [adapter.encoder.views(one) for one in layouts] == [adapter.encoder.encode(one).views for one in some]


def test_an_answer_cut_inside_a_character_ends_before_it(adapter):
    encoder, asked = adapter.encoder, Text("这是猫", "Be brief.")
    sample = Sample("x", Images((png(24, 24, 0),)), asked)
    prompt, read = len(encoder.encode(sample, with_answer=False).input_ids), []
    for room in range(1, encoder.count(asked.answer) + 1):
        encoder.data = encoder.data.model_copy(update={"max_tokens": prompt + room})
        read += encoder.answers_of(encoder.encode(sample))
        assert encoder.supervision(sample).wrong is None
        assert encoder.cut(asked.answer, room) == read[-1]
    assert list(dict.fromkeys(read)) == ["", "这", "这是", "这是猫"]


def test_every_weight_is_in_one_part(adapter):
    from visiontune.models.parts import check_parts

    check_parts(adapter.network, adapter.parts, {part.name: "full" for part in adapter.parts})


def test_a_batch_may_be_cut_into_pieces(adapter):
    batch: Batch = adapter.encoder.collate([adapter.encoder.encode(one) for one in samples()])
    with torch.no_grad():
        whole = adapter.losses(batch)["text"]
        pieces = torch.cat([adapter.losses(piece)["text"] for piece in batch.pieces(4)])
    torch.testing.assert_close(pieces, whole, rtol=1e-5, atol=1e-5)


def test_images_keep_their_shape_up_to_as_many_pixels_as_are_allowed(folders):
    for name in NAMES[:2]:
        small, large = (load_adapter(folders[name], None, data(side)).encoder for side in (32, 96))
        wide = Sample("wide", Images((png(60, 240, 5),)), Text("A cat."))
        counts = [one.encode(wide).image_features for one in (small, large)]  # type: ignore[attr-defined]
        assert counts[0] <= 32**2 / 64 < counts[1] <= 96**2 / 64
        with pytest.raises(DataError, match="refuses an image"):
            large.encode(Sample("strip", Images((png(2, 900, 5),)), Text("A cat.")))
    with pytest.raises(RecipeError, match="takes images of 48 pixels, not 64"):
        load_adapter(folders["tiny/gemma3"], None, data(64))
    with pytest.raises(RecipeError, match="whole images"):
        load_adapter(folders["tiny/qwen-vl"], None, data(image_splitting=True))


def test_what_is_planned_with_is_what_the_encoder_does(name, folders, adapter):
    assert native_image_size(folders[name]) == (SIDE if "gemma" in name else 1024)
    square = Sample("square", Images((png(SIDE, SIDE, 0),)), Text("A cat."))
    tokens = adapter.encoder.encode(square).image_features
    assert page_tokens(folders[name], SIDE) == page_tokens(name, SIDE) == tokens


def test_a_processor_that_counts_otherwise_is_refused(folders, monkeypatch):
    from transformers import Qwen2_5_VLProcessor

    own = Qwen2_5_VLProcessor.replace_image_token
    monkeypatch.setattr(Qwen2_5_VLProcessor, "replace_image_token", lambda *a, **k: own(*a, **k) + "<|image_pad|>")
    with pytest.raises(ModelError, match="the processor of this 'qwen2_5_vl' counts"):
        load_adapter(folders["tiny/qwen-vl"], None, data())


def test_without_a_chat_template_nobody_knows_how_it_is_asked(folders, tmp_path):
    import shutil

    shutil.copytree(folders["tiny/gemma3"], tmp_path / "bare")
    (tmp_path / "bare/chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="no chat template"):
        load_adapter(str(tmp_path / "bare"), None, data())


@pytest.mark.parametrize("name", NAMES)
def test_a_run_on_digits_passes_its_receipts(name, digits, tmp_path):
    """LoRA beside a frozen vision encoder on a checkpoint from disk, merged and reloaded in plain transformers."""
    import visiontune

    build_tiny(name, tmp_path / "base", [*TEXTS, *map(str, range(10))], 0, 32)
    fields = {"data.limit": 30, "batch.samples": 8, "batch.window": 32, "schedule.steps": 4, "machine.threads": 1}
    fields |= {"evaluation.samples": 8, "data.image_longest_edge": 32, "optimizer.learning_rate": 1e-2}
    run = visiontune.train(digits.path, model=str(tmp_path / "base"), out=tmp_path / "run", overrides=fields)
    told = {receipt["name"]: receipt["status"] for receipt in run.receipts}
    assert set(told.values()) <= {"passed", "not applicable"}
    assert told["frozen stayed frozen"] == told["trained moved"] == told["placeholders"] == "passed"
    assert run.recipe.parts["projector"] == ("full" if "gemma" in name else "lora")
    losses = [line["loss"] for line in run.metrics("step")]
    assert losses[-1] < losses[0]
    folders = visiontune.export(run.path, to="adapter,merged", out=tmp_path / "exports")
    assert_reloads(run, folders, digits)


def assert_reloads(run: Any, folders: Any, digits: Any) -> None:
    """The merged folder in plain transformers, and the adapter in plain PEFT on its base, have the trained losses."""
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    from visiontune.training.model import load_trained

    trained: Any = load_trained(run, run.recipe, torch.device("cpu"))[0]
    batch = trained.encoder.collate([trained.encoder.encode(digits.sample("test", i)) for i in range(4)])
    base = AutoModelForImageTextToText.from_pretrained(run.recipe.model.name, dtype=torch.float32)
    plain = {"merged": AutoModelForImageTextToText.from_pretrained(folders["merged"], dtype=torch.float32)}
    plain["adapter"] = PeftModel.from_pretrained(base, str(folders["adapter"])).base_model.model
    with torch.no_grad():
        expected = trained.losses(batch)["text"]
        for network in plain.values():
            trained.network = network.eval()
            torch.testing.assert_close(trained.losses(batch)["text"], expected, rtol=1e-5, atol=1e-5)
