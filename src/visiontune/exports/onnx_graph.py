"""Trained weights as ONNX graphs: RF-DETR as one file, SAM as an image encoder and a mask decoder."""

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from visiontune.errors import RunError
from visiontune.models.adapter import ModelAdapter

OPSET = 20
MODEL, ENCODER, DECODER = "model.onnx", "encoder.onnx", "decoder.onnx"
BATCH = torch.export.Dim("batch", min=1, max=4096)
OBJECTS = torch.export.Dim("objects", min=1, max=65536)
FAMILIES = ("rf_detr", "sam")


def plain_network(adapter: ModelAdapter) -> nn.Module:
    """A copy of the network with its adapters merged into the weights, in eval mode; the adapter stays as it is."""
    trained: Any = copy.deepcopy(adapter.trained_module)
    return (trained if adapter.peft is None else trained.merge_and_unload()).eval()


def write_graphs(family: str, network: nn.Module, side: int, folder: Path) -> list[str]:
    """Write the graphs of a plain network (float32, eval mode) for pictures of `side` x `side`; returns their names.

    RF-DETR: pixel_values (batch, 3, side, side) -> proposals (batch, queries) int64, the places that the queries began
    at, logits (batch, queries, classes), boxes (batch, queries, 4) as centre x, centre y, width and height in shares of
    the picture, and of a model that draws masks their logits (batch, queries, height, width). SAM: pixel_values ->
    embeddings (batch, channels, height, width); embeddings (1, ...) and boxes (1, objects, 4), the corners in pixels of
    the square -> mask logits (1, objects, height, width) and scores (1, objects), the overlaps that are expected. All
    else is float32. Takes about 5 s a graph.
    """
    pixels = torch.zeros(2, 3, side, side)
    batch = {"pixel_values": {0: BATCH}}
    if family == "rf_detr":
        outputs = ["proposals", "logits", "boxes", *(["masks"] if _draws_masks(network) else [])]
        _write(_Finder(network), {"pixel_values": pixels}, outputs, batch, folder / MODEL)
        return [MODEL]
    if family == "sam":
        encoder = _ImageEncoder(network)
        _write(encoder, {"pixel_values": pixels}, ["embeddings"], batch, folder / ENCODER)
        with torch.no_grad():
            embeddings = encoder(pixels[:1])
        boxes = torch.tensor([[[0.0, 0.0, side / 2, side / 2], [side / 4, side / 4, side, side]]])
        inputs, sizes = {"embeddings": embeddings, "boxes": boxes}, {"embeddings": {}, "boxes": {1: OBJECTS}}
        _write(_MaskDecoder(network), inputs, ["masks", "scores"], sizes, folder / DECODER)
        return [ENCODER, DECODER]
    raise RunError(f"Models of the family '{family}' have no ONNX form.", fix=f"families: {', '.join(FAMILIES)}")


class Proposals(TorchFunctionMode):
    """While it is entered, the places that RF-DETR's first stage chooses for its queries are those `given` (batch,
    queries), int64, or where none are given its own. `chosen` has them then; `shortfall` says by how much the
    probabilities of those given stay below those of its own at most: 0 to rounding where they are as good.

    Places that are equally good to the last digit change with rounding, and all that comes of them with the query.
    """

    chosen: Tensor | None = None
    shortfall = 0.0

    def __init__(self, given: Tensor | None = None) -> None:
        super().__init__()
        self.given = given

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func is not torch.topk or self.chosen is not None:  # the first choice of a forward is that of the places
            return made
        self.chosen = made[1]
        if self.given is not None:
            own, self.chosen = made[0].sigmoid(), self.given
            self.shortfall = float((own - args[0].gather(1, self.given).sigmoid()).abs().max())
            made = args[0].gather(1, self.given), self.given
        return made


@torch.no_grad()
def graph_outputs(family: str, network: nn.Module, pixels: Tensor, boxes: Tensor) -> dict[str, NDArray[np.float32]]:
    """What torch makes of one image where the graphs stand: pixels (3, side, side), boxes (objects, 4) as the mask
    decoder takes them. The float outputs of `write_graphs` that are no embeddings, without the batch."""
    if family == "rf_detr":
        made = dict(zip(("logits", "boxes", "masks"), _found(network, pixels[None]), strict=False))
    elif not len(boxes):
        made = {}
    else:
        masks, scores = _MaskDecoder(network)(_ImageEncoder(network)(pixels[None]), boxes[None])
        made = {"masks": masks, "scores": scores}
    return {name: values[0].float().numpy() for name, values in made.items()}


def _draws_masks(network: nn.Module) -> bool:
    from transformers import RfDetrForInstanceSegmentation

    return isinstance(network, RfDetrForInstanceSegmentation)


def _found(network: Any, pixels: Tensor) -> tuple[Tensor, ...]:
    found = network(pixel_values=pixels)
    return (found.logits, found.pred_boxes, *((found.pred_masks,) if _draws_masks(network) else ()))


class _Finder(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        with Proposals() as proposals:
            found = _found(self.network, pixel_values)
        assert proposals.chosen is not None
        return (proposals.chosen, *found)


class _ImageEncoder(nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.vision_encoder = network.vision_encoder

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.vision_encoder(pixel_values).last_hidden_state


class _MaskDecoder(nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, embeddings: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        drawn = self.network(image_embeddings=embeddings, input_boxes=boxes, multimask_output=False)
        return drawn.pred_masks[:, :, 0], drawn.iou_scores[:, :, 0]


def _write(
    module: nn.Module, inputs: dict[str, Tensor], outputs: Sequence[str], sizes: dict[str, Any], path: Path
) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # about code of torch and transformers; what comes out is compared
        program = torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=outputs,
            dynamic_shapes=sizes,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    for node in program.model.graph.all_nodes():  # the exporter notes from which line of which file a node came
        node.metadata_props.clear()
        node.doc_string = None
    program.save(path)
