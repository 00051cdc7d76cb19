"""SAM (Kirillov et al. 2023) and SAM 2 (Ravi et al. 2024): masks of objects whose boxes are told; and tiny ones to try.

One mask for each box: a box says which object is meant, and the masks for ambiguous points are left alone.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional

from visiontune.data.annotations import masks as coco_masks
from visiontune.data.objects import Objects, Rle
from visiontune.data.sample import Sample
from visiontune.errors import ModelError
from visiontune.models.adapter import Batch, Features
from visiontune.models.objects import EncodedObjects, ObjectAdapter, ObjectEncoder, to_pixels
from visiontune.models.parts import Part
from visiontune.models.sam_loss import TERMS, object_losses
from visiontune.models.sam_tiny import build_sam, build_sam2
from visiontune.recipe import ObjectChoices
from visiontune.recipe_sections import Data

CUTS_INTO_TILES = False
TINY_IMAGE_SIZE = 64
build_tiny, build_tiny_2 = build_sam, build_sam2

LATE_SHARE = 3  # one in so many layers of the vision encoder, the last ones, are its late part
MOST_LEARNED = 16  # objects of an image that are learned each time it is seen: each costs a pass of the mask decoder
DRAWN_AT_ONCE = 32
CELLS = 4  # mask pixels a side of what the vision encoder sees as one token


def native_image_size(config: Any) -> int:
    """Pixels a side of the square that the checkpoint takes; it takes no other."""
    return int(config.prompt_encoder_config.image_size)


class SamEncoder(ObjectEncoder):
    """Images by the checkpoint's own processor, and boxes as prompts.

    While training, a sample's boxes are moved by `objects.prompt_jitter`, and at most MOST_LEARNED of its objects that
    have masks are there, both as the augmentation's number says.
    """

    def __init__(self, processor: Any, data: Data, objects: ObjectChoices, config: Any) -> None:
        super().__init__(processor, data, objects)
        self.side = native_image_size(config)
        self.patches = self.side // config.prompt_encoder_config.patch_size
        self.keeps_proportions = "longest_edge" in processor.image_processor.size  # SAM 2 makes squares of all

    def see(self, image: Image) -> tuple[Tensor, tuple[int, int]]:
        pixels = self.processor.image_processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels, self.picture(image.height, image.width)

    def picture(self, height: int, width: int) -> tuple[int, int]:
        if not self.keeps_proportions:
            return self.side, self.side
        scale = self.side / max(height, width)
        return int(height * scale + 0.5), int(width * scale + 0.5)

    def mask_size(self) -> tuple[int, int]:
        """That of the whole square, of which masks are made first."""
        return self.patches * CELLS, self.patches * CELLS

    def _masks(self, objects: Objects) -> tuple[Tensor | None, Tensor]:
        if self.keeps_proportions:
            # A border inside a cell stays there: rounded to whole cells, all masks would be stretched.
            objects = replace(objects, masks=tuple(mask and _squared(mask) for mask in objects.masks))
        return super()._masks(objects)

    def tokens(self, height: int, width: int) -> int:
        return self.patches**2

    def loss_weights(self, encoded: Sequence[EncodedObjects]) -> dict[str, float]:
        objects = sum(float((one.has_mask & ~one.crowd).sum()) for one in encoded)
        return dict.fromkeys(TERMS, objects)

    def encode(
        self,
        sample: Sample,
        *,
        with_answer: bool = True,
        augmentation: int | None = None,
        features: Features | None = None,
    ) -> EncodedObjects:
        how: dict[str, Any] = {"with_answer": with_answer, "augmentation": augmentation, "features": features}
        if augmentation is None or not with_answer or not isinstance(sample.target, Objects):
            return super().encode(sample, **how)
        generator = np.random.default_rng([augmentation, 1])  # not the numbers that the images are augmented by
        encoded = super().encode(replace(sample, target=_some(sample.target, generator)), **how)
        moves = generator.uniform(-1, 1, (len(encoded.boxes), 4)) * self.choices.prompt_jitter
        return replace(encoded, boxes=_moved(encoded.boxes, torch.from_numpy(moves).float()))

    def whole(self, logits: Tensor, picture: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Mask logits (n, height, width) without their padding, at the image's size: (n, *size)."""
        grown = logits[:, None]
        if self.keeps_proportions:
            grown = functional.interpolate(grown, (self.side, self.side), mode="bilinear")
            grown = grown[..., : picture[0], : picture[1]]
        return functional.interpolate(grown, size, mode="bilinear")[:, 0]


