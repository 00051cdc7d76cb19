"""Models of transformers' image-text-to-text classes whose images are rows of one kind of token: Qwen2.5-VL and
Qwen3-VL, which take images of any shape and place tokens in three dimensions, and Gemma 3.

How an image becomes tensors and text is asked of the checkpoint's own processor. What is read off it (the frame around
an image's tokens, how many there are for a size) is tried on images of several shapes before it is used.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from PIL.Image import Image, fromarray

from visiontune.contract import DeviceContract
from visiontune.errors import DataError, ModelError, RecipeError
from visiontune.models.adapter import Batch, Layout
from visiontune.models.generative import GenerativeAdapter, load_network, refuse_device
from visiontune.models.generative_encoder import GenerativeEncoder
from visiontune.models.image_text_tiny import (
    LONGEST,
    MERGED,
    TOKENS_A_SIDE,
    build_gemma3,
    build_qwen2_5_vl,
    build_qwen3_vl,
)
from visiontune.models.parts import Part
from visiontune.recipe_sections import Data

build_tiny_qwen2_5_vl, build_tiny_qwen3_vl, build_tiny_gemma3 = build_qwen2_5_vl, build_qwen3_vl, build_gemma3

CUTS_INTO_TILES = False
TINY_IMAGE_SIZE, TINY_CONTEXT = 32, LONGEST
LARGEST = 1024  # pixels a side of a square of as many pixels as an image of any shape may have, where nobody says more
PROBES = ((64, 64), (200, 100), (90, 310))  # (height, width) in pixels


@dataclass(frozen=True)
class Kind:
    """What differs between the classes. `vision` and `projector` are paths of modules; `types` is what the network
    calls the marks of image tokens; `any_shape`: images keep their shape, and tokens have places in three dimensions;
    `linear`: the projector is made of linear layers.
    """

    vision: tuple[str, ...]
    projector: tuple[str, ...]
    types: str
    any_shape: bool
    linear: bool = True


_QWEN2_5 = tuple(f"model.visual.{name}" for name in ("patch_embed", "rotary_pos_emb", "blocks"))
KINDS = {
    "qwen2_5_vl": Kind(_QWEN2_5, ("model.visual.merger",), "mm_token_type_ids", True),
    "qwen3_vl": Kind(
        (*_QWEN2_5, "model.visual.pos_embed"),
        ("model.visual.merger", "model.visual.deepstack_merger_list"),
        "mm_token_type_ids",
        True,
    ),
    "gemma3": Kind(("model.vision_tower",), ("model.multi_modal_projector",), "token_type_ids", False, linear=False),
}


def parts_of(kind: Kind) -> tuple[Part, ...]:
    """The parts of a model."""
    language = tuple(f"model.language_model.{name}" for name in ("layers", "norm", "rotary_emb"))
    return (
        Part("vision_encoder", kind.vision),
        Part("projector", kind.projector),
        Part("language_model", language),
        Part("embeddings", ("model.language_model.embed_tokens", "lm_head")),
    )


def native_image_size(config: Any) -> int:
    """Pixels a side of the square that an image becomes, or that has as many pixels as it may have."""
    return LARGEST if KINDS[config.model_type].any_shape else int(config.vision_config.image_size)


def projector_takes_lora(config: Any) -> bool:
    """Whether there is a linear layer in the projector."""
    return KINDS[config.model_type].linear


def page_tokens(config: Any, side: int) -> int:
    """The image tokens of a square of `side` pixels."""
    if not KINDS[config.model_type].any_shape:
        return int(config.mm_tokens_per_image)
    vision = config.vision_config
    return max(1, side // (vision.patch_size * vision.spatial_merge_size)) ** 2


def tiny_page_tokens(name: str, side: int) -> int:
    """The same of a tiny model."""
    return (TOKENS_A_SIDE if name == "tiny/gemma3" else side // MERGED) ** 2


class ImageTextEncoder(GenerativeEncoder):
    """Samples to tensors through the checkpoint's own processor and chat template, images resized by Pillow.

    A layout is (image tokens, patches or views) of each image. Of models for any shape `data.image_longest_edge` is the
    side of a square that has as many pixels as an image may have.
    """

    def __init__(self, processor: Any, data: Data, config: Any) -> None:
        super().__init__(processor, data, _end_token(processor))
        self.kind = KINDS[config.model_type]
        self.image_token_id = config.image_token_id
        side = data.image_longest_edge
        if data.image_splitting:
            raise RecipeError(
                f"Models of type '{config.model_type}' see whole images here.",
                where="data.image_splitting",
                fix="set data.image_splitting to false; for small print raise data.image_longest_edge",
            )
        if self.kind.any_shape:
            least = processor.image_processor.size["shortest_edge"]
            processor.image_processor.size = {"shortest_edge": min(least, side**2), "longest_edge": side**2}
        elif side != config.vision_config.image_size:
            raise RecipeError(
                f"The vision encoder takes images of {config.vision_config.image_size} pixels, not {side}.",
                where="data.image_longest_edge",
                fix=f"set it to {config.vision_config.image_size}",
            )
        self._before, self._after, self._patches_a_token = self._tried(config.model_type)

    def see(self, images: Sequence[Image]) -> tuple[dict[str, torch.Tensor], Layout]:
        try:
            seen = self.processor.image_processor(images=list(images), return_tensors="pt")
        except ValueError as error:  # a strip that no model reads
            raise DataError(f"the model's image processor refuses an image: {error}", fix="take it out") from error
        layout = tuple(self.layout(image.height, image.width) for image in images)
        return {name: seen[name] for name in ("pixel_values", "image_grid_thw") if name in seen}, layout

    def layout(self, height: int, width: int) -> tuple[int, int]:
        try:
            counted = self.processor._get_num_multimodal_tokens(image_sizes=[[height, width]])
        except ValueError as error:
            found = f"the model's image processor refuses an image of {width} x {height} pixels: {error}"
            raise DataError(found, fix="take it out") from error
        return int(counted.num_image_tokens[0]), int(counted.num_image_patches[0])

    def placeholder(self, layout: Layout, image: int) -> str:
        token = self.tokenizer.convert_ids_to_tokens(self.image_token_id)
        return self._before + token * layout[image][0] + self._after

    def features(self, views: int) -> int:
        return round(views / self._patches_a_token)

    def views(self, layout: Layout) -> int:
        return sum(patches for _, patches in layout)

    def collate(self, encoded: Sequence[Any], *, pad_left: bool = False) -> Batch:
        batch = super().collate(encoded, pad_left=pad_left)
        batch.tensors[self.kind.types] = (batch.tensors["input_ids"] == self.image_token_id).long()
        return batch

    def _tried(self, model_type: str) -> tuple[str, str, float]:
        """What frames an image's tokens, and how many patches there are for a token; ModelError where images of several
        shapes do not agree on it, or not with what is counted without looking."""
        token, found = self.tokenizer.convert_ids_to_tokens(self.image_token_id), set()
        for height, width in PROBES:
            image = fromarray(np.zeros((height, width, 3), np.uint8))
            seen = self.processor.image_processor(images=image, return_tensors="pt")
            text: str = self.processor.replace_image_token(seen, 0)
            tokens, patches = self.layout(height, width)
            before, _, after = text.partition(token * tokens)
            fits = text == before + token * tokens + after and token not in before + after
            if not tokens or not fits or len(seen["pixel_values"]) != patches:
                raise ModelError(
                    f"For an image of {width} x {height} pixels the processor of this '{model_type}' counts {tokens} "
                    f"tokens and {patches} patches, and makes {text.count(token)} and {len(seen['pixel_values'])}.",
                    fix="use a checkpoint whose processor is that of transformers",
                )
            found.add((before, after, patches / tokens))
        if len(found) > 1:
            raise ModelError(f"The processor of this '{model_type}' frames images in several ways.")
        return found.pop()


class ImageTextAdapter(GenerativeAdapter):
    """Such a model for the training loop."""

    family = "image_text"
    feature_parts = ()  # the work of the vision encoder is not kept

    def __init__(self, network: Any, encoder: ImageTextEncoder) -> None:
        super().__init__(network, encoder)
        self.kind = encoder.kind
        self.packs = self.kind.any_shape
        self.token_tensors = ("input_ids", self.kind.types)
        self.parts = parts_of(self.kind)

    def inputs(self, batch: Batch) -> dict[str, Any]:
        inputs = super().inputs(batch)
        return inputs | {self.kind.types: batch.tensors[self.kind.types]}

    def images_of(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The patches (or views) of all samples, one behind the other, and the grids of their images."""
        if "pixel_values" not in batch.tensors:
            return {}
        pixels, views = batch.tensors["pixel_values"], batch.tensors["views"]
        stands = torch.arange(pixels.shape[1], device=views.device) < views[:, None]
        if not stands.any():  # a piece of a batch may have no image
            return {}
        images = {"pixel_values": pixels[stands]}
        if "image_grid_thw" in batch.tensors:
            grids = batch.tensors["image_grid_thw"]
            images["image_grid_thw"] = grids[grids.prod(-1) > 0]
        return images

    def places(self, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.kind.any_shape:
            return super().places(inputs)
        network: Any = self.network
        if "image_grid_thw" not in inputs:
            places, behind = super().places(inputs)
            return places.expand(3, -1, -1), behind
        mask, grids, types = inputs["attention_mask"], inputs["image_grid_thw"], inputs[self.kind.types]
        places, shift = network.model.get_rope_index(
            inputs["input_ids"], image_grid_thw=grids, attention_mask=mask, mm_token_type_ids=types
        )
        return places, mask.sum(-1, keepdim=True) + shift


def _end_token(processor: Any) -> str:
    """The token that closes an answer, as the chat template writes it; else the end of a text."""
    tokenizer, template = processor.tokenizer, processor.apply_chat_template
    question = {"role": "user", "content": [{"type": "text", "text": "a"}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "b"}]}
    behind = template([question, answer])[len(template([question], add_generation_prompt=True)) :]
    ids = tokenizer(behind, add_special_tokens=False)["input_ids"]
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    end = next((i for i in ids if i in special), tokenizer.eos_token_id)
    return tokenizer.convert_ids_to_tokens(end)


