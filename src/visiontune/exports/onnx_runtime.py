"""A shipped ONNX folder, run as an app runs it: Pillow, numpy and onnxruntime. No torch here."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from visiontune.data.annotations.masks import from_pixels
from visiontune.data.images import decode
from visiontune.data.objects import Objects, Rle
from visiontune.data.sample import ObjectPrediction
from visiontune.errors import CertificateError, MachineError, ModelError
from visiontune.files import write_json
from visiontune.machine import cores
from visiontune.progress import progress

CONTRACT_NAME = "contract.json"
DRAWN_AT_ONCE = 32
Floats = NDArray[np.float32]


class OnnxContract(BaseModel):
    """What contract.json of an ONNX folder says. Read it with `read_onnx_contract`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    format: Literal["onnx"] = "onnx"
    name: str
    family: Literal["rf_detr", "sam"]
    dtype: Literal["float32", "int8"] = Field(description="what the graphs compute in; inputs and outputs are float32")
    files: dict[str, str] = Field(default_factory=dict, description="SHA-256 of each file of the graphs")
    side: int = Field(description="pixels a side of the square that the model gets")
    fit: Literal["stretch", "upper_left"] = Field(
        description="pull the picture to the square, or keep its shape and fill up with zeros right and below"
    )
    resize: Literal["bilinear", "pillow_bilinear"] = Field(
        description="bilinear mixes the four nearest pixels, unrounded; pillow_bilinear is Pillow's BILINEAR"
    )
    mean: tuple[float, float, float] = Field(description="taken from red, green and blue in [0, 1]")
    std: tuple[float, float, float] = Field(description="then divides them")
    classes: tuple[str, ...] = Field(description="names of the classes, in the order of the logits")
    boxes: Literal["centre_size_shares", "corners_pixels"] = Field(
        description="of the graph: centre x, centre y, width and height as shares of the picture; or, as input, left, "
        "top, right and bottom in pixels of the square"
    )
    masks: bool = Field(description="whether mask logits come out; above 0 is inside")
    most: int = Field(description="objects found in an image at most")
    score_threshold: float = Field(default=0.0, description="least score of what to show; chosen on validation by F1")

    def differences(self, other: "OnnxContract") -> list[str]:
        """What the other contract says otherwise, apart from the files: "field: mine became its"."""
        mine, its = self.model_dump(mode="json"), other.model_dump(mode="json")
        return [f"{n}: {mine[n]!r} became {its[n]!r}" for n in mine if n != "files" and mine[n] != its[n]]

    def write(self, folder: Path) -> None:
        """Write contract.json."""
        write_json(folder / CONTRACT_NAME, self.model_dump(mode="json"))


def read_onnx_contract(folder: Path) -> OnnxContract:
    """What contract.json says; ModelError with what is wrong in it."""
    path = folder / CONTRACT_NAME
    try:
        return OnnxContract.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ModelError("There is no contract.json here.", where=str(folder), fix="export the run again") from error
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, f['loc']))}: {f['msg']} (found {f['input']!r})" for f in error.errors())
        raise ModelError(f"contract.json is not valid: {faults}", where=str(path), fix="export it again") from error


def is_onnx_shipment(folder: Path) -> bool:
    """Whether a folder holds a shipped model as ONNX graphs; ModelError for a contract.json that cannot be read."""
    path = folder / CONTRACT_NAME
    if not path.is_file():
        return False
    try:
        return json.loads(path.read_bytes()).get("format") == "onnx"
    except (ValueError, AttributeError) as error:
        raise ModelError(f"contract.json is no JSON object: {error}", where=str(path), fix="export it again") from error