class SamAdapter(ObjectAdapter):
    """SAM for the training loop."""

    family = "sam"
    terms = TERMS
    prompted = True
    feature_parts = ("vision_encoder", "vision_encoder_late")
    encoder: SamEncoder  # pyright: ignore[reportIncompatibleVariableOverride]  # set once

    def __init__(self, network: Any, encoder: SamEncoder) -> None:
        self.network = network
        self.encoder = encoder  # pyright: ignore[reportIncompatibleVariableOverride]
        self.parts = _parts("vision_encoder", "layers", len(network.vision_encoder.layers), ("pos_embed",))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        tensors = batch.tensors
        learned = tensors["present"] & ~tensors["crowd"] & tensors["has_mask"]
        sums = torch.zeros(len(self.terms), len(batch.ids), device=learned.device)
        if not learned.any():
            return dict(zip(self.terms, sums, strict=True))
        embeddings, rows = self._embeddings(self._seen(batch)), []
        for row, prompts in enumerate(_corners(tensors["boxes"], tensors["picture"])):
            total = sums[:, row]
            for places in _cut(learned[row]):
                logits, overlaps = self._drawn(embeddings, row, prompts[places])
                total = total + object_losses(logits, tensors["masks"][row, places].float() / 255, overlaps).sum(dim=1)
            rows.append(total)
        return dict(zip(self.terms, torch.stack(rows, dim=1), strict=True))

    @torch.no_grad()
    def find(self, batch: Batch) -> list[Objects]:
        tensors = batch.tensors
        asked = tensors["present"] & ~tensors["crowd"]
        embeddings = self._embeddings(self._seen(batch)) if asked.any() else None
        found = []
        for row, prompts in enumerate(_corners(tensors["boxes"], tensors["picture"])):
            masks, scores = [], [torch.zeros(0)]
            picture, size = _pair(tensors["picture"][row]), _pair(tensors["size"][row])
            for places in _cut(asked[row]):
                logits, overlaps = self._drawn(embeddings, row, prompts[places])
                scores.append(overlaps.clamp(0, 1).cpu())
                # One at a time: the masks of an image with hundreds of objects do not fit in memory.
                for one in logits.split(1):
                    masks.append(coco_masks.from_pixels((self.encoder.whole(one, picture, size)[0] > 0).cpu().numpy()))
            score = torch.cat(scores).double().numpy()
            classes = tensors["classes"][row, asked[row]].cpu().numpy()
            found.append(
                Objects(
                    boxes=to_pixels(tensors["boxes"][row, asked[row]].double().cpu().numpy(), size),
                    classes=classes,
                    masks=tuple(masks),
                    crowd=np.zeros(len(classes), bool),
                    ids=tuple(range(len(classes))),
                    scores=score,
                    soft=score[:, None] * np.eye(len(self.encoder.classes))[classes],
                )
            )
        return found

    def vision_features(self, batch: Batch) -> list[Tensor]:
        """Image embeddings, for each image (1, channels, height, width); of SAM 2 its three levels in a row, (1, n)."""
        return list(self._seen(batch))

    def _seen(self, batch: Batch) -> Tensor:
        """(batch, 1, ...), from the images or from what was made of them earlier."""
        if "features" in batch.tensors:
            return batch.tensors["features"]
        return self._encoded(batch.tensors["pixel_values"][:, 0])

    def _encoded(self, pixels: Tensor) -> Tensor:
        network: Any = self.network
        return network.vision_encoder(pixels).last_hidden_state[:, None]

    def _embeddings(self, features: Tensor) -> Any:
        """What the mask decoder takes, of all images."""
        return features[:, 0]

    def _drawn(self, embeddings: Any, row: int, corners: Tensor) -> tuple[Tensor, Tensor]:
        """Mask logits (n, height, width) in one image's boxes (n, 4), and what overlap the model expects, (n,)."""
        network: Any = self.network
        mine = (
            [level[row : row + 1] for level in embeddings]
            if isinstance(embeddings, list)
            else embeddings[row : row + 1]
        )
        drawn = network(image_embeddings=mine, input_boxes=corners[None], multimask_output=False)
        return drawn.pred_masks[0, :, 0].float(), drawn.iou_scores[0, :, 0].float()


class Sam2Adapter(SamAdapter):
    """SAM 2 for the training loop, of single images: nothing of its memory is there."""

    family = "sam2"

    def __init__(self, network: Any, encoder: SamEncoder) -> None:
        self.network = network
        self.encoder = encoder
        backbone, loose = network.vision_encoder.backbone, ("pos_embed", "pos_embed_window")
        self.parts = _parts("vision_encoder.backbone", "blocks", len(backbone.blocks), loose, ("no_memory_embedding",))
        # Masks for ambiguous points, which are not trained here, would stand in where the mask of a box is not sharp.
        network.mask_decoder.dynamic_multimask_via_stability = False
        network.config.mask_decoder_config.dynamic_multimask_via_stability = False

    def _encoded(self, pixels: Tensor) -> Tensor:
        network: Any = self.network
        levels = network.vision_encoder(pixels).fpn_hidden_states
        return torch.cat([level.flatten(1) for level in levels], dim=1)[:, None]

    def _embeddings(self, features: Tensor) -> list[Tensor]:
        network: Any = self.network
        sizes, channels = network.backbone_feature_sizes, network.hidden_dim
        cut = features[:, 0].split([channels * height * width for height, width in sizes], dim=1)
        fine, middle, coarse = (level.unflatten(1, (channels, *size)) for level, size in zip(cut, sizes, strict=True))
        decoder = network.mask_decoder
        return [
            decoder.conv_s0(fine),
            decoder.conv_s1(middle),
            coarse + network.no_memory_embedding[0, :, :, None, None],
        ]


