"""What a model would make of documents, and pages fitted to it: counted by its own tokenizer and its own encoder."""

import json
from pathlib import Path
from typing import Any

import pytest

import visiontune
from visiontune.data.dataset import Dataset
from visiontune.data.pages import lay_out
from visiontune.data.split import SPLITS
from visiontune.demo_shapes import CLASSES, draw_source
from visiontune.errors import DataError, ModelError
from visiontune.machine import hardware
from visiontune.models.load import load_adapter, page_tokens
from visiontune.training.plan import derive
from visiontune.training.reading import page_side

ENGLISH = (Path(__file__).parents[1] / "data/udhr/en.txt").read_text("utf-8")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three hundred parts of the declaration."""
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    rows = [{"id": f"{i:03d}", "text": ENGLISH[7 * i : 7 * i + 2000 + i], "summary": str(i)} for i in range(300)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SmolVLM that sees squares of 256 pixels and whose tokenizer was trained on the declaration."""
    from visiontune.models.smolvlm import build_tiny

    folder = tmp_path_factory.mktemp("model")
    build_tiny(folder, ENGLISH.splitlines(), 1, width=64, layers=1, image_size=256)
    return folder


def test_tokens_are_counted_by_the_models_own_tokenizer_and_encoder_on_two_hundred_documents(
    texts: Path, checkpoint: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    found = visiontune.inspect(texts, model=str(checkpoint))
    reading = found.reading
    assert reading is not None and found.documents is not None
    assert (reading.side, reading.page_tokens) == (256, page_tokens(str(checkpoint), 256))
    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
    chosen = [json.loads(line)["text"] for line in texts.read_text().splitlines()]
    chosen = [chosen[k * 300 // 200] for k in range(200)]
    assert reading.sampled == 200
    assert reading.text_tokens == sum(len(tokenizer(text, add_special_tokens=False).input_ids) for text in chosen)
    spec, fonts = found.rendering.spec, found.rendering.fonts()  # pyright: ignore[reportOptionalMemberAccess]
    assert reading.vision_tokens == reading.page_tokens * sum(len(lay_out(text, spec, fonts)) for text in chosen)
    assert found.to_json()["documents"]["model"]["ratio"] == round(reading.text_tokens / reading.vision_tokens, 2)
    visiontune.prepare(texts, tmp_path / "data")
    of_dataset = visiontune.inspect(tmp_path / "data", model=str(checkpoint)).reading
    assert of_dataset is not None and (of_dataset.side, of_dataset.sampled) == (256, 200)


def test_letters_that_the_model_cannot_tell_apart_are_an_error_until_the_fix_is_followed(
    texts: Path, checkpoint: Path
) -> None:
    (fault,) = [f for f in visiontune.inspect(texts, limit=3, model=str(checkpoint)).faults if "illegible" in f.code]
    assert fault.severity == "error" and "on the 256 pixels" in fault.found
    size = int(fault.fix.split("--font-size ")[1].split()[0])
    for font_size, expected in ((size, False), (size - 1, True)):
        found = visiontune.inspect(texts, limit=3, pages={"font_size": font_size}, model=str(checkpoint))
        assert ("illegible-pages" in [one.code for one in found.faults]) == expected


def test_of_a_tiny_model_the_vision_side_is_told_alone(texts: Path) -> None:
    reading = visiontune.inspect(texts, limit=3, model="tiny/deepseek-ocr2").reading
    assert reading is not None and reading.ratio is None and reading.side == 576  # as large as the letters need
    assert reading.page_tokens == page_tokens("tiny/deepseek-ocr2", 576)
    with pytest.raises(ModelError, match="no tokenizer"):
        visiontune.prepare(texts, "unused", ratio=2, model="tiny/deepseek-ocr")
    with pytest.raises(ModelError, match="no 'tiny/other'"):
        visiontune.inspect(texts, limit=3, model="tiny/other")


def test_a_tiny_model_is_asked_about_the_page_that_training_gives_it(texts: Path, tmp_path: Path) -> None:
    from visiontune.machine import hardware
    from visiontune.training.plan import derive

    for side in (128, 300, 1024):
        data = visiontune.prepare(texts, tmp_path / str(side), limit=9, pages={"width": side, "height": side})
        recipe = derive([data], [None], "tiny/deepseek-ocr", hardware("cpu"))
        assert data.info.pages is not None
        assert page_side("tiny/deepseek-ocr", data.info.pages, data.fonts()) == recipe.data.image_longest_edge


@pytest.fixture
def chats(tmp_path: Path, digits: Dataset) -> Path:
    """Forty conversations about one or two digits each."""
    rows = []
    for number in range(40):
        files = [f"{number}-{i}.png" for i in range(1 + number % 2)]
        for i, name in enumerate(files):
            (tmp_path / name).write_bytes(digits.sample("train", 2 * number + i).seen.files[0].data)  # type: ignore[union-attr]
        said = ["<image>" * len(files) + "What is it?", "A digit.", "Which?", f"It is number {number}."]
        messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
        rows.append({"id": f"{number:02d}", "images": files, "messages": messages})
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_tokens_of_images_and_texts_are_those_that_training_will_see(
    chats: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    found = visiontune.inspect(chats, model=str(tiny_checkpoint))
    assert found.faults == []
    assert found.kind == "conversation"
    reading = found.text_reading
    assert reading is not None
    data = visiontune.prepare(chats, tmp_path / "data", workers=1)
    recipe = derive([data], [None], str(tiny_checkpoint), hardware("cpu"))
    chosen = (recipe.data.image_longest_edge, recipe.data.image_splitting, recipe.data.max_tokens)
    assert (reading.image_longest_edge, reading.image_splitting, reading.max_tokens) == chosen
    encoder = load_adapter(str(tiny_checkpoint), None, recipe.data).encoder
    samples = [data.sample(split, i) for split in SPLITS for i in range(data.count(split))]
    encoded = [encoder.encode(sample) for sample in samples]
    lengths = [len(one.input_ids) for one in encoded]
    assert (reading.tokens.min, reading.tokens.max) == (min(lengths), max(lengths))
    assert reading.image_tokens.max == max(one.image_features for one in encoded) == 2 * reading.image_tokens.min
    of_dataset = visiontune.inspect(data.path, model=str(tiny_checkpoint))
    assert of_dataset.text_reading == reading
    assert found.to_json()["model"]["tokens"]["max"] == max(lengths)


def test_samples_that_the_model_cannot_read_whole_are_told_before_training(
    chats: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in chats.read_text().splitlines()]
    rows[3]["messages"][-1]["content"] = "again and again " * 600
    rows[5]["messages"][0]["content"] += " and why? " * 900
    chats.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {fault.code: fault for fault in visiontune.inspect(chats, model=str(tiny_checkpoint)).faults}
    assert {code: (fault.severity, fault.where) for code, fault in found.items()} == {
        "longer-than-the-model-reads": ("error", "05"),
        "shortened-answers": ("warning", "03"),
    }
    assert "2048 tokens" in found["shortened-answers"].found
    data = visiontune.prepare(chats, tmp_path / "data", workers=1)
    with pytest.raises(DataError, match="images are never cut"):
        visiontune.train(data.path, model=str(tiny_checkpoint), out=tmp_path / "run", overrides={"schedule.steps": 1})


def test_objects_are_not_read_and_tiny_models_have_no_tokenizer(
    chats: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="no tokenizer before it is built"):
        visiontune.inspect(chats, model="tiny/smolvlm")
    scenes = draw_source(tmp_path / "scenes", 6, size=(64, 64), classes=CLASSES[:1], seed=0, masks=False)
    with pytest.raises(DataError, match="here are objects"):
        visiontune.inspect(scenes, model=str(tiny_checkpoint))


def test_pages_are_fitted_to_a_ratio_and_what_was_chosen_is_said(
    texts: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"model": str(checkpoint), "pages": {"width": 256, "height": 256}, "limit": 40}
    wanted = 0.9 * legible_ratio(texts, checkpoint)
    dataset = visiontune.prepare(texts, tmp_path / "data", ratio=wanted, **options)
    said = capsys.readouterr().err
    assert dataset.info.pages is not None
    size = dataset.info.pages.font_size
    assert f"font size {size} px" in said and "vision tokens =" in said
    reading = visiontune.inspect(tmp_path / "data", model=str(checkpoint)).reading
    assert reading is not None and reading.ratio is not None and reading.ratio >= wanted and reading.x_height >= 6
    larger = {**options["pages"], "font_size": size + 1}
    other = visiontune.inspect(texts, limit=40, pages=larger, model=str(checkpoint)).reading
    assert other is not None and other.ratio is not None and other.ratio < wanted
    again = visiontune.prepare(texts, tmp_path / "data", ratio=wanted, **options)
    assert again.info == dataset.info
    for ratio, why in ((1000, "smallest size"), (1.5 * wanted, "run together")):
        with pytest.raises(DataError, match=why):
            visiontune.prepare(texts, tmp_path / "no", ratio=ratio, **options)


def legible_ratio(texts: Path, checkpoint: Path) -> float:
    """The ratio at a font size of 12, whose letters are legible as drawn."""
    pages = {"width": 256, "height": 256, "font_size": 12}
    reading = visiontune.inspect(texts, limit=40, pages=pages, model=str(checkpoint)).reading
    assert reading is not None and reading.ratio is not None
    return reading.ratio


def test_a_ratio_and_its_model_come_together_and_without_a_font_size(texts: Path, checkpoint: Path) -> None:
    options: list[dict[str, Any]] = [{"ratio": 2}, {"model": str(checkpoint)}]
    for one in options:
        with pytest.raises(DataError, match="without the other"):
            visiontune.prepare(texts, "unused", **one)
    with pytest.raises(DataError, match="decides the font size"):
        visiontune.prepare(texts, "unused", ratio=2, model=str(checkpoint), pages={"font_size": 20})
