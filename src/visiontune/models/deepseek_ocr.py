"""DeepSeek-OCR: the first generation (transformers' unlimited_ocr classes), the second (deepseek_ocr2), and tiny ones.

A page is seen as one square view, several pages one after another; the local tiles of the published models stay off.
"""

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from PIL.Image import Image

from visiontune.contract import DeviceContract
from visiontune.errors import ModelError, RecipeError
from visiontune.models.adapter import Batch, Encoded
from visiontune.models.deepseek_ocr_tiny import CHAT_TEMPLATE, build_first, build_second
from visiontune.models.generative import GenerativeAdapter, GenerativeEncoder, Layout
from visiontune.models.moe_dropout import MoeDropout, attach
from visiontune.models.parts import Part
from visiontune.recipe import Data

build_tiny, build_tiny_2 = build_first, build_second

DOWNSAMPLING = 4  # SAM's patches pass two convolutions of stride two
QUERIES = (12, 16)  # a side; the second generation has learned queries for views of 768 and of 1024 pixels
CUTS_INTO_TILES = False
TINY_IMAGE_SIZE = 64
NO_TILES = 2**20  # pixels; no page is so large that it would be cut into tiles


def native_image_size(config: Any) -> int:
    """Pixels a side of a page."""
    return int(config.vision_config.sam_config.image_size)


