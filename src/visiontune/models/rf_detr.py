"""RF-DETR (Robinson et al. 2025): boxes, with a mask head masks too, from an image alone; and a tiny one to try.

The loss is RF-DETR's own: each decoder layer and the proposals of the encoder, each group of queries matched by itself.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from visiontune.data.annotations import masks as coco_masks
from visiontune.data.objects import Objects
from visiontune.errors import ModelError
from visiontune.models import set_loss
from visiontune.models.adapter import Batch
from visiontune.models.denoising import inputs_of, noised
from visiontune.models.objects import EncodedObjects, ObjectAdapter, ObjectEncoder, clipped, to_pixels
from visiontune.models.parts import Part
from visiontune.models.rf_detr_masks import Drawing, cost_stride, drawings_of, mask_cost, mask_loss
from visiontune.models.rf_detr_tiny import tiny_config, tiny_network
from visiontune.models.set_loss import Targets
from visiontune.recipe import ObjectChoices
from visiontune.recipe_sections import Data

PARTS = (
    Part("vision_encoder", ("model.backbone.backbone",)),
    Part("projector", ("model.backbone.projector",)),
    Part("decoder", ("model.decoder", "model.query_feat", "model.reference_point_embed")),
    Part(
        "heads",
        (
            "model.enc_output",
            "model.enc_output_norm",
            "model.enc_out_class_embed",
            "model.enc_out_bbox_embed",
            "class_embed",
            "bbox_embed",
        ),
    ),
)
# With masks the detector stands inside. The bias stands on no module, so PEFT could not save it beside LoRA.
MASK_PARTS = (
    *(Part(part.name, tuple(f"model.{path}" for path in part.modules)) for part in PARTS),
    Part("mask_head", ("blocks", "spatial_features_proj", "query_features_block", "query_features_proj")),
    Part("mask_bias", (), loose=("segmentation_bias",)),
)

TERMS, MASK_TERMS = ("classes", "l1", "giou"), ("mask", "dice")
DENOISING, MASK_DENOISING = "denoising", "mask_denoising"

QUALITY_ALPHA = 0.25  # a matched query's target is likelihood^alpha * IoU^(1 - alpha)
LEAST_QUALITY = 0.01
FIRST_PROBABILITY = 0.01

CUTS_INTO_TILES = False
TINY_IMAGE_SIZE = 128


def native_image_size(config: Any, settings: Mapping[str, Any]) -> int:
    """Pixels a side of the square that the checkpoint was trained on, as its processor has it; where that names no
    square, as its vision encoder has it."""
    if "height" in settings.get("size", {}):
        return int(settings["size"]["height"])
    step = _step(config)
    return -(-int(config.backbone_config.image_size) // step) * step


class RfDetrEncoder(ObjectEncoder):
    """Images to squares of `data.image_longest_edge` pixels a side, by the checkpoint's own processor."""

    def __init__(self, processor: Any, data: Data, objects: ObjectChoices, config: Any) -> None:
        super().__init__(processor, data, objects)
        self.side = data.image_longest_edge
        processor.size = {"height": self.side, "width": self.side}
        self.patches = (self.side // config.backbone_config.patch_size) ** 2
        self.mask_side = self.side // config.mask_downsample_ratio
        self.groups, self.queries = config.group_detr, config.num_queries

    def see(self, image: Image) -> tuple[Tensor, tuple[int, int]]:
        return self.processor(images=image, return_tensors="pt")["pixel_values"][0], (self.side, self.side)

    def picture(self, height: int, width: int) -> tuple[int, int]:
        return self.side, self.side

    def mask_size(self) -> tuple[int, int]:
        return self.mask_side, self.mask_side

    def tokens(self, height: int, width: int) -> int:
        return self.patches

    def for_training(self, encoded: EncodedObjects, number: int) -> EncodedObjects:
        """Adds places near the objects, where the recipe asks for queries there."""
        if not (strength := self.choices.denoise):
            return encoded
        boxes = encoded.boxes[~encoded.crowd]
        return replace(encoded, noised=noised(boxes, self.groups, self.queries, strength, number))

    def loss_weights(self, encoded: Sequence[EncodedObjects]) -> dict[str, float]:
        objects = sum(set_loss.weight_of(one.soft, one.crowd) for one in encoded)
        masked = sum(set_loss.weight_of(one.soft[one.has_mask], one.crowd[one.has_mask]) for one in encoded)
        of_masks = (*MASK_TERMS, MASK_DENOISING)
        return {term: masked if term in of_masks else objects for term in _terms(self.choices)}


class RfDetrAdapter(ObjectAdapter):
    """RF-DETR for the training loop: with masks an RfDetrForInstanceSegmentation, else an RfDetrForObjectDetection."""

    family = "rf_detr"

    def __init__(self, network: Any, encoder: RfDetrEncoder) -> None:
        self.network = network
        self.encoder = encoder
        self.masks = encoder.choices.masks
        self.parts = MASK_PARTS if self.masks else PARTS
        self.terms = _terms(encoder.choices)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        network: Any = self.network
        groups = network.config.group_detr if network.training else 1
        own, pixels = groups * network.config.num_queries, batch.tensors["pixel_values"][:, 0]
        for layer in self._detector.model.decoder.layers:
            # It keeps groups apart in its own training mode, in which a frozen decoder is not.
            layer.self_attn.train(network.training)
        with inputs_of(self._detector.model.decoder) as inputs:
            seen = self._detector.model(pixels)
        hidden, near = seen.intermediate_hidden_states, list[list[Drawing]]()
        nearby: tuple[Tensor, Tensor] | None = None
        if "noised" in batch.tensors:
            places = batch.tensors["noised"][:, :own]
            of_places = self._near(places, inputs)
            nearby = self._detector.predict_class_and_boxes(of_places, places)
            hidden = torch.cat([hidden, of_places], dim=2)
        drawings = self._drawings(seen, hidden, pixels)
        layers = [drawing.some(0, own).images(groups) for drawing in drawings]
        if nearby is not None:  # the last layer is that of the proposals, which none of these is
            near = [drawing.some(own, 2 * own).images(groups) for drawing in drawings[:-1]]
        answers, stride = self._answers(seen), cost_stride(network.config)
        rows = []
        for row in range(len(batch.ids)):
            targets = set_loss.targets_of(batch, row)
            masks = [images[row] for images in layers]
            losses = _image_losses(*_sets(*answers, row, groups), masks, stride, targets)
            if nearby is not None:
                masks = [images[row] for images in near]
                losses |= _denoising_losses(*_sets(*nearby, row, groups), masks, targets)
            rows.append(losses)
        zero = pixels.new_zeros(())
        return {term: torch.stack([row.get(term, zero) for row in rows]) / groups for term in self.terms}

    @property
    def _detector(self) -> Any:
        network: Any = self.network
        return network.model if self.masks else network

    def _near(self, places: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """What the decoder makes, (layers, batch, queries, d), of queries at `places` (batch, queries, 4); otherwise it
        sees the same `inputs`."""
        content = self._detector.model.query_feat.weight[: places.shape[1]].expand(len(places), -1, -1)
        seen = self._detector.model.decoder(**{**inputs, "inputs_embeds": content, "reference_points": places})
        return seen.intermediate_hidden_states

    @torch.no_grad()
    def find(self, batch: Batch) -> list[Objects]:
        network: Any = self.network
        pixels = batch.tensors["pixel_values"][:, 0]
        seen = self._detector.model(pixels)
        logits, boxes = self._decoded(seen, first=-1)
        drawings = self._drawings(seen, seen.intermediate_hidden_states, pixels)
        queries = network.config.num_queries  # of the first group
        looked_for = batch.tensors["looked_for"]
        likely = logits[0, :, :queries].float().sigmoid() * looked_for[:, None]
        classes = likely.shape[-1]
        scores, places = likely.flatten(1).topk(min(self.encoder.choices.most, queries * classes))
        found: list[Objects] = []
        layers = [drawing.images(1) for drawing in drawings[-2:-1]]
        for row, size in enumerate(batch.tensors["size"].tolist()):
            query = places[row] // classes
            shapes: dict[int, Any] = {}
            for images in layers:
                drawn = query.unique()
                for one, mask in zip(drawn.tolist(), images[row].of(0, drawn).logits(), strict=True):
                    whole = functional.interpolate(mask[None, None].float(), size, mode="bilinear")
                    shapes[one] = coco_masks.from_pixels((whole[0, 0] > 0).cpu().numpy())
            found.append(
                Objects(
                    boxes=clipped(to_pixels(boxes[0, row, query].double().cpu().numpy(), size), size),
                    classes=(places[row] % classes).cpu().numpy(),
                    masks=tuple(shapes.get(one) for one in query.tolist()),
                    crowd=np.zeros(len(query), bool),
                    ids=tuple(range(len(query))),
                    scores=scores[row].double().cpu().numpy(),
                    soft=likely[row, query].double().cpu().numpy(),
                )
            )
        return [one.of_classes(asked) for one, asked in zip(found, looked_for.cpu().numpy(), strict=True)]

    def _answers(self, seen: Any) -> tuple[Tensor, Tensor]:
        """Class logits (layers, batch, queries, classes) and boxes (layers, batch, queries, 4) of the decoder's layers
        and, as the last, of the encoder's proposals."""
        logits, boxes = self._decoded(seen)
        proposed = self._detector.predict_encoder_class_logits(seen.enc_outputs_class)
        return torch.cat([logits, proposed[None]]), torch.cat([boxes, seen.enc_outputs_coord_logits[None]])

    def _decoded(self, seen: Any, first: int = 0) -> tuple[Tensor, Tensor]:
        """The same of the decoder's layers alone, from the `first` on."""
        return self._detector.predict_class_and_boxes(
            seen.intermediate_hidden_states[first:], seen.intermediate_reference_points[-1]
        )

    def _drawings(self, seen: Any, hidden: Tensor, pixels: Tensor) -> list[Drawing]:
        """For each layer of `hidden` (layers, batch, queries, d) and, as the last, for the proposals what masks are
        drawn from; none without masks."""
        if not self.masks:
            return []
        return drawings_of(self.network, seen.backbone_features, hidden, seen.enc_outputs_class, pixels.shape[-2:])


def _image_losses(
    logits: Tensor, boxes: Tensor, masks: list[Drawing], stride: int, targets: Targets
) -> dict[str, Tensor]:
    """The sum of each term over one image's objects and sets of queries, times its coefficient.

    logits: (S, queries, classes); boxes: (S, queries, 4); masks: for each layer, of (groups, queries). stride: between
    the pixels of masks that matching looks at.
    """
    with torch.no_grad():
        cost = set_loss.class_cost(logits, targets.soft) + set_loss.box_cost(boxes, targets.boxes)
        if masks and targets.masks is not None:
            cost += mask_cost(masks, stride, targets.masks) * targets.has_mask
        queries, objects = set_loss.match(cost)
    losses = _matched_losses(logits, boxes, queries, objects, targets)
    if masks and targets.masks is not None:
        losses |= dict(zip(MASK_TERMS, _mask_losses(masks, queries, objects, targets), strict=True))
    return losses


def _mask_losses(masks: list[Drawing], queries: Tensor, objects: Tensor, targets: Targets) -> Tensor:
    """(2,): cross-entropy and dice, times their coefficients, summed over all layers, where `queries` (S, m) of the
    layers' groups stand for `objects`."""
    weights = targets.weights[objects] * targets.has_mask[objects]
    sums = [weights.new_zeros(2)]
    cut = (values.chunk(len(masks)) for values in (queries, objects, weights))
    for layer, mine, its, weight in zip(masks, *cut, strict=True):
        # What lies between mask logits and their loss is many times larger than either: made again in the backward.
        sums.append(
            checkpoint(
                mask_loss, layer, targets.masks, mine, its, weight, use_reentrant=False, preserve_rng_state=False
            )
        )
    return torch.stack(sums).sum(dim=0)


def _matched_losses(
    logits: Tensor, boxes: Tensor, queries: Tensor, objects: Tensor, targets: Targets
) -> dict[str, Tensor]:
    """The sum of each term but those of masks over sets of queries, where `queries` (S, m) stand for `objects`."""
    paired, weights = boxes.gather(1, _wide(queries, 4)), targets.weights[objects]
    drawn = targets.boxes[objects]
    l1, giou = set_loss.box_losses(paired, drawn, weights)
    return {
        "classes": set_loss.CLASS_COEFFICIENT * _class_loss(logits, boxes, paired, drawn, queries, objects, targets),
        "l1": set_loss.L1_COEFFICIENT * l1,
        "giou": set_loss.GIOU_COEFFICIENT * giou,
    }


def _denoising_losses(logits: Tensor, boxes: Tensor, masks: list[Drawing], targets: Targets) -> dict[str, Tensor]:
    """The sum of each term over sets of queries (S, queries, ...), of which the first stand for the objects and the
    others for none; masks as those of `_image_losses`, of the same sets."""
    sets, queries, _ = boxes.shape
    own = torch.arange(min(queries, len(targets.boxes)), device=boxes.device).expand(sets, -1)
    losses = {DENOISING: torch.stack([*_matched_losses(logits, boxes, own, own, targets).values()]).sum()}
    if masks and targets.masks is not None:
        losses[MASK_DENOISING] = _mask_losses(masks, own, own, targets).sum()
    return losses


def _sets(logits: Tensor, boxes: Tensor, row: int, groups: int) -> tuple[Tensor, Tensor]:
    """Of one image, (layers, groups * queries, ...) as (layers * groups, queries, ...), float32."""
    first, second = (values[:, row].unflatten(1, (groups, -1)).flatten(0, 1).float() for values in (logits, boxes))
    return first, second


def _terms(choices: ObjectChoices) -> tuple[str, ...]:
    denoising = (DENOISING, MASK_DENOISING) if choices.masks else (DENOISING,)
    return TERMS + (MASK_TERMS if choices.masks else ()) + (denoising if choices.denoise else ())


def _class_loss(
    logits: Tensor, boxes: Tensor, paired: Tensor, drawn: Tensor, queries: Tensor, objects: Tensor, targets: Targets
) -> Tensor:
    """The IoU-aware cross-entropy of LW-DETR (Chen et al. 2024), summed.

    A matched query that has a class counts as positive with the quality of its box and as negative with the rest; all
    else counts as negative with the square of its probability. Where a class is merely likely, both in this proportion.
    """
    likely = logits.sigmoid()
    soft, classes = targets.soft[objects], logits.shape[-1]
    iou, _ = set_loss.overlaps(paired.detach(), drawn)
    own = likely.detach().gather(1, _wide(queries, classes))
    quality = (own**QUALITY_ALPHA * iou[..., None] ** (1 - QUALITY_ALPHA)).clamp(min=LEAST_QUALITY)
    zeros = torch.zeros_like(likely)
    has = zeros.scatter(1, _wide(queries, classes), soft)
    positive = zeros.scatter(1, _wide(queries, classes), soft * quality)
    negative = (has - positive) + (1 - has) * likely**2
    loss = -positive * functional.logsigmoid(logits) - negative * functional.logsigmoid(-logits)
    return loss.masked_fill(set_loss.excused(boxes, queries, targets), 0.0).sum()


def load(folder: str, revision: str | None, data: Data, objects: ObjectChoices, seed: int) -> RfDetrAdapter:
    """A checkpoint, weights in float32. What it lacks is new and depends on `seed` alone: heads for other classes than
    its own, and a mask head where masks are learned by a checkpoint that only finds boxes. Where no masks are learned,
    the mask head is left out.

    Raises ModelError where images of this size cannot be cut into its windows, or into as many patches as it has
    queries.
    """
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        RfDetrForInstanceSegmentation,
        RfDetrForObjectDetection,
    )

    config: Any = AutoConfig.from_pretrained(folder, revision=revision)
    _check_size(config, data.image_longest_edge)
    draws_masks = "RfDetrForInstanceSegmentation" in (config.architectures or ())
    kind: Any = RfDetrForInstanceSegmentation if draws_masks else RfDetrForObjectDetection
    network = kind.from_pretrained(folder, revision=revision, dtype=torch.float32, use_safetensors=True)
    detector = network.model if draws_masks else network
    if tuple(detector.config.id2label.values()) != objects.classes:
        _replace_class_heads(detector, objects.classes, seed)
    if not objects.masks:
        network = detector
    elif not draws_masks:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = RfDetrForInstanceSegmentation(detector.config)
        network.model = detector
    processor = AutoImageProcessor.from_pretrained(folder, revision=revision)
    return RfDetrAdapter(network.eval(), RfDetrEncoder(processor, data, objects, network.config))


def build_tiny(folder: Path, objects: ObjectChoices, seed: int, *, image_size: int) -> None:
    """Write a small RF-DETR with random weights to `folder`, its real processor beside it. The same arguments give the
    same files. Raises ModelError as `load`."""
    from transformers import RfDetrImageProcessor

    config = tiny_config(objects, image_size)
    _check_size(config, image_size)
    tiny_network(config, seed, masks=objects.masks).save_pretrained(folder)
    RfDetrImageProcessor(size={"height": image_size, "width": image_size}).save_pretrained(folder)


def _replace_class_heads(detector: Any, classes: Sequence[str], seed: int) -> None:
    """Give the detector class heads for `classes`, whose weights depend on `seed` alone."""
    config = detector.config
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: place for place, name in enumerate(classes)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads = [torch.nn.Linear(config.d_model, len(classes)) for _ in range(1 + config.group_detr)]
        for head in heads:
            torch.nn.init.normal_(head.weight, std=config.init_std)
            torch.nn.init.constant_(head.bias, -math.log(1 / FIRST_PROBABILITY - 1))
    detector.class_embed, detector.model.enc_out_class_embed = heads[0], torch.nn.ModuleList(heads[1:])


def _step(config: Any) -> int:
    """Pixels of which the side of an image must be a multiple."""
    return int(config.backbone_config.patch_size * config.backbone_config.num_windows)


def _check_size(config: Any, side: int) -> None:
    step, patch = _step(config), int(config.backbone_config.patch_size)
    least = -(-math.ceil(config.num_queries**0.5) * patch // step) * step
    if side % step or side < least:
        raise ModelError(
            f"Images of {side} x {side} pixels do not fit this RF-DETR: it cuts them into windows of {step} pixels, "
            f"and chooses {config.num_queries} of their patches of {patch} pixels.",
            where="data.image_longest_edge",
            fix=f"use {max(least, round(side / step) * step)}, or another multiple of {step} from {least} on",
        )


def _wide(places: Tensor, width: int) -> Tensor:
    """(S, m) places as (S, m, width), to gather and scatter rows of this width."""
    return places[..., None].expand(-1, -1, width)
