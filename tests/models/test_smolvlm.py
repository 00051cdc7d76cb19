"""SmolVLM sees what its own processor makes, learns the answer only, and gives transformers' own numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import png
from visiontune.data.dataset import Dataset, Index
from visiontune.data.sample import ImageFile, Images, Sample, Text
from visiontune.errors import DataError, ModelError
from visiontune.models.labels import LabelTree
from visiontune.models.load import build_tiny, is_tiny, load_adapter
from visiontune.models.smolvlm import SmolVLMAdapter
from visiontune.recipe import Recipe

PROMPT = "Which digit is this?"


def sample(scan: np.ndarray, answer: str, images: int = 1, prompt: str | None = PROMPT) -> Sample:
    return Sample("s", Images((ImageFile(png(scan), "s.png"),) * images), Text(answer, prompt))


@pytest.fixture
def adapter(tiny_checkpoint: Path, recipe_of: Recipe) -> Any:
    return load_adapter(str(tiny_checkpoint), None, recipe_of.data)


@pytest.fixture
def some(digit_scans: tuple[np.ndarray, np.ndarray]) -> list[Sample]:
    scans, labels = digit_scans
    return [sample(scan, str(label)) for scan, label in zip(scans[:6], labels[:6], strict=True)]


def test_the_learned_span_is_the_answer_and_its_end_token(adapter: Any, some: list[Sample]) -> None:
    encoded = adapter.encoder.encode(some[3])
    learned = adapter.encoder.tokenizer.decode(encoded.input_ids[encoded.supervised])
    assert learned == " 3<end_of_utterance>"
    assert adapter.encoder.answers_of(encoded) == ["3"]
    assert "".join(text for text, supervised in adapter.encoder.segments(encoded) if supervised) == learned


def test_an_answer_that_stands_in_the_question_too_is_learned_once(adapter: Any, some: list[Sample]) -> None:
    scan = some[0].seen
    echo = Sample("s", scan, Text("Assistant: 3", "Say 'Assistant: 3'"))
    encoded = adapter.encoder.encode(echo)
    learned = adapter.encoder.tokenizer.decode(encoded.input_ids[encoded.supervised])
    assert learned == " Assistant: 3<end_of_utterance>"


@pytest.mark.parametrize("images", [1, 2])
def test_ids_and_pixels_are_those_of_the_models_own_processor(adapter: Any, digit_scans: Any, images: int) -> None:
    one = sample(digit_scans[0][0], "7", images)
    encoded = adapter.encoder.encode(one, with_answer=False)
    processor = adapter.encoder.processor
    content = [{"type": "image"}] * images + [{"type": "text", "text": PROMPT}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    pictures = [Image.open(__import__("io").BytesIO(f.data)).convert("RGB") for f in one.seen.files]
    stock = processor(text=text, images=pictures, return_tensors="pt", add_special_tokens=False)
    assert encoded.input_ids.tolist() == stock["input_ids"][0].tolist()
    assert torch.equal(encoded.pixel_values, stock["pixel_values"][0])


def test_loss_equals_that_of_plain_transformers(adapter: Any, some: list[Sample]) -> None:
    batch = adapter.encoder.collate([adapter.encoder.encode(one) for one in some])
    ours = adapter.losses(batch)["text"].sum() / batch.weights["text"]
    labels = batch.tensors["input_ids"].masked_fill(~batch.tensors["supervised"], -100)
    inputs = {name: tensor for name, tensor in batch.tensors.items() if name not in ("supervised", "views")}
    theirs = adapter.network(**inputs, labels=labels).loss
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)


def test_losses_do_not_depend_on_the_batch(adapter: Any, some: list[Sample]) -> None:
    longer = [*some[:3], sample(np.zeros((8, 8)), "a much longer answer than the others have"), *some[3:]]
    encoded = [adapter.encoder.encode(one) for one in longer]
    together = adapter.losses(adapter.encoder.collate(encoded))["text"]
    alone = torch.cat([adapter.losses(adapter.encoder.collate([one]))["text"] for one in encoded])
    assert torch.allclose(together, alone, atol=1e-5)


def test_greedy_answers_equal_those_of_plain_transformers_alone_or_in_a_batch(adapter: Any, some: list[Sample]) -> None:
    encoded = [adapter.encoder.encode(one, with_answer=False) for one in some]
    longer = adapter.encoder.encode(sample(np.zeros((8, 8)), "", prompt=PROMPT + " Look twice."), with_answer=False)
    texts = [text for text, _ in adapter.generate(adapter.encoder.collate([*encoded, longer], pad_left=True), 6)]
    processor = adapter.encoder.processor
    for one, text in zip(encoded, texts, strict=False):
        batch = adapter.encoder.collate([one], pad_left=True)
        inputs = {name: tensor for name, tensor in batch.tensors.items() if name not in ("supervised", "views")}
        out = adapter.network.generate(**inputs, max_new_tokens=6, do_sample=False)
        plain = processor.batch_decode(out[:, len(one.input_ids) :], skip_special_tokens=True)[0].strip()
        assert text == plain


LABELS = ("red car", "red cart", "red", "blue", "0", "1")


@pytest.fixture
def opinionated(adapter: Any) -> Any:
    """The tiny model with a sharper mind: its logits lie far apart, so that no two computations agree by chance."""
    with torch.no_grad():
        adapter.network.lm_head.weight *= 10
        adapter.network.model.connector.modality_projection.proj.weight *= 10
    return adapter


def asked(adapter: Any, digit_scans: Any) -> list[Any]:
    """Questions of different lengths about different digits."""
    prompts = [PROMPT, PROMPT + " Look twice, and then answer.", "Digit?", PROMPT]
    scans = digit_scans[0][:4]
    return [
        adapter.encoder.encode(sample(scan, "", prompt=prompt), with_answer=False)
        for scan, prompt in zip(scans, prompts, strict=True)
    ]


def scored_without_cache(adapter: Any, one: Any, tree: LabelTree) -> list[float]:
    """Each label behind the prompt in one reading of its own; at each token the share among those that lead on."""
    logs = []
    for tokens in tree.tokens:
        with torch.no_grad():
            logits = adapter.network(
                input_ids=torch.cat([one.input_ids, torch.tensor(tokens)])[None],
                pixel_values=one.pixel_values[None],
                pixel_attention_mask=one.images["pixel_attention_mask"][None],
                use_cache=False,
            ).logits[0]
        log = 0.0
        for place, token in enumerate(tokens):
            after = sorted({t[place] for t in tree.tokens if t[:place] == tokens[:place]})
            predicted = logits[len(one.input_ids) + place - 1, after].log_softmax(-1)
            log += predicted[after.index(token)].item()
        logs.append(log)
    return logs


def label_tree(adapter: Any, labels: tuple[str, ...] = LABELS) -> LabelTree:
    return LabelTree(labels, tuple(adapter.encoder.label_tokens(label) for label in labels))


def test_label_scores_are_those_of_reading_each_label_behind_the_prompt(opinionated: Any, digit_scans: Any) -> None:
    tree = label_tree(opinionated)
    assert len(tree.branches) > 2 and max(map(len, tree.branches)) > 2, "the labels part late, and more than once"
    encoded = asked(opinionated, digit_scans)
    plain = [scored_without_cache(opinionated, one, tree) for one in encoded]
    alone = [opinionated.score_labels(opinionated.encoder.collate([one], pad_left=True), tree)[0] for one in encoded]
    assert np.abs(np.array(plain) - np.array(alone)).max() < 1e-5
    assert np.ptp(np.exp(plain), axis=0).max() > 0.01, "the questions are told apart"
    batch = opinionated.encoder.collate(encoded, pad_left=True)
    assert len({len(one.input_ids) for one in encoded}) == 3
    together = opinionated.score_labels(batch, tree)
    assert np.abs(together - plain).max() < 1e-5
    assert np.exp(together).sum(axis=1) == pytest.approx(1)


def test_scoring_leaves_nothing_behind(opinionated: Any, digit_scans: Any) -> None:
    batch = opinionated.encoder.collate(asked(opinionated, digit_scans), pad_left=True)
    tree, turned = label_tree(opinionated), label_tree(opinionated, LABELS[::-1])
    first = opinionated.score_labels(batch, tree)
    answers = opinionated.generate(batch, 4)
    assert np.array_equal(opinionated.score_labels(batch, tree), first)
    assert np.allclose(opinionated.score_labels(batch, turned)[:, ::-1], first, atol=1e-9)
    assert opinionated.generate(batch, 4) == answers


def test_a_single_label_is_certain(opinionated: Any, digit_scans: Any) -> None:
    batch = opinionated.encoder.collate(asked(opinionated, digit_scans), pad_left=True)
    assert opinionated.score_labels(batch, label_tree(opinionated, ("blue",))).tolist() == [[0.0]] * 4


def test_label_tokens_are_those_that_training_supervises(adapter: Any, some: list[Sample]) -> None:
    for one in some:
        encoded = adapter.encoder.encode(one)
        assert tuple(encoded.input_ids[encoded.supervised].tolist()) == adapter.encoder.label_tokens(one.target.answer)


@pytest.mark.parametrize("ends", [False, True])
def test_a_trace_holds_transformers_own_tokens_and_log_probabilities(
    opinionated: Any, digit_scans: Any, ends: bool
) -> None:
    if ends:  # some answers end early: their tokens stop there
        with torch.no_grad():
            opinionated.network.lm_head.weight[opinionated.encoder.end_token_id] *= 3
    encoded = asked(opinionated, digit_scans)
    traces = opinionated.trace(opinionated.encoder.collate(encoded, pad_left=True), 6)
    end = opinionated.encoder.end_token_id
    for one, trace in zip(encoded, traces, strict=True):
        tokens, logs, margins = [], [], []
        while len(tokens) < 6 and end not in tokens:  # greedy by hand: the whole text is read again for each token
            with torch.no_grad():
                logits = opinionated.network(
                    input_ids=torch.cat([one.input_ids, torch.tensor(tokens, dtype=torch.long)])[None],
                    pixel_values=one.pixel_values[None],
                    pixel_attention_mask=one.images["pixel_attention_mask"][None],
                    use_cache=False,
                ).logits[0, -1]
            best = logits.log_softmax(-1).topk(2)
            tokens.append(int(best.indices[0]))
            logs.append(best.values[0].item())
            margins.append((best.values[0] - best.values[1]).item())
        assert trace.tokens == tuple(tokens) and trace.ended == (end in tokens)
        assert trace.log_probabilities == pytest.approx(logs, abs=1e-4)
        assert trace.margins == pytest.approx(margins, abs=1e-4)
        assert trace.text == opinionated.encoder.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    assert any(trace.ended for trace in traces) == ends
    ((text, confidence), *_) = opinionated.generate(opinionated.encoder.collate(encoded, pad_left=True), 6)
    assert text == traces[0].text and confidence == pytest.approx(np.exp(sum(traces[0].log_probabilities)))


def test_an_answer_too_long_is_shortened_and_counted_and_the_image_stays(
    tiny_checkpoint: Path, recipe_of: Recipe, digit_scans: Any
) -> None:
    whole = load_adapter(str(tiny_checkpoint), None, recipe_of.data).encoder
    one = sample(digit_scans[0][0], "0123456789")
    full = whole.encode(one)
    data = recipe_of.data.model_copy(update={"max_tokens": len(full.input_ids) - 4})
    short = load_adapter(str(tiny_checkpoint), None, data).encoder.encode(one)
    assert short.shortened == 4
    assert len(short.input_ids) == len(full.input_ids) - 4
    assert short.image_features == full.image_features > 0


def test_images_that_do_not_fit_are_an_error_with_the_fix(
    tiny_checkpoint: Path, recipe_of: Recipe, digit_scans: Any
) -> None:
    data = recipe_of.data.model_copy(update={"max_tokens": 10})
    with pytest.raises(DataError, match="images are never cut") as caught:
        load_adapter(str(tiny_checkpoint), None, data).encoder.encode(sample(digit_scans[0][0], "3"))
    assert "max_tokens" in (caught.value.fix or "")


def test_an_image_placeholder_inside_the_text_is_refused(adapter: Any, digit_scans: Any) -> None:
    with pytest.raises(DataError, match="placeholder"):
        adapter.encoder.encode(sample(digit_scans[0][0], "3", prompt="what is <image> this?"))
    with pytest.raises(DataError, match="placeholder"):
        adapter.encoder.encode(sample(digit_scans[0][0], "<image>"))


@settings(max_examples=30, deadline=None)
@given(width=st.integers(3, 300), height=st.integers(3, 300))
def test_the_length_known_before_decoding_is_the_length(width: int, height: int) -> None:
    encoder = _splitting_encoder()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))
    buffer = __import__("io").BytesIO()
    picture.save(buffer, "PNG")
    one = Sample("s", Images((ImageFile(buffer.getvalue(), "s"),)), Text("yes", PROMPT))
    index = Index(["s"], [PROMPT], ["yes"], [[width]], [[height]], ["c"])
    assert encoder.lengths(index).tolist() == [len(encoder.encode(one).input_ids)]


_SPLITTING: list[Any] = []


def _splitting_encoder() -> Any:
    return _SPLITTING[0]


@pytest.fixture(autouse=True)
def _keep_a_splitting_encoder(tiny_checkpoint: Path, recipe_of: Recipe) -> None:
    if not _SPLITTING:
        data = recipe_of.data.model_copy(update={"image_splitting": True, "image_longest_edge": 96})
        _SPLITTING.append(load_adapter(str(tiny_checkpoint), None, data).encoder)


def test_image_options_change_what_the_model_sees(tiny_checkpoint: Path, recipe_of: Recipe, digit_scans: Any) -> None:
    one = sample(np.kron(digit_scans[0][0], np.ones((10, 10))), "3")
    plain = load_adapter(str(tiny_checkpoint), None, recipe_of.data).encoder.encode(one)
    split = _splitting_encoder().encode(one)
    assert len(plain.pixel_values) == 1 and len(split.pixel_values) == 10
    data = recipe_of.data.model_copy(update={"image_longest_edge": 16})
    small = load_adapter(str(tiny_checkpoint), None, data).encoder.encode(one)
    assert not torch.equal(plain.pixel_values, small.pixel_values)


def test_the_first_generation_trains_through_the_same_adapter(
    tmp_path: Path, recipe_of: Recipe, digit_scans: Any
) -> None:
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    build_tiny("tiny/smolvlm", tmp_path / "second", [PROMPT, "0"], 0, 32)
    second: Any = load_adapter(str(tmp_path / "second"), None, recipe_of.data)
    config = second.network.config.to_dict()
    kept = {name: config[name] for name in ("scale_factor", "image_token_id", "tie_word_embeddings")}
    vision = {k: v for k, v in config["vision_config"].items() if k != "model_type"}
    network = Idefics3ForConditionalGeneration(
        Idefics3Config(text_config=config["text_config"], vision_config=vision, **kept)
    )
    tile = {"longest_edge": 32}
    processor = Idefics3Processor(
        Idefics3ImageProcessorPil(size=tile, max_image_size=tile),
        second.encoder.tokenizer,
        image_seq_len=4,
        chat_template=second.encoder.processor.chat_template,
    )
    network.save_pretrained(tmp_path / "first")
    processor.save_pretrained(tmp_path / "first")
    first = load_adapter(str(tmp_path / "first"), None, recipe_of.data)
    assert isinstance(first, SmolVLMAdapter)
    one = sample(digit_scans[0][0], "3")
    assert first.encoder.encode(one).input_ids.tolist() == second.encoder.encode(one).input_ids.tolist()
    batch = first.encoder.collate([first.encoder.encode(one)])
    assert first.losses(batch)["text"].shape == (1,)


def test_a_tiny_model_follows_from_its_seed(tmp_path: Path) -> None:
    def weights(name: str, seed: int) -> bytes:
        build_tiny("tiny/smolvlm", tmp_path / name, [PROMPT, "yes", "no"], seed, 32)
        return (tmp_path / name / "model.safetensors").read_bytes()

    assert weights("a", 1) == weights("b", 1) != weights("c", 2)


def test_an_unknown_tiny_model_and_an_unreachable_hub_are_clear_errors(
    recipe_of: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else the hub's client tries for 20 s
    with pytest.raises(ModelError, match="tiny/nothing") as caught:
        is_tiny("tiny/nothing")
    assert "tiny/smolvlm" in (caught.value.fix or "")
    with pytest.raises(ModelError, match="could not be had from the hub") as caught:
        load_adapter("nobody/no-such-model", None, recipe_of.data)
    assert "tiny/smolvlm" in (caught.value.fix or "") and "path" in (caught.value.fix or "")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match="'bert' are not trained") as caught:
        load_adapter(str(tmp_path), None, recipe_of.data)
    assert "smolvlm" in (caught.value.fix or "")


def test_an_image_free_sample_is_fine(adapter: Any, digits: Dataset) -> None:
    one = Sample("s", Images(()), Text("yes", "Is water wet?"))
    both = [adapter.encoder.encode(one), adapter.encoder.encode(digits.sample("train", 0))]
    batch = adapter.encoder.collate(both)
    alone = adapter.losses(adapter.encoder.collate(both[:1]))["text"]
    assert adapter.losses(batch)["text"][0].item() == pytest.approx(alone.item(), abs=1e-5)
