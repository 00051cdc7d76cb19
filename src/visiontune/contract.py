"""The device contract: what the app will do with a picture and a question, so that training does exactly the same.

Trainer, evaluator and exporter read it as the section `device` of a recipe; the app reads it as contract.json beside
the shipped model. Pictures go through `DeviceContract.picture`, prompts through `DeviceContract.prompt_for`, and
through nothing else.
"""

import json
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from visiontune.errors import ModelError, RecipeError

Level = Annotated[int, Field(ge=0, le=255)]
RUNTIME = "llama.cpp"
RUNTIME_SINCE = "2026.10"  # the first year and month of xllamacpp that was seen to lay out tiles this way

RAW_PROMPT = "{marker}\n{question}\nAnswer:"
ANSWER = " {answer}"

_FILTERS = {
    "bilinear_antialiased": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class DeviceContract(BaseModel):
    """What the device does between a picture and an answer (set by `train --for PROFILE`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    profile: str = Field(description="the profile this began as")
    image_size: Annotated[int, Field(ge=8)] = Field(description="side in pixels of the square picture the model gets")
    fit: Literal["letterbox", "stretch"] = Field(
        default="letterbox", description="keep the shape on a filled square, or pull it to the square"
    )
    fill: tuple[Level, Level, Level] = Field(default=(0, 0, 0), description="colour of the bars (red, green, blue)")
    resize: Literal["bilinear", "bilinear_antialiased", "bicubic", "lanczos"] = Field(
        description="filter of the app's resize; `bilinear` mixes the four nearest pixels, as Android's "
        "createScaledBitmap does, the others are Pillow's"
    )
    colour_order: Literal["rgb", "bgr"] = Field(default="rgb", description="order of the channels the model gets")
    marker: Annotated[str, Field(min_length=1)] = Field(
        default="<__media__>", description="where the app puts the picture into its prompt"
    )
    prompt_form: Literal["raw", "chat"] = Field(
        description="raw: the prompt below and nothing else; chat: it is what the model's chat template makes"
    )
    prompt: Annotated[str, Field(min_length=1)] = Field(
        description="the prompt, with {marker} and {question} where they belong"
    )
    tile_layout: Literal["tile_and_overview"] = Field(
        default="tile_and_overview",
        description="llama.cpp shows a picture of exactly image_size twice, as a tile and as the overview",
    )
    max_new_tokens: Annotated[int, Field(ge=1)] = Field(description="longest answer in tokens")
    sampler: Literal["greedy"] = Field(default="greedy", description="how a token is chosen")
    runtime: Literal["llama.cpp"] = Field(default=RUNTIME, description="what runs the shipped files")
    runtime_version: str = Field(
        default=RUNTIME_SINCE, description="least version of xllamacpp whose llama.cpp lays out tiles this way"
    )

    @model_validator(mode="after")
    def _prompt_has_its_places(self) -> "DeviceContract":
        for place in ("{marker}", "{question}"):
            if self.prompt.count(place) != 1:
                raise ValueError(f"the prompt must hold {place} exactly once")
            if place in self.marker:
                raise ValueError(f"the marker must not hold {place}")
        if self.marker in self.prompt:
            raise ValueError("the prompt must show the picture as {marker}, not as the marker itself")
        if self.prompt.index("{marker}") > self.prompt.index("{question}"):
            raise ValueError("the prompt must show the picture before it asks the question")
        return self

    def picture(self, image: Image.Image) -> Image.Image:
        """The square picture that the model gets: RGB of mode "RGB", (image_size, image_size).

        With `colour_order` "bgr" its first channel holds blue. A picture that has the size already is not resampled.
        """
        side = self.image_size
        if self.fit == "stretch":
            fitted = self._resized(image, side, side)
        else:
            scale = side / max(image.size)
            width, height = (max(1, round(length * scale)) for length in image.size)
            fitted = Image.new("RGB", (side, side), tuple(self.fill))
            fitted.paste(self._resized(image, width, height), ((side - width) // 2, (side - height) // 2))
        if self.colour_order == "rgb":
            return fitted
        return Image.fromarray(np.ascontiguousarray(np.asarray(fitted)[..., ::-1]))

    def _resized(self, image: Image.Image, width: int, height: int) -> Image.Image:
        if image.size == (width, height):
            return image
        if self.resize == "bilinear":
            return _mixed_of_four(image, width, height)
        return image.resize((width, height), _FILTERS[self.resize])

    def prompt_for(self, question: str) -> str:
        """The text that the app hands to the runtime, the marker in it."""
        if self.marker in question:
            raise ModelError(
                "The question holds the picture's marker.", where=question[:80], fix=f"remove '{self.marker}' from it"
            )
        before, after = self.prompt.replace("{marker}", self.marker).split("{question}")
        return before + question + after

    def chat_template(self) -> str:
        """A Jinja template that makes this very prompt of the last message: its picture and its text.

        llama.cpp hands over a single text in which the question follows the picture's place at once (a name that ends
        in `__>`, as the customary `<__media__>` does); others hand over a list of parts.
        """
        before, rest = self.prompt.split("{marker}")
        between, after = rest.split("{question}")
        apart = ""
        if between:
            joined, parted = json.dumps("__>", ensure_ascii=False), json.dumps("__>" + between, ensure_ascii=False)
            apart = f" | replace({parted}, {joined}) | replace({joined}, {parted})"
        before, after = (json.dumps(text, ensure_ascii=False) for text in (before, after))
        return (
            f"{{% set content = messages[-1]['content'] %}}{{{{ {before} }}}}"
            f"{{% if content is string %}}{{{{ content{apart} }}}}{{% else %}}{{% for part in content %}}"
            f"{{{{ part['text']{apart} }}}}{{% endfor %}}{{% endif %}}{{{{ {after} }}}}"
        )

    def differences(self, other: "DeviceContract") -> list[str]:
        """The fields in which the other contract is another one, as "field: mine here, its there"."""
        mine, its = self.model_dump(mode="json"), other.model_dump(mode="json")
        return [f"{name}: {mine[name]!r} became {its[name]!r}" for name in mine if mine[name] != its[name]]


def _mixed_of_four(image: Image.Image, width: int, height: int) -> Image.Image:
    """The image resized by mixing the four nearest pixels, edges repeated, rounded as Skia does. Pillow's own transform
    cuts the fractions off, which makes a picture half a level darker."""
    pixels = np.asarray(image)
    top, bottom, down = _nearest_two(height, image.height)
    left, right, across = _nearest_two(width, image.width)
    upper, lower = pixels[top].astype(np.float32), pixels[bottom].astype(np.float32)
    rows = upper + (lower - upper) * down[:, None, None]
    mixed = rows[:, left] + (rows[:, right] - rows[:, left]) * across[:, None]
    return Image.fromarray((mixed + 0.5).astype(np.uint8))


def _nearest_two(length: int, source: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """For each of `length` pixels the two nearest of `source`, by their centres, and the share of the second."""
    at = np.clip((np.arange(length) + 0.5) * source / length - 0.5, 0, source - 1)
    first = at.astype(np.int64)
    return first, np.minimum(first + 1, source - 1), (at - first).astype(np.float32)


PROFILES: dict[str, dict[str, Any]] = {
    "android-256": {
        "image_size": 256,
        "resize": "bilinear",
        "prompt_form": "raw",
        "prompt": RAW_PROMPT,
        "max_new_tokens": 32,
    },
    # The model's own tile size, the chat template that the model came with: llama-server, llama-mtmd-cli, Ollama.
    "desktop-llama": {"resize": "lanczos", "prompt_form": "chat", "max_new_tokens": 128},
}


def contract_for(profile: str, *, image_size: int, chat_prompt: str) -> DeviceContract:
    """The contract of a profile; the model gives what the profile leaves open. RecipeError for an unknown profile."""
    if profile not in PROFILES:
        raise RecipeError(
            f"There is no device profile '{profile}'.", where="--for", fix=f"profiles: {', '.join(PROFILES)}"
        )
    return DeviceContract(profile=profile, **{"image_size": image_size, "prompt": chat_prompt} | PROFILES[profile])
