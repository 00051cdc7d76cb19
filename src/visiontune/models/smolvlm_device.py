"""SmolVLM as llama.cpp runs it on a device: the same pixels, the same tiles, the same prompt, token for token.

llama.cpp shows a picture of exactly its tile size twice, as the only tile of a grid and as the overview, and writes

    <fake_token_around_image><row_1_col_1> TILE blank line <fake_token_around_image><global-img> OVERVIEW <fake_...>

where transformers would show it once. What the app writes around the picture is tokenised piece by piece.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image

from visiontune.contract import ANSWER, DeviceContract
from visiontune.data.turns import Turns, question
from visiontune.errors import DataError, ModelError
from visiontune.models.adapter import Layout
from visiontune.models.chat_tokens import Tokens
from visiontune.models.smolvlm import SmolVLMEncoder, prompt_of
from visiontune.models.text import Encoded
from visiontune.recipe_sections import Data

TILES = 2


class SmolVLMDeviceEncoder(SmolVLMEncoder):
    """Samples to tensors as the device contract says. Raises ModelError for a size that the model cannot take."""

    def __init__(self, processor: Any, data: Data, contract: DeviceContract, config: Any) -> None:
        super().__init__(processor, data)
        self.contract = contract
        self._check_prompt()
        patch, scale, largest = config.vision_config.patch_size, config.scale_factor, config.vision_config.image_size
        size = contract.image_size
        if size % (patch * scale) or size > largest:
            fitting = range(patch * scale, largest + 1, patch * scale)
            raise ModelError(
                f"The model cannot take pictures of {size}x{size} pixels.",
                where="device.image_size",
                fix=f"sizes: {', '.join(map(str, fitting))}",
            )
        self.tokens_per_tile = (size // patch // scale) ** 2
        mean, std = processor.image_processor.image_mean, processor.image_processor.image_std
        self._mean, self._std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
        overview = self._ids("\n\n") + self._ids("<fake_token_around_image><global-img>")
        image = [self.image_token_id] * self.tokens_per_tile
        first = self._ids("<fake_token_around_image><row_1_col_1>")
        self._image_ids = [*first, *image, *overview, *image, *self._ids("<fake_token_around_image>")]

    def _check_prompt(self) -> None:
        """A chat prompt must be what the checkpoint's own template makes: that is what its weights know."""
        if self.contract.prompt_form == "chat" and (made := prompt_of(self.processor)) != self.contract.prompt:
            raise ModelError(
                f"The prompt is not what the chat template of the model makes: {self.contract.prompt!r}",
                where="device.prompt",
                fix=f"--device.prompt {made!r}, or --device.prompt_form raw",
            )

    def see(self, images: Sequence[Image]) -> tuple[dict[str, torch.Tensor], Layout]:
        if len(images) != 1:
            raise self._one_picture(len(images))
        pixels = np.asarray(self.contract.picture(images[0]), np.float32) / 255
        tile = torch.from_numpy(np.ascontiguousarray(((pixels - self._mean) / self._std).transpose(2, 0, 1)))
        mask = torch.ones(TILES, *tile.shape[1:], dtype=torch.long)
        return {"pixel_values": tile.expand(TILES, -1, -1, -1), "pixel_attention_mask": mask}, ((1, 1),)

    def pixels_of(self, encoded: Encoded) -> NDArray[np.uint8]:
        """The picture that the model gets, (height, width, 3) uint8, worked out from the tensor it is given."""
        assert encoded.pixel_values is not None
        tile = encoded.pixel_values[-1].numpy().transpose(1, 2, 0)
        return ((tile * self._std + self._mean) * 255).round().astype(np.uint8)

    def layout(self, height: int, width: int) -> tuple[int, int]:
        return 1, 1

    def views(self, layout: tuple[tuple[int, int], ...]) -> int:
        return TILES

    def label_tokens(self, label: str) -> tuple[int, ...]:
        return self._answer_ids(label)

    def tokenise(self, turns: Turns, answer: str, layout: Layout) -> Tokens:
        if len(layout) != 1:
            raise self._one_picture(len(layout))
        prompt = turns[-1].text
        if turns != question(prompt, 1):
            raise DataError(
                "A device shows a picture and asks one question; a sample is a longer conversation.",
                where=f"device profile {self.contract.profile}",
                fix="train without --for, or leave those samples out",
            )
        before, after = self.contract.prompt_for(prompt).split(self.contract.marker)
        prompt_ids = (*self._ids(before), *self._image_ids, *self._ids(after))
        if prompt_ids.count(self.image_token_id) != TILES * self.tokens_per_tile:
            raise DataError("The question holds an image placeholder.", where=prompt[:80], fix="remove it")
        answer_ids = self._answer_ids(answer)
        learned = (False,) * len(prompt_ids) + (True,) * len(answer_ids)
        return Tokens(prompt_ids + answer_ids, learned, len(prompt_ids))

    def _answer_ids(self, answer: str) -> tuple[int, ...]:
        ids = self._ids(ANSWER.format(answer=answer))
        if self.image_token_id in ids:
            raise DataError("An answer holds an image placeholder.", where=answer[:80], fix="remove it from the text")
        return (*ids, self.end_token_id)

    def _one_picture(self, found: int) -> DataError:
        return DataError(
            f"A device is shown one picture at a time; a sample has {found}.",
            where=f"device profile {self.contract.profile}",
            fix="train without --for, or leave those samples out",
        )