class OnnxModel(ABC):
    """The graphs of a shipped folder in onnxruntime on the CPU, and what stands before and behind them."""

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        """Raises CertificateError for a missing file, MachineError without onnxruntime, ModelError for a graph that it
        does not read."""
        self.contract = read_onnx_contract(folder)
        for name in self.contract.files:
            if not (folder / name).is_file():
                raise CertificateError(f"The shipped file {name} is missing.", where=str(folder), fix="export it again")
        graphs = [name for name in self.contract.files if name.endswith(".onnx")]
        self._sessions = {name: open_session(folder / name, threads or cores()) for name in graphs}

    def find(self, image: Image.Image, told: Objects | None = None) -> Objects:
        """What is in an upright RGB image, as ObjectAdapter.find gives it; SAM is told the boxes, and a
        detector which classes are looked for."""
        size = (image.height, image.width)
        return self.objects(self.outputs(self.pixels(image), size, told), size, told)

    @abstractmethod
    def outputs(self, pixels: Floats, size: tuple[int, int], told: Objects | None) -> dict[str, Floats]:
        """What the graphs make of one image of (height, width) pixels, without the batch, by the outputs' names."""

    @abstractmethod
    def objects(self, outputs: Mapping[str, Floats], size: tuple[int, int], told: Objects | None) -> Objects:
        """The objects that these outputs mean, in pixels of an image of this (height, width)."""

    def pixels(self, image: Image.Image) -> Floats:
        """What the graph gets of an upright RGB image: (3, side, side) float32."""
        contract = self.contract
        height, width = self.picture(image.height, image.width)
        if contract.resize == "pillow_bilinear":
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        shares = np.asarray(image).transpose(2, 0, 1).astype(np.float32) * np.float32(1 / 255)
        if contract.resize == "bilinear":
            shares = bilinear(shares, (height, width))
        mean, std = (np.array(v, np.float32)[:, None, None] for v in (contract.mean, contract.std))
        square = np.zeros((3, contract.side, contract.side), np.float32)
        square[:, :height, :width] = (shares - mean) / std
        return square

    def picture(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the picture at the upper left of the square."""
        side = self.contract.side
        if self.contract.fit == "stretch":
            return side, side
        scale = side / max(height, width)
        return int(height * scale + 0.5), int(width * scale + 0.5)

    def _run(self, graph: str, **inputs: Floats) -> dict[str, Floats]:
        session = self._sessions[graph]
        try:
            made = session.run(None, inputs)
        except Exception as error:  # onnxruntime's own errors have no class in common
            raise ModelError(f"onnxruntime cannot run {graph}: {error}", fix="export it again") from error
        return {one.name: values[0] for one, values in zip(session.get_outputs(), made, strict=True)}


class OnnxDetector(OnnxModel):
    """RF-DETR as it was shipped: logits (queries, classes), boxes (queries, 4) as shares of the picture, proposals
    (queries,) and, where it draws masks, their logits (queries, height, width)."""

    def outputs(self, pixels: Floats, size: tuple[int, int], told: Objects | None = None) -> dict[str, Floats]:
        return self._run("model.onnx", pixel_values=pixels[None])

    def objects(self, outputs: Mapping[str, Floats], size: tuple[int, int], told: Objects | None = None) -> Objects:
        likely, looked_for = sigmoid(outputs["logits"]), np.ones(len(self.contract.classes), bool)
        if told is not None and told.looked_for is not None:
            looked_for = told.looked_for
            likely = likely * looked_for
        places = np.argsort(-likely, axis=None, kind="stable")[: self.contract.most]
        query, classes = np.divmod(places, likely.shape[1])
        shapes: dict[int, Rle] = {}
        if self.contract.masks:
            shapes = {one: from_pixels(bilinear(outputs["masks"][one], size) > 0) for one in np.unique(query).tolist()}
        boxes, limits = outputs["boxes"][query].astype(np.float64), np.array(size[::-1])
        low = ((boxes[:, :2] - boxes[:, 2:] / 2) * limits).clip(0, limits)
        high = ((boxes[:, :2] + boxes[:, 2:] / 2) * limits).clip(0, limits)
        found = Objects(
            boxes=np.c_[low, high - low],
            classes=classes.astype(np.int64),
            masks=tuple(shapes.get(one) for one in query.tolist()),
            crowd=np.zeros(len(query), bool),
            ids=tuple(range(len(query))),
            scores=likely.ravel()[places].astype(np.float64),
            soft=likely[query].astype(np.float64),
        )
        return found.of_classes(looked_for)


class OnnxSegmenter(OnnxModel):
    """SAM as it was shipped, told the boxes: mask logits (objects, height, width) over the square, and scores
    (objects,), the overlaps that it expects. Crowds are passed over."""

    def outputs(self, pixels: Floats, size: tuple[int, int], told: Objects | None = None) -> dict[str, Floats]:
        if told is None:
            raise ModelError("SAM draws masks in boxes that it is given.", fix="give it the objects of a detector")
        boxes = told.boxes[~told.crowd]
        height, width = self.picture(*size)
        scale = np.array([width / size[1], height / size[0]])
        corners = np.c_[boxes[:, :2] * scale, (boxes[:, :2] + boxes[:, 2:]) * scale].astype(np.float32)
        made = {"masks": [np.zeros((0, 1, 1), np.float32)], "scores": [np.zeros(0, np.float32)]}
        if len(corners):
            embeddings = self._run("encoder.onnx", pixel_values=pixels[None])["embeddings"][None]
            some = [corners[start : start + DRAWN_AT_ONCE] for start in range(0, len(corners), DRAWN_AT_ONCE)]
            drawn = [self._run("decoder.onnx", embeddings=embeddings, boxes=one[None]) for one in some]
            made = {name: [one[name] for one in drawn] for name in made}
        return {name: np.concatenate(values) for name, values in made.items()}

    def objects(self, outputs: Mapping[str, Floats], size: tuple[int, int], told: Objects | None = None) -> Objects:
        assert told is not None
        (height, width), side = self.picture(*size), self.contract.side
        squares = (bilinear(one, (side, side)) for one in outputs["masks"])
        scores, classes = outputs["scores"].astype(np.float64).clip(0, 1), told.classes[~told.crowd]
        return Objects(
            boxes=told.boxes[~told.crowd],
            classes=classes,
            masks=tuple(from_pixels(bilinear(one[:height, :width], size) > 0) for one in squares),
            crowd=np.zeros(len(classes), bool),
            ids=tuple(range(len(classes))),
            scores=scores,
            soft=scores[:, None] * np.eye(len(self.contract.classes))[classes],
        )


def open_model(folder: Path, threads: int | None = None) -> OnnxModel:
    """The model of a shipped folder; raises as `OnnxModel`."""
    kinds: dict[str, type[OnnxModel]] = {"rf_detr": OnnxDetector, "sam": OnnxSegmenter}
    return kinds[read_onnx_contract(folder).family](folder, threads)


def open_session(path: Path, threads: int) -> Any:
    """An onnxruntime session on the CPU. MachineError without the package, ModelError for what it does not read."""
    try:
        import onnxruntime
    except ImportError:
        raise MachineError("The package onnxruntime is missing.", fix="pip install 'visiontune[onnx]'") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors have no class in common
        raise ModelError(f"onnxruntime does not read it: {error}", where=str(path), fix="export it again") from error


def bilinear(values: Floats, size: tuple[int, int]) -> Floats:
    """(..., height, width) resized to `size` by mixing the four nearest values, edges repeated: what
    torch.nn.functional.interpolate does in mode "bilinear", corners not aligned, without antialiasing."""
    for axis, length in ((-1, size[1]), (-2, size[0])):
        source = values.shape[axis]
        at = (np.arange(length, dtype=np.float32) + np.float32(0.5)) * np.float32(source / length) - np.float32(0.5)
        at = at.clip(0)
        first = np.minimum(at.astype(np.int64), source - 1)
        second = (at - first).astype(np.float32)
        share = second if axis == -1 else second[:, None]
        before, behind = values.take(first, axis), values.take(np.minimum(first + 1, source - 1), axis)
        values = (before * (1 - share) + behind * share).astype(np.float32, copy=False)
    return values


def sigmoid(logits: Floats) -> Floats:
    """1 / (1 + exp(-x)) of float32, without overflow."""
    small = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1 / (1 + small), small / (1 + small))


def find_in_files(folder: Path, paths: Sequence[Path], threads: int | None = None) -> list[ObjectPrediction]:
    """What a shipped detector finds in image files, in their order. DataError for a file that is no readable image."""
    detector = open_model(folder, threads)
    if not isinstance(detector, OnnxDetector):
        raise ModelError(
            "This model draws masks in boxes that it is given, and none are given.",
            where=str(folder),
            fix="ask the detector, or the run of a detector and a segmenter together",
        )
    predictions = []
    with progress("finding objects", len(paths), "images") as advance:
        for path in paths:
            image = decode(path.read_bytes())
            target = replace(detector.find(image), soft=None)
            size = (image.height, image.width)
            predictions.append(ObjectPrediction(str(path), (str(path),), target, detector.contract.classes, size))
            advance(1)
    return predictions
