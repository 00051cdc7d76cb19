"""DeepSeek-OCR: the first generation (transformers' unlimited_ocr classes), the second (deepseek_ocr2), and tiny ones.

A page is seen as one square view, several pages one after another; the local tiles of the published models stay off.
"""

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from PIL.Image import Image

from visiontune.contract import DeviceContract
from visiontune.errors import RecipeError
from visiontune.models.adapter import Batch, Layout
from visiontune.models.deepseek_ocr_tiny import CHAT_TEMPLATE, LONGEST, PATCHES_A_SIDE, build_first, build_second
from visiontune.models.generative import GenerativeAdapter, load_network, refuse_device
from visiontune.models.generative_encoder import GenerativeEncoder
from visiontune.models.parts import Part
from visiontune.recipe_sections import Data

build_tiny, build_tiny_2 = build_first, build_second

DOWNSAMPLING = 4  # SAM's patches pass two convolutions of stride two
QUERIES = (12, 16)  # a side; the second generation has learned queries for views of 768 and of 1024 pixels
CUTS_INTO_TILES = False
TINY_IMAGE_SIZE, TINY_CONTEXT = 64, LONGEST
NO_TILES = 2**20  # pixels; no page is so large that it would be cut into tiles


def native_image_size(config: Any) -> int:
    """Pixels a side of a page."""
    return int(config.vision_config.sam_config.image_size)


def projector_takes_lora(config: Any) -> bool:
    """Whether there is a linear layer in the projector."""
    return True


def page_tokens(config: Any, side: int) -> int:
    """The image tokens of a view of `side` pixels: see the encoders."""
    unit = config.vision_config.sam_config.patch_size * DOWNSAMPLING
    return _view_tokens(config.model_type == "deepseek_ocr2", side // unit)


def tiny_page_tokens(name: str, side: int) -> int:
    """The same of a tiny model, which cuts views of every size into as many patches."""
    return _view_tokens(name == "tiny/deepseek-ocr2", PATCHES_A_SIDE // DOWNSAMPLING)


def _view_tokens(second: bool, grid: int) -> int:
    return _queries(grid) ** 2 + 1 if second else grid * (grid + 1) + 1


def _queries(grid: int) -> int:
    return next((side for side in QUERIES if grid <= side), QUERIES[-1])


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

    def see(self, images: Sequence[Image]) -> tuple[dict[str, torch.Tensor], Layout]:
        views = [self.processor.image_processor(images=image, return_tensors="pt")["pixel_values"] for image in images]
        return {"pixel_values": torch.cat(views)}, ((1, 1),) * len(images)

    def layout(self, height: int, width: int) -> tuple[int, int]:
        return 1, 1

    def placeholder(self, layout: Layout, image: int) -> str:
        return self.processor.replace_image_token({"num_local_patches": [0], "patches_grid": [[1, 1]]}, 0)

    def features(self, views: int) -> int:
        return views * _view_tokens(False, self.grid)


class DeepseekOcr2Encoder(DeepseekOcrEncoder):
    """The second generation. A view gives as many features as there are learned queries, 144 where SAM delivers at most
    so many patches (768 pixels) and else 256 (1024 pixels), and a separator."""

    def _keep_pages_whole(self, processor: Any) -> None:
        # With `crop_to_patches` off this processor would make the view as large as a tile; its own class turns it on.
        processor.image_processor.tile_size = NO_TILES
        # The processor counts tokens as if a view gave a feature for every 64 pixels, which holds for 768 and 1024.
        # Told the pixels of a query it counts rightly at every size, in the saved folder too.
        processor.downsample_ratio = self.data.image_longest_edge / processor.patch_size / _queries(self.grid)

    def features(self, views: int) -> int:
        return views * _view_tokens(True, self.grid)


class DeepseekOcrAdapter(GenerativeAdapter):
    """DeepSeek-OCR of either generation for the training loop."""

    family = "deepseek_ocr"
    packs = True

    def __init__(self, network: Any, encoder: DeepseekOcrEncoder) -> None:
        super().__init__(network, encoder)
        self.parts = parts_of(network.config)
        self._newlines: bool = network.config.model_type == "unlimited_ocr"  # behind each row of features

    @property
    def expert_layers(self) -> list[torch.nn.Module]:
        network: Any = self.network
        layers = network.model.language_model.layers
        return [layers[layer].mlp.experts for layer in _sparse_layers(network.config)]

    def images_of(self, batch: Batch) -> dict[str, torch.Tensor]:
        if "pixel_values" not in batch.tensors:
            return {}
        pixels, views = batch.tensors["pixel_values"], batch.tensors["views"]
        stands = torch.arange(pixels.shape[1], device=views.device) < views[:, None]
        # (pages of all samples, 3, side, side), in their order; a piece of a batch may have no page
        return {"pixel_values": pixels[stands]} if stands.any() else {}

    def projected(self, features: torch.Tensor) -> list[torch.Tensor]:
        model: Any = self.network.model
        seen = model.multi_modal_projector(features)
        if self._newlines:
            grid = seen.unflatten(1, (-1, int(seen.shape[1] ** 0.5)))  # (views, rows, columns, width)
            newline = model.image_newline.to(grid.dtype).expand(*grid.shape[:2], 1, -1)
            seen = torch.cat([grid, newline], dim=2).flatten(1, 2)
        separator = model.view_separator.to(seen.dtype)[None]
        return [torch.cat([view, separator]) for view in seen]


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


def load(folder: str, revision: str | None, data: Data, device: DeviceContract | None = None) -> DeepseekOcrAdapter:
    """A checkpoint of either generation, weights in float32. Raises as `load_encoder`."""
    encoder = load_encoder(folder, revision, data, device)  # which refuses what is not trained, before weights are read
    return DeepseekOcrAdapter(load_network(folder, revision), encoder)


def load_encoder(
    folder: str, revision: str | None, data: Data, device: DeviceContract | None = None
) -> DeepseekOcrEncoder:
    """The encoder of a checkpoint without its weights. Images are resized by Pillow where the generation has such an
    image processor, which is the second. Raises ModelError for a device, and what the encoder raises."""
    from transformers import AutoConfig, AutoImageProcessor, AutoProcessor

    if device is not None:
        refuse_device(folder)
    processor = AutoProcessor.from_pretrained(folder, revision=revision)
    if processor.chat_template is None:
        processor.chat_template = CHAT_TEMPLATE
    if AutoConfig.from_pretrained(folder, revision=revision).model_type == "unlimited_ocr":
        return DeepseekOcrEncoder(processor, data)
    processor.image_processor = AutoImageProcessor.from_pretrained(folder, revision=revision, backend="pil")
    return DeepseekOcr2Encoder(processor, data)


def chat_prompt(folder: str | None, revision: str | None = None) -> NoReturn:
    """Nothing is made for a device from this family; raises ModelError."""
    refuse_device(folder or "tiny/deepseek-ocr")
