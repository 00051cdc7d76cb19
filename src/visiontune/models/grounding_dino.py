"""Grounding DINO and MM-Grounding DINO: objects found in an image by the names of their classes."""

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional

from visiontune.data.objects import Objects
from visiontune.errors import ModelError
from visiontune.models.adapter import Batch
from visiontune.models.grounding_dino_tiny import build_mm, build_original
from visiontune.models.grounding_prompts import Chunk, make_prompts
from visiontune.models.objects import EncodedObjects, ObjectAdapter, ObjectEncoder, clipped, to_pixels
from visiontune.models.parts import Part
from visiontune.models.set_loss import (
    FOCAL_ALPHA,
    FOCAL_GAMMA,
    GIOU_COEFFICIENT,
    L1_COEFFICIENT,
    Targets,
    box_cost,
    box_losses,
    class_cost,
    excused,
    match,
    targets_of,
    weight_of,
)
from visiontune.recipe import ObjectChoices
from visiontune.recipe_sections import Data

_DECODER = ("layers", "layer_norm", "reference_points_head")
_COMPARED = ("model.input_proj_vision", "model.text_projection", "class_embed")
_PROJECTOR = Part("projector", _COMPARED, loose=("model.level_embed", "model.special_tokens"))
PARTS = (
    Part("vision_encoder", ("model.backbone",)),
    Part("text_encoder", ("model.text_backbone",)),
    _PROJECTOR,
    Part("fusion", ("model.encoder",)),
    Part("decoder", ("model.query_position_embeddings", *(f"model.decoder.{name}" for name in _DECODER))),
    Part(
        "heads",
        (
            "model.enc_output",
            "model.enc_output_norm",
            "model.encoder_output_bbox_embed",
            "model.encoder_output_class_embed",
            "model.decoder.bbox_embed",
            "bbox_embed",
        ),
    ),
)
# Here products of vision and text have biases. Those that share their weights would part if PEFT copied them to train
# them, so they belong to the part that it may not copy.
_MM_PROJECTOR = replace(_PROJECTOR, modules=(*_COMPARED, "model.decoder.class_embed"))
MM_PARTS = tuple(_MM_PROJECTOR if part is _PROJECTOR else part for part in PARTS)

CUTS_INTO_TILES = False
TINY_IMAGE_SIZE = 96
build_tiny, build_tiny_original = build_mm, build_original
TERMS = ("classes", "l1", "giou")

# What transformers' GroundingDinoForObjectDetectionLoss has; the box terms are those of the whole DETR family.
CLASS_COST, CLASS_COEFFICIENT = 1.0, 2.0


def native_image_size(config: Any, settings: Mapping[str, Any]) -> int:
    """Pixels of the longer side at most: the processor's limit, 1333 in released checkpoints. The shorter side has a
    limit of its own, 800, and keeps its proportion to this."""
    return int(settings["size"]["longest_edge"])


