"""The device contract: the very pixels and the very prompt that the app will make."""

import io
import json
from typing import Any

import jinja2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from visiontune.contract import PROFILES, RAW_PROMPT, DeviceContract, contract_for
from visiontune.errors import ModelError, RecipeError

FILTERS = ["bilinear", "bilinear_antialiased", "bicubic", "lanczos"]
RED, GREY = (255, 0, 0), (9, 8, 7)
TRICKY = "<|x|>{marker}\"'{{ no }}{% no %}\\n ü数😀\t{question}\n\n{'end'}:"


def contract(**fields: Any) -> DeviceContract:
    known = {"profile": "mine", "image_size": 64, "resize": "bilinear", "prompt_form": "raw", "prompt": RAW_PROMPT}
    return DeviceContract(**{**known, "max_new_tokens": 8, **fields})


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def levels(image: Image.Image) -> NDArray[np.int64]:
    return np.asarray(image).astype(np.int64)


# Pictures


@pytest.mark.parametrize(
    ("size", "box"),  # the picture's place on the square: left, top, right, bottom
    [
        ((200, 100), (0, 16, 64, 48)),
        ((100, 200), (16, 0, 48, 64)),
        ((64, 63), (0, 0, 64, 63)),
        ((16, 8), (0, 16, 64, 48)),  # enlarged
        ((1000, 1), (0, 31, 64, 32)),
        ((1, 1000), (31, 0, 32, 64)),
        ((1, 1), (0, 0, 64, 64)),
        ((3, 3), (0, 0, 64, 64)),
    ],
)
@pytest.mark.parametrize("resize", FILTERS)
def test_a_letterboxed_picture_keeps_its_shape_in_the_middle_of_the_filled_square(
    size: tuple[int, int], box: tuple[int, int, int, int], resize: str
) -> None:
    made = contract(resize=resize, fill=GREY).picture(Image.new("RGB", size, RED))
    wanted = Image.new("RGB", (64, 64), GREY)
    wanted.paste(RED, box)
    assert made.mode == "RGB" and np.array_equal(levels(made), levels(wanted))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(FILTERS), st.sampled_from(["letterbox", "stretch"]))
def test_every_picture_becomes_the_square(width: int, height: int, resize: str, fit: str) -> None:
    made = contract(resize=resize, fit=fit).picture(noise(width, height))
    assert made.size == (64, 64) and made.mode == "RGB"


@pytest.mark.parametrize("resize", FILTERS)
@pytest.mark.parametrize("fit", ["letterbox", "stretch"])
def test_a_picture_of_the_right_size_stays_as_it_is_to_the_bit(resize: str, fit: str) -> None:
    picture = noise(64, 64)
    assert np.array_equal(levels(contract(resize=resize, fit=fit).picture(picture)), levels(picture))


def test_bars_are_black_unless_another_colour_is_asked_for() -> None:
    assert levels(contract().picture(Image.new("RGB", (64, 32), RED)))[0, 0].tolist() == [0, 0, 0]
    assert levels(contract(fill=(1, 2, 3)).picture(Image.new("RGB", (64, 32), RED)))[0, 0].tolist() == [1, 2, 3]


def test_a_stretched_picture_fills_the_square() -> None:
    made = contract(fit="stretch", fill=GREY).picture(Image.new("RGB", (200, 100), RED))
    assert np.array_equal(levels(made), levels(Image.new("RGB", (64, 64), RED)))


@pytest.mark.parametrize("fit", ["letterbox", "stretch"])
def test_bgr_exchanges_the_channels_of_picture_and_bars_and_nothing_else(fit: str) -> None:
    plain = contract(fit=fit, fill=GREY).picture(noise(100, 60))
    turned = contract(fit=fit, fill=GREY, colour_order="bgr").picture(noise(100, 60))
    assert np.array_equal(levels(turned), levels(plain)[..., ::-1])


def test_each_resize_filter_gives_other_pixels() -> None:
    made = [levels(contract(resize=resize).picture(noise(300, 200))) for resize in FILTERS]
    for i, one in enumerate(made):
        for other in made[:i]:
            assert np.abs(one - other).mean() > 1


def mixed_of_four(picture: NDArray[np.int64], width: int, height: int) -> NDArray[np.float64]:
    """By the definition: a pixel's centre lies half a pixel in, the four centres around a point share it by distance,
    and beyond the edge stands the edge. (height, width, 3)."""
    made = np.empty((height, width, 3))
    for y in range(height):
        for x in range(width):
            across = (x + 0.5) * picture.shape[1] / width - 0.5
            down = (y + 0.5) * picture.shape[0] / height - 0.5
            mixed = np.zeros(3)
            for row in (np.floor(down), np.floor(down) + 1):
                for column in (np.floor(across), np.floor(across) + 1):
                    share = (1 - abs(down - row)) * (1 - abs(across - column))
                    inside = picture[
                        int(np.clip(row, 0, picture.shape[0] - 1)), int(np.clip(column, 0, picture.shape[1] - 1))
                    ]
                    mixed += share * inside
            made[y, x] = mixed
    return made


@pytest.mark.parametrize("size", [(160, 120), (65, 40), (7, 5), (1, 9), (301, 300)])
def test_bilinear_mixes_the_four_nearest_pixels_whatever_the_scale(size: tuple[int, int]) -> None:
    picture = noise(*size)
    made = levels(contract(image_size=32, fit="stretch").picture(picture))
    # Rounded, not cut off: Skia (Android) rounds too.
    assert np.abs(made - mixed_of_four(levels(picture), 32, 32)).max() < 0.51