def _parts(
    trunk: str, stack: str, layers: int, on_trunk: tuple[str, ...], loose: tuple[str, ...] = ()
) -> tuple[Part, ...]:
    """The parts of a model whose vision encoder has so many layers: `vision_encoder` up to the late ones, which are
    the last third and with the neck `vision_encoder_late`; both make the image embeddings."""
    first_late = layers - max(1, layers // LATE_SHARE)
    paths = [f"{trunk}.{stack}.{number}" for number in range(layers)]
    return (
        Part(
            "vision_encoder",
            (f"{trunk}.patch_embed", *paths[:first_late]),
            loose=(*(f"{trunk}.{name}" for name in on_trunk), *loose),
        ),
        Part("vision_encoder_late", (*paths[first_late:], "vision_encoder.neck")),
        Part("prompt_encoder", ("prompt_encoder", "shared_image_embedding")),
        Part("mask_decoder", ("mask_decoder",)),
    )


def _cut(chosen: Tensor) -> Sequence[Tensor]:
    """The places of the chosen objects (n,) bool, so many at a time as are drawn at once."""
    places = chosen.nonzero()[:, 0]
    return places.split(DRAWN_AT_ONCE) if len(places) else ()


def _squared(mask: Rle) -> Rle:
    """A mask at the upper left of the smallest square that holds it."""
    side = max(mask.height, mask.width)
    pixels = np.pad(coco_masks.to_pixels(mask), ((0, side - mask.height), (0, side - mask.width)))
    return coco_masks.from_pixels(pixels)


def _pair(values: Tensor) -> tuple[int, int]:
    high, wide = values.tolist()
    return int(high), int(wide)


def _corners(boxes: Tensor, picture: Tensor) -> Tensor:
    """Boxes (batch, n, 4) as shares of pictures (batch, 2) to left, top, right, bottom in pixels of the square."""
    low, high = boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2
    return torch.cat([low, high], dim=-1) * picture.flip(1).repeat(1, 2)[:, None]


def _some(objects: Objects, generator: np.random.Generator) -> Objects:
    """At most MOST_LEARNED of the objects that teach something, in their order."""
    has_mask = np.array([mask is not None for mask in objects.masks], bool)
    rows = np.flatnonzero(has_mask & ~objects.crowd)
    if len(rows) > MOST_LEARNED:
        rows = np.sort(generator.choice(rows, MOST_LEARNED, replace=False))
    return objects.some(rows)


def _moved(boxes: Tensor, moves: Tensor) -> Tensor:
    """Boxes (n, 4) with left, top, right and bottom moved by shares of width and height, inside the picture."""
    sides = boxes[:, 2:].repeat(1, 2)
    corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=1)
    low, high = (corners + moves * sides).clamp(0, 1).split(2, dim=1)
    return torch.cat([(low + high) / 2, high - low], dim=1)


def load(folder: str, revision: str | None, data: Data, objects: ObjectChoices, seed: int) -> SamAdapter:
    """A checkpoint of either generation, weights in float32, SAM's images resized by Pillow; nothing in it depends on
    the classes, so `seed` decides nothing. Of SAM 2 as published, a model for videos, what it has for single images is
    taken.

    Raises ModelError for images of another size than the checkpoint's, and where no masks are learned.
    """
    from transformers import AutoConfig, AutoImageProcessor, Sam2Model, Sam2Processor, SamModel, SamProcessor

    config: Any = AutoConfig.from_pretrained(folder, revision=revision)
    native = native_image_size(config)
    if data.image_longest_edge != native:
        raise ModelError(
            f"This model takes images of {native} pixels a side, not {data.image_longest_edge}.",
            where="data.image_longest_edge",
            fix=f"--data.image_longest_edge {native}",
        )
    if not objects.masks:
        raise ModelError(
            "This model draws masks, and none are learned.",
            where="objects.masks",
            fix="prepare data with masks, or use a model that finds boxes",
        )
    first = config.model_type == "sam"
    model_class: Any = SamModel if first else Sam2Model
    processor_class: Any = SamProcessor if first else Sam2Processor
    network = model_class.from_pretrained(folder, revision=revision, dtype=torch.float32, use_safetensors=True).eval()
    processor: Any = processor_class.from_pretrained(folder, revision=revision)
    if first:  # SAM 2 has but one variant
        processor.image_processor = AutoImageProcessor.from_pretrained(folder, revision=revision, backend="pil")
    encoder = SamEncoder(processor, data, objects, network.config)
    return SamAdapter(network, encoder) if first else Sam2Adapter(network, encoder)