class GroundingDinoEncoder(ObjectEncoder):
    """Images to tensors as the checkpoint's processor makes them, and the class names as prompts.

    `prompts.phrases` says what the model is asked for in place of each class name.
    """

    def __init__(self, processor: Any, data: Data, objects: ObjectChoices, config: Any) -> None:
        super().__init__(processor, data, objects)
        seen = processor.image_processor
        shortest = round(data.image_longest_edge * seen.size["shortest_edge"] / seen.size["longest_edge"])
        seen.size = {"shortest_edge": shortest, "longest_edge": data.image_longest_edge}
        first = min(config.backbone_config.out_indices) - 1
        self.strides = [config.backbone_config.patch_size << first + i for i in range(config.num_feature_levels)]
        self.queries = int(config.num_queries)
        self.longest_prompt = int(config.max_text_len)
        self.prompts = make_prompts(self.classes, processor.tokenizer, self.longest_prompt)

    def asking(self, classes: Sequence[str]) -> "GroundingDinoEncoder":
        """The same encoder for other classes, whatever the model was trained on: to find objects, not to learn them.

        RecipeError for a name that no phrase can be made of.
        """
        other = copy.copy(self)
        other.choices = self.choices.model_copy(update={"classes": tuple(classes)})
        other.classes = other.choices.classes
        other.prompts = make_prompts(other.classes, self.processor.tokenizer, self.longest_prompt)
        return other

    def see(self, image: Image) -> tuple[Tensor, tuple[int, int]]:
        pixels = self.processor.image_processor(images=image, do_pad=False, return_tensors="pt")["pixel_values"][0]
        return pixels, (pixels.shape[1], pixels.shape[2])

    def unseen(self, height: int, width: int) -> str | None:
        if (places := self.tokens(height, width)) >= self.queries:
            return None
        return (
            f"An image of {width} x {height} pixels becomes {places} places, fewer than the model's {self.queries} "
            "queries stand in."
        )

    def picture(self, height: int, width: int) -> tuple[int, int]:
        from transformers.image_transforms import get_size_with_aspect_ratio

        size = self.processor.image_processor.size
        return get_size_with_aspect_ratio((height, width), size["shortest_edge"], size["longest_edge"])

    def mask_size(self) -> None:
        return None

    def tokens(self, height: int, width: int) -> int:
        high, wide = self.picture(height, width)
        return sum(-(-high // stride) * -(-wide // stride) for stride in self.strides)

    def loss_weights(self, encoded: Sequence[EncodedObjects]) -> dict[str, float]:
        count = sum(weight_of(one.soft, one.crowd) for one in encoded)
        return dict.fromkeys(TERMS, count)

    def preprocessing(self) -> dict[str, Any]:
        return json.loads(self.processor.image_processor.to_json_string())


@dataclass(frozen=True)
class Answers:
    """What the model says of b images and one prompt of t tokens, layer by layer: first its encoder's best proposals,
    then each decoder layer. boxes: (layers, b, queries, 4). logits: (layers, b, queries, t). Both float32."""

    boxes: Tensor
    logits: Tensor


class GroundingDinoAdapter(ObjectAdapter):
    """Grounding DINO and MM-Grounding DINO for the training loop.

    A prompt holds as many classes as its tokens allow; more classes are several prompts about the same images, each a
    forward of its own (of the vision encoder too: transformers' class takes no features in place of images). An image
    is learned with the prompts that hold the most likely class of one of its objects and with one more, which its id
    and the epoch choose. Images are never padded: those of one size go through the model together, so that what is
    found in one does not depend on its neighbours (GroupNorm and Swin's windows would see the padding).
    """

    family = "grounding_dino"
    terms = TERMS

    def __init__(self, network: Any, encoder: GroundingDinoEncoder) -> None:
        self.network = network
        self.parts = PARTS if network.model.decoder.class_embed is None else MM_PARTS
        self.encoder: GroundingDinoEncoder = encoder  # pyright: ignore[reportIncompatibleVariableOverride]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        device, everyone = batch.tensors["pixel_values"].device, range(len(batch.ids))
        targets = [targets_of(batch, row) for row in everyone]
        learned = [self._learned(batch, row, targets[row]) for row in everyone]
        sums = [torch.zeros(len(TERMS), device=device) for _ in everyone]
        for number, chunk in enumerate(self.encoder.prompts.chunks):
            chunk = chunk.to(device)
            for rows, pixels in _by_size(batch, [row for row in everyone if number in learned[row]]):
                answers = self._answers(pixels, chunk)
                for place, row in enumerate(rows):
                    boxes, logits = answers.boxes[:, place], answers.logits[:, place]
                    sums[row] = sums[row] + _image_losses(boxes, logits, chunk, _within(targets[row], chunk))
        return dict(zip(TERMS, torch.stack(sums).unbind(dim=1), strict=True))

    @torch.no_grad()
    def find(self, batch: Batch) -> list[Objects]:
        """As ObjectAdapter has it. How likely a class is: the mean over its phrase's tokens, as in the evaluations that
        both models were published with. In `soft` the classes of other prompts than the object's have 0."""
        device, everyone = batch.tensors["pixel_values"].device, range(len(batch.ids))
        count, most = len(self.encoder.classes), self.encoder.choices.most
        found: list[list[Tensor]] = [[torch.zeros(0, 6 + count)] for _ in everyone]
        looked_for = batch.tensors["looked_for"]
        for chunk in (chunk.to(device) for chunk in self.encoder.prompts.chunks):
            wanted = looked_for[:, chunk.classes]
            for rows, pixels in _by_size(batch, [row for row in everyone if wanted[row].any()]):
                answers = self._answers(pixels, chunk)
                likely = chunk.to_classes(answers.logits[-1].sigmoid()) * wanted[rows][:, None]
                asked = likely.shape[-1]
                for place, row in enumerate(rows):
                    scores, best = likely[place].flatten().topk(min(most, likely[place].numel()))
                    query, columns = best // asked, likely.new_zeros(len(best), 6 + count)
                    columns[:, 0], columns[:, 1] = scores, chunk.classes[best % asked]
                    columns[:, 2:6] = answers.boxes[-1, place, query]
                    columns[:, 6 + chunk.classes] = likely[place, query]
                    found[row].append(columns.cpu())
        sizes = batch.tensors["size"].tolist()
        objects = [_objects(torch.cat(columns), size, most) for columns, size in zip(found, sizes, strict=True)]
        return [one.of_classes(asked) for one, asked in zip(objects, looked_for.cpu().numpy(), strict=True)]

    def _learned(self, batch: Batch, row: int, targets: Targets) -> set[int]:
        """The numbers of the prompts that an image is learned with."""
        prompts = self.encoder.prompts
        learned = set(prompts.chunk_of[targets.soft.argmax(dim=1).cpu()].tolist()) if len(targets.soft) else set()
        asked = {number for number, chunk in enumerate(prompts.chunks) if targets.looked_for[chunk.classes].any()}
        if others := sorted(asked - learned):
            epoch = batch.origins[row][2] if batch.origins else 0
            digest = hashlib.sha256(f"{epoch} {batch.ids[row]}".encode()).digest()
            learned.add(others[int.from_bytes(digest[:8], "little") % len(others)])
        return learned

    def _answers(self, pixels: Tensor, chunk: Chunk) -> Answers:
        """Images (b, 3, height, width) of one size, asked for the classes of one chunk."""
        network: Any = self.network
        ids = chunk.input_ids.expand(len(pixels), -1)
        attended = torch.ones_like(ids)
        seen = network.model(pixel_values=pixels, input_ids=ids, attention_mask=attended, return_dict=True)
        # The proposals are learned here as DINO has it (Zhang et al. 2022). transformers' own loss judges the learned
        # queries in their place (encoder_logits), and their boxes without a gradient (encoder_pred_boxes).
        best = seen.enc_outputs_class.amax(dim=-1).topk(network.config.num_queries, dim=1).indices[..., None]
        boxes = [seen.enc_outputs_coord_logits.gather(1, best.expand(-1, -1, 4)).sigmoid()]
        logits = [seen.enc_outputs_class.gather(1, best.expand(-1, -1, seen.enc_outputs_class.shape[-1]))]
        reference = seen.init_reference_points
        for layer, hidden in enumerate(seen.intermediate_hidden_states.unbind(dim=1)):
            logits.append(network.class_embed[layer](hidden, seen.encoder_last_hidden_state_text, attended.bool()))
            boxes.append((network.bbox_embed[layer](hidden) + torch.special.logit(reference, eps=1e-5)).sigmoid())
            reference = seen.intermediate_reference_points[:, layer]
        # What the model adds behind the prompt, up to its longest, is -inf.
        return Answers(torch.stack(boxes).float(), torch.stack(logits)[..., : ids.shape[1]].float())


def _by_size(batch: Batch, rows: Sequence[int]) -> Iterator[tuple[list[int], Tensor]]:
    """These rows of a batch, those of one picture size together, and their pictures (b, 3, height, width)."""
    pictures, together = batch.tensors["picture"].tolist(), {}
    for row in rows:
        together.setdefault(tuple(pictures[row]), []).append(row)
    for (height, width), same in together.items():
        yield same, batch.tensors["pixel_values"][same, 0, :, :height, :width]


def _within(targets: Targets, chunk: Chunk) -> Targets:
    """What of an image's targets a chunk asks for, its classes counted from 0."""
    soft, crowd = targets.soft[:, chunk.classes], torch.isin(targets.crowd_classes, chunk.classes)
    asked = soft.amax(dim=1) > 0
    return Targets(
        boxes=targets.boxes[asked],
        soft=soft[asked],
        masks=None,
        has_mask=targets.has_mask[asked],
        crowd_boxes=targets.crowd_boxes[crowd],
        crowd_classes=targets.crowd_classes[crowd] - chunk.classes[0],
        looked_for=targets.looked_for[chunk.classes],
    )


def _image_losses(boxes: Tensor, logits: Tensor, chunk: Chunk, targets: Targets) -> Tensor:
    """(3,) float32: the sum of each term over the layers of boxes (layers, queries, 4) and logits (layers, queries, t),
    each layer matched by itself, times its coefficient.

    The class term is the focal loss (Lin et al. 2017) of every token of the prompt, with the target of its class; where
    targets lie between 0 and 1, the quality focal loss (Li et al. 2020), which it is a case of.
    """
    with torch.no_grad():
        share = chunk.to_tokens(targets.soft / chunk.tokens_of().sum(dim=1))
        cost = box_cost(boxes, targets.boxes) + class_cost(logits, share, CLASS_COST)
        queries, objects = match(cost)
    layers = torch.arange(len(boxes), device=boxes.device)[:, None]
    wanted = torch.zeros_like(logits)
    wanted[layers, queries] = chunk.to_tokens(targets.soft)[objects]
    entropy = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    off = (logits.sigmoid() - wanted).abs() ** FOCAL_GAMMA
    balance = FOCAL_ALPHA * wanted + (1 - FOCAL_ALPHA) * (1 - wanted)
    judged = ~chunk.to_tokens(excused(boxes, queries, targets))
    l1, giou = box_losses(boxes[layers, queries], targets.boxes[objects], targets.weights[objects])
    classes = (balance * off * entropy * judged).sum()
    return torch.stack([CLASS_COEFFICIENT * classes, L1_COEFFICIENT * l1, GIOU_COEFFICIENT * giou])


def _objects(columns: Tensor, size: tuple[int, int], most: int) -> Objects:
    """The best of (n, 6 + classes): score, class, box as shares of the picture's sides, how likely each class is."""
    order = columns[:, 0].argsort(descending=True, stable=True)[:most]
    best = columns[order].double().numpy()
    return Objects(
        boxes=clipped(to_pixels(best[:, 2:6], size), size),
        classes=best[:, 1].astype(np.int64),
        masks=(None,) * len(best),
        crowd=np.zeros(len(best), bool),
        ids=tuple(range(len(best))),
        scores=best[:, 0],
        soft=best[:, 6:],
    )


def load(folder: str, revision: str | None, data: Data, objects: ObjectChoices, seed: int) -> GroundingDinoAdapter:
    """A checkpoint of either kind, weights in float32, images resized by Pillow. Any classes can be asked of it:
    nothing is new in it, and `seed` decides nothing.

    Raises ModelError for a vision encoder other than Swin and for a model of one stage.
    """
    from transformers import AutoImageProcessor, AutoModelForZeroShotObjectDetection, AutoProcessor

    network: Any = AutoModelForZeroShotObjectDetection.from_pretrained(
        folder, revision=revision, dtype=torch.float32, use_safetensors=True, disable_custom_kernels=True
    )
    config = network.config
    if config.backbone_config.model_type != "swin" or not config.two_stage:
        raise ModelError(
            f"Its vision encoder is '{config.backbone_config.model_type}', and two_stage is {config.two_stage}.",
            where=folder,
            fix="use a Grounding DINO with a Swin vision encoder and two stages, as the released ones are",
        )
    processor: Any = AutoProcessor.from_pretrained(folder, revision=revision)
    processor.image_processor = AutoImageProcessor.from_pretrained(folder, revision=revision, backend="pil")
    return GroundingDinoAdapter(prepared(network), GroundingDinoEncoder(processor, data, objects, config))


def prepared(network: Any) -> Any:
    """transformers' Grounding DINO, changed in place so that PEFT can adapt it, or load what was trained here.

    PEFT asks for the input embeddings, which the class does not name. And box heads that share their weights become one
    module: PEFT would give each an adapter of its own, learn one of them, and merge all of them into the one weight.
    """
    network.get_input_embeddings = network.model.text_backbone.get_input_embeddings
    known: dict[tuple[int, ...], Any] = {}
    for heads in (network.bbox_embed, network.model.decoder.bbox_embed):
        for place, head in enumerate(heads):
            heads[place] = known.setdefault(tuple(id(weight) for weight in head.parameters()), head)
    return network