@pytest.mark.parametrize("resize", FILTERS[1:])
def test_the_other_filters_are_pillows(resize: str) -> None:
    filters = {"bilinear_antialiased": "BILINEAR", "bicubic": "BICUBIC", "lanczos": "LANCZOS"}
    wanted = noise(160, 120).resize((64, 64), Image.Resampling[filters[resize]])
    assert np.array_equal(levels(contract(resize=resize, fit="stretch").picture(noise(160, 120))), levels(wanted))


def test_a_decoded_photo_is_not_changed_by_showing_it() -> None:
    buffer = io.BytesIO()
    noise(90, 60).save(buffer, "PNG")
    photo = Image.open(buffer).convert("RGB")
    before = photo.tobytes()
    contract().picture(photo)
    assert photo.tobytes() == before


# Prompts


@given(st.text())
def test_the_prompt_holds_marker_and_question_where_they_belong(question: str) -> None:
    if "<__media__>" not in question:
        assert contract().prompt_for(question) == f"<__media__>\n{question}\nAnswer:"


def test_a_question_may_hold_braces_and_the_names_of_places() -> None:
    made = contract(prompt="Q {marker} {x} {question}.").prompt_for("{marker} {question} {0} {{}}")
    assert made == "Q <__media__> {x} {marker} {question} {0} {{}}."


def test_the_marker_in_a_question_is_refused_with_the_marker_to_remove() -> None:
    with pytest.raises(ModelError, match="holds the picture's marker") as caught:
        contract(marker="<img>").prompt_for("what is <img> this?")
    assert "<img>" in (caught.value.fix or "")


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"prompt": "{question}"}, r"\{marker\} exactly once"),
        ({"prompt": "{marker}"}, r"\{question\} exactly once"),
        ({"prompt": "{marker}{marker}{question}"}, r"\{marker\} exactly once"),
        ({"prompt": "{marker}{question}{question}"}, r"\{question\} exactly once"),
        ({"prompt": "{question}{marker}"}, "picture before it asks"),
        ({"prompt": "<__media__>{marker}{question}"}, "not as the marker itself"),
        ({"marker": "<{question}>"}, "marker must not hold"),
    ],
)
def test_a_prompt_that_cannot_work_is_refused_with_what_is_wrong(fields: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        DeviceContract.model_validate({**contract().model_dump(mode="json"), **fields})


def rendered(device: DeviceContract, content: Any) -> str:
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)  # as transformers and llama.cpp set it
    return environment.from_string(device.chat_template()).render(
        messages=[{"role": "user", "content": content}], add_generation_prompt=True
    )


@pytest.mark.parametrize("prompt", [RAW_PROMPT, TRICKY, "{marker}{question}", "\n {marker} \n{question}\n"])
@pytest.mark.parametrize("question", ["What is this?", "a \"b\" {{ c }} {% d %}\n'e' 数😀\n"])
def test_the_chat_template_makes_the_very_prompt(prompt: str, question: str) -> None:
    device = contract(prompt=prompt)
    parts = [{"type": "text", "text": device.marker}, {"type": "text", "text": question}]
    assert rendered(device, parts) == device.prompt_for(question)
    # Without a picture, content is the bare question; or a text in which a program has placed the picture itself.
    before, rest = prompt.split("{marker}")
    between, after = rest.split("{question}")
    assert rendered(device, question) == before + question + after
    assert rendered(device, device.marker + between + question) == device.prompt_for(question)


# The contract as a whole


def test_the_profiles_are_complete_and_unlike() -> None:
    made = {p: contract_for(p, image_size=512, chat_prompt="<|im_start|>{marker}{question}") for p in PROFILES}
    android, desktop = made["android-256"], made["desktop-llama"]
    assert (android.image_size, android.resize, android.prompt) == (256, "bilinear", "{marker}\n{question}\nAnswer:")
    assert (desktop.image_size, desktop.prompt_form, desktop.prompt) == (512, "chat", "<|im_start|>{marker}{question}")


def test_an_unknown_profile_is_refused_with_those_there_are() -> None:
    with pytest.raises(RecipeError, match="no device profile 'iphone'") as caught:
        contract_for("iphone", image_size=256, chat_prompt="{marker}{question}")
    assert caught.value.fix == "profiles: android-256, desktop-llama"


@pytest.mark.parametrize(
    ("field", "value"),
    [("fil", [0, 0, 0]), ("fill", [0, 0, 256]), ("fit", "crop"), ("image_size", 0), ("marker", ""), ("resize", "area")],
)
def test_an_unknown_field_or_value_is_refused_with_its_name_and_what_was_found(field: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=field) as caught:
        DeviceContract.model_validate({**contract().model_dump(mode="json"), field: value})
    assert caught.value.errors()[0]["input"] == (value[-1] if field == "fill" else value)


def test_differences_name_each_field_and_both_values() -> None:
    mine, its = contract(), contract(image_size=128, fill=(1, 1, 1))
    assert mine.differences(mine) == []
    assert mine.differences(its) == ["image_size: 64 became 128", "fill: [0, 0, 0] became [1, 1, 1]"]


@pytest.mark.parametrize("profile", PROFILES)
def test_a_contract_comes_back_equal_from_json(profile: str) -> None:
    made = contract_for(profile, image_size=64, chat_prompt=TRICKY).model_copy(update={"fill": (1, 2, 3)})
    assert DeviceContract.model_validate(json.loads(json.dumps(made.model_dump(mode="json")))) == made