def load(folder: str, revision: str | None, data: Data, device: DeviceContract | None = None) -> ImageTextAdapter:
    """A checkpoint, weights in float32. Raises as `load_encoder`."""
    encoder = load_encoder(folder, revision, data, device)  # which refuses what is not trained, before weights are read
    return ImageTextAdapter(load_network(folder, revision), encoder)


def load_encoder(
    folder: str, revision: str | None, data: Data, device: DeviceContract | None = None
) -> ImageTextEncoder:
    """The encoder of a checkpoint without its weights, images resized by Pillow. Raises ModelError for a device or
    without a chat template, and what the encoder raises."""
    from transformers import AutoConfig, AutoImageProcessor, AutoProcessor

    if device is not None:
        refuse_device(folder)
    processor = AutoProcessor.from_pretrained(folder, revision=revision)
    if processor.chat_template is None:
        raise ModelError(
            "The checkpoint has no chat template, so nobody knows how it is asked.",
            where=folder,
            fix="use the checkpoint that was tuned on instructions (-Instruct, -it)",
        )
    processor.image_processor = AutoImageProcessor.from_pretrained(folder, revision=revision, backend="pil")
    return ImageTextEncoder(processor, data, AutoConfig.from_pretrained(folder, revision=revision))


def chat_prompt(folder: str | None, revision: str | None = None) -> NoReturn:
    """Nothing is made for a device from these families; raises ModelError."""
    refuse_device(folder or "tiny/qwen-vl")
