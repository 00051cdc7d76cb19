"""Conversations of several turns: what is learned, what is seen, and that the model is asked what it was taught."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from visiontune.data.sample import Images, Sample, Text
from visiontune.data.turns import Turn, to_messages
from visiontune.errors import DataError, ModelError
from visiontune.models.load import load_adapter
from visiontune.recipe_sections import Data, DatasetUse

TURNS = (
    Turn("system", ("Be brief.",)),
    Turn("user", ("See", None, "and", None, ": which is larger?")),
    Turn("assistant", ("The second.",)),
    Turn("user", (None, "And this?")),
)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, digits):
    from visiontune.models.deepseek_ocr import build_tiny as build_deepseek
    from visiontune.models.smolvlm import build_tiny

    texts = ["Be brief.", "See and : which is larger?", "The second.", "And this?", "It is a five.", "Which digit?"]
    place = tmp_path_factory.mktemp("chat")
    build_tiny(place / "smolvlm", texts, 0)
    build_deepseek(place / "deepseek", texts, 0, image_size=64)
    return place


def data(side: int, tokens: int = 512) -> Data:
    use = DatasetUse(path="data", content_hash="0")
    return Data(datasets=(use,), prompt="Which digit?", image_longest_edge=side, max_tokens=tokens)


@pytest.fixture(params=["smolvlm", "deepseek"])
def adapter(request, checkpoints) -> Any:
    side = {"smolvlm": 32, "deepseek": 64}[request.param]
    return load_adapter(str(checkpoints / request.param), None, data(side))


@pytest.fixture
def sample(digits) -> Sample:
    files = [digits.sample("train", i).seen.files[0] for i in range(3)]
    turns = TURNS
    return Sample("chat", Images(tuple(files)), Text("It is a five.", "And this?", turns))


def test_every_answer_is_learned_and_nothing_else(adapter, sample):
    encoded = adapter.encoder.encode(sample)
    assert adapter.encoder.answers_of(encoded) == ["The second.", "It is a five."] == list(sample.text.answers)
    told = adapter.encoder.supervision(sample)
    assert told.wrong is None
    ends = (encoded.input_ids == adapter.encoder.end_token_id) & encoded.supervised
    assert int(ends.sum()) == 2
    assert int((encoded.input_ids == adapter.encoder.image_token_id).sum()) == encoded.image_features
    text = "".join(segment["text"] for segment in told.shown["segments"])
    assert text.count("<image>×") == 3
    assert text.index("See") < text.index("<image>×") < text.index("and")


def test_the_ids_are_those_of_the_whole_text_by_the_models_own_template(adapter, sample):
    """Cut at the answers and tokenised apart, the conversation has the ids of one text."""
    encoder, encoded = adapter.encoder, adapter.encoder.encode(sample)
    said = (*sample.text.turns, Turn("assistant", (sample.text.answer,)))
    whole = encoder.processor.apply_chat_template(to_messages(said))
    for image in range(3):
        layout = tuple(encoder.layout(8, 8) for _ in range(3))
        whole = whole.replace(encoder.processor.image_token, f"[{image}]", 1)
        whole = whole.replace(f"[{image}]", encoder.placeholder(layout, image).replace("<", "\0"))
    ids = encoder._ids(whole.replace("\0", "<"))
    assert encoded.input_ids.tolist() == ids[: len(encoded.input_ids)]


def test_it_is_asked_with_what_was_said_before(adapter, sample):
    taught = adapter.encoder.encode(sample)
    asked = adapter.encoder.encode(sample, with_answer=False)
    assert not asked.supervised.any()
    last = len(asked.input_ids)
    assert torch.equal(asked.input_ids, taught.input_ids[:last])
    assert adapter.encoder.tokenizer.decode(taught.input_ids[last:-1]).strip() == "It is a five."
    answers = adapter.generate(adapter.encoder.collate([asked], pad_left=True), 4)
    assert len(answers) == 1


def test_the_loss_of_a_conversation_is_that_of_its_answers(adapter, sample):
    """Summed over all answers; each is predicted from what stands before it, the later turns do not matter."""
    encoder = adapter.encoder
    adapter.network.eval()
    first_turns = Text("The second.", TURNS[1].text, TURNS[:2])
    first = Sample("first", Images(sample.seen.files[:2]), first_turns)
    with torch.no_grad():
        whole, start = (adapter.losses(encoder.collate([encoder.encode(one)]))["text"] for one in (sample, first))
        unlearned = encoder.encode(sample)
        answers = unlearned.supervised.nonzero()[:, 0]
        second = answers[answers >= len(encoder.encode(sample, with_answer=False).input_ids)]
        only = torch.zeros_like(unlearned.supervised)
        only[second] = True
        last = adapter.losses(encoder.collate([replace(unlearned, supervised=only)]))["text"]
    assert torch.allclose(whole, start + last, rtol=1e-5)


def test_a_long_conversation_is_shortened_at_its_end_alone(checkpoints, sample):
    whole = load_adapter(str(checkpoints / "smolvlm"), None, data(32)).encoder.encode(sample)
    asked = load_adapter(str(checkpoints / "smolvlm"), None, data(32)).encoder.encode(sample, with_answer=False)
    room = len(asked.input_ids) + 2
    cut = load_adapter(str(checkpoints / "smolvlm"), None, data(32, room)).encoder.encode(sample)
    assert torch.equal(cut.input_ids, whole.input_ids[:room])
    assert cut.shortened == len(whole.input_ids) - room
    with pytest.raises(DataError, match="images are never cut"):
        load_adapter(str(checkpoints / "smolvlm"), None, data(32, room - 2)).encoder.encode(sample)


def test_lengths_are_known_without_decoding(checkpoints, sample, tmp_path, digits):
    import json

    import visiontune

    rows = []
    for number in range(12):
        files = []
        for i in range(3):
            files.append(f"{number}-{i}.png")
            (tmp_path / files[-1]).write_bytes(digits.sample("train", 3 * number + i).seen.files[0].data)
        chat = (*TURNS, Turn("assistant", ("It is a five.",) if number % 2 else ("Five.",)))
        rows.append({"messages": to_messages(chat), "images": files})
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepared = visiontune.prepare(tmp_path / "chat.jsonl", tmp_path / "out", workers=1)
    encoder = load_adapter(str(checkpoints / "smolvlm"), None, data(32)).encoder
    lengths = encoder.lengths(prepared.index("train"))
    assert lengths.tolist() == [
        len(encoder.encode(prepared.sample("train", i)).input_ids) for i in range(prepared.count("train"))
    ]


def test_images_are_exchanged_place_for_place(adapter, sample, digits):
    """A partner with fewer images shows them again, one with more only the first ones."""
    few = Sample("few", Images((digits.sample("train", 9).seen.files[0],)), Text("x"))
    shown = adapter.encoder.exchanged(sample, few)
    assert torch.equal(shown.input_ids, adapter.encoder.encode(sample).input_ids)
    many = Sample("many", Images(few.seen.files * 5), Text("x"))
    assert torch.equal(adapter.encoder.exchanged(sample, many).pixel_values, shown.pixel_values)


def test_what_a_template_refuses_or_rewrites_is_an_error(checkpoints, sample):
    adapter = load_adapter(str(checkpoints / "smolvlm"), None, data(32))
    encoder: Any = adapter.encoder
    own = encoder.processor.chat_template
    encoder.processor.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + own
    )
    with pytest.raises(DataError, match=r"refuses this conversation \(system, user, assistant, user\): no system"):
        encoder.encode(sample)
    encoder.processor.chat_template = "{{ messages | length }}" + own  # what was said is said in another way later
    with pytest.raises(ModelError, match="rewrites"):
        encoder.encode(sample)


def test_places_and_images_that_do_not_fit_are_an_error(adapter, sample):
    for files in (sample.seen.files[:2], (*sample.seen.files, sample.seen.files[0])):
        with pytest.raises(DataError, match=f"3 image placeholders for {len(files)} images"):
            adapter.encoder.encode(replace(sample, seen=Images(files)))


def test_an_answer_that_holds_the_end_token_is_refused_for_its_rest_would_not_be_learned(adapter, sample):
    end = adapter.encoder.tokenizer.decode([adapter.encoder.end_token_id])
    first = (*TURNS[:2], Turn("assistant", (f"The{end} second.",)), TURNS[3])
    for text in (Text(f"It is{end} a five.", "And this?", TURNS), Text("It is a five.", "And this?", first)):
        with pytest.raises(DataError, match="the token that ends an answer"):
            adapter.encoder.encode(replace(sample, target=text))


def test_a_device_asks_one_question(device_run, sample):
    from visiontune.training.model import load_base

    encoder = load_base(device_run, device_run.recipe, torch.device("cpu")).encoder
    one = Sample("one", Images(sample.seen.files[:1]), Text("Five.", "And?", (*TURNS[2:3], *TURNS[3:])))
    with pytest.raises(DataError, match="one question"):
        encoder.encode(one)