class DeepseekOcrEncoder(GenerativeEncoder):
    """The first generation. A view of S pixels gives g x g features, g = S / 64, a newline behind each row and a
    separator behind the view: g (g + 1) + 1 tokens."""

    def __init__(self, processor: Any, data: Data) -> None:
        super().__init__(processor, data, processor.tokenizer.eos_token)
        side, unit = data.image_longest_edge, processor.patch_size * DOWNSAMPLING
        if data.image_splitting:
            raise RecipeError(
                "DeepSeek-OCR is trained on whole pages here, without local tiles.",
                where="data.image_splitting",
                fix="set data.image_splitting to false; for small print raise data.image_longest_edge",
            )
        if side % unit:
            raise RecipeError(
                f"A page of {side} pixels does not divide into features of {unit} pixels.",
                where="data.image_longest_edge",
                fix=f"use a multiple of {unit}, such as {max(1, round(side / unit)) * unit}",
            )
        self.grid = side // unit
        processor.image_processor.size = {"height": side, "width": side}
        self._keep_pages_whole(processor)

    def _keep_pages_whole(self, processor: Any) -> None:
        # As published for views of 512 and 640 pixels, which are stretched, and of 1024 and 1280, which are padded.
        processor.image_processor.crop_to_patches = False

    def see(self, images: Sequence[Image]) -> tuple[torch.Tensor, None, Layout]:
        views = [self.processor.image_processor(images=image, return_tensors="pt")["pixel_values"] for image in images]
        return torch.cat(views), None, ((1, 1),) * len(images)

    def layout(self, height: int, width: int) -> tuple[int, int]:
        return 1, 1

    def placeholder(self, layout: Layout, image: int) -> str:
        return self.processor.replace_image_token({"num_local_patches": [0], "patches_grid": [[1, 1]]}, 0)

    def features(self, views: int) -> int:
        return views * (self.grid * (self.grid + 1) + 1)

    def side_by_side(self, encoded: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        """Pages (batch, most pages, 3, side, side), those that a sample has not all zero, and how many it has."""
        pages = torch.tensor([0 if one.pixel_values is None else len(one.pixel_values) for one in encoded])
        side = self.data.image_longest_edge
        pixels = torch.zeros(len(encoded), int(pages.max()), 3, side, side)
        for row, one in enumerate(encoded):
            if one.pixel_values is not None:
                pixels[row, : len(one.pixel_values)] = one.pixel_values
        return {"pixel_values": pixels, "pages": pages}


class DeepseekOcr2Encoder(DeepseekOcrEncoder):
    """The second generation. A view gives as many features as there are learned queries, 144 where SAM delivers at most
    so many patches (768 pixels) and else 256 (1024 pixels), and a separator."""

    def _keep_pages_whole(self, processor: Any) -> None:
        # With `crop_to_patches` off this processor would make the view as large as a tile; its own class turns it on.
        processor.image_processor.tile_size = NO_TILES
        self.queries = next((side for side in QUERIES if self.grid <= side), QUERIES[-1])
        # The processor counts tokens as if a view gave a feature for every 64 pixels, which holds for 768 and 1024.
        # Told the pixels of a query it counts rightly at every size, in the saved folder too.
        processor.downsample_ratio = self.data.image_longest_edge / processor.patch_size / self.queries

    def features(self, views: int) -> int:
        return views * (self.queries**2 + 1)


class DeepseekOcrAdapter(GenerativeAdapter):
    """DeepSeek-OCR of either generation for the training loop."""

    family = "deepseek_ocr"

    def __init__(self, network: Any, encoder: DeepseekOcrEncoder) -> None:
        super().__init__(network, encoder)
        self.parts = parts_of(network.config)

    def inputs(self, batch: Batch) -> dict[str, torch.Tensor]:
        inputs = super().inputs(batch)
        if "pages" in inputs:
            pages, pixels = inputs.pop("pages"), inputs.pop("pixel_values")
            stands = torch.arange(pixels.shape[1], device=pages.device) < pages[:, None]
            if stands.any():  # a piece of a batch may have no page
                inputs["pixel_values"] = pixels[stands]  # (pages of all samples, 3, side, side), in their order
        return inputs


def parts_of(config: Any) -> tuple[Part, ...]:
    """The parts of a model, from its config: which layers have experts differs between checkpoints."""
    between = ("model.view_separator",)
    if config.model_type == "unlimited_ocr":
        between += ("model.image_newline",)
    experts = [f"model.language_model.layers.{layer}.mlp.experts" for layer in _sparse_layers(config)]
    return (
        Part("vision_encoder", ("model.vision_tower",)),
        Part("projector", ("model.multi_modal_projector",), loose=between),
        Part(
            "language_model",
            tuple(f"model.language_model.{module}" for module in ("layers", "norm", "rotary_emb")),
            stacked=tuple(f"{path}.{name}" for path in experts for name in ("gate_up_proj", "down_proj")),
        ),
        Part("embeddings", ("model.language_model.embed_tokens", "lm_head")),
    )


def _sparse_layers(config: Any) -> list[int]:
    return [layer for layer, kind in enumerate(config.text_config.mlp_layer_types) if kind == "sparse"]


def load(
    folder: str,
    revision: str | None,
    data: Data,
    device: DeviceContract | None = None,
    *,
    moe_dropout: MoeDropout | None = None,
) -> DeepseekOcrAdapter:
    """A checkpoint of either generation, weights in float32. Images are resized by Pillow where the generation has such
    an image processor, which is the second. Raises ModelError for a device, and what the encoder raises."""
    from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

    if device is not None:
        _refuse_device(folder)
    network: Any = AutoModelForImageTextToText.from_pretrained(
        folder, revision=revision, dtype=torch.float32, use_safetensors=True
    )
    processor = AutoProcessor.from_pretrained(folder, revision=revision)
    if processor.chat_template is None:
        processor.chat_template = CHAT_TEMPLATE
    if moe_dropout is not None:
        layers = network.model.language_model.layers
        attach(moe_dropout, [layers[layer].mlp.experts for layer in _sparse_layers(network.config)])
    if network.config.model_type == "unlimited_ocr":
        return DeepseekOcrAdapter(network, DeepseekOcrEncoder(processor, data))
    processor.image_processor = AutoImageProcessor.from_pretrained(folder, revision=revision, backend="pil")
    return DeepseekOcrAdapter(network, DeepseekOcr2Encoder(processor, data))


def chat_prompt(folder: str | None, revision: str | None = None) -> NoReturn:
    """Nothing is made for a device from this family; raises ModelError."""
    _refuse_device(folder or "tiny/deepseek-ocr")


def _refuse_device(name: str) -> NoReturn:
    raise ModelError(
        "DeepSeek-OCR models are not made for a device.",
        where=name,
        fix="train without a device profile, or choose a SmolVLM for the device",
    )
