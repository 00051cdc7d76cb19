"""Objects in an image, in columns: boxes, classes, masks; and in predictions their scores."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Rle:
    """A mask of `height` x `width` pixels as COCO's compressed run-length encoding, columns first (pycocotools)."""

    height: int
    width: int
    counts: bytes

    def to_coco(self) -> dict[str, Any]:
        """{"size": [height, width], "counts": str}, as it stands in a COCO file."""
        return {"size": [self.height, self.width], "counts": self.counts.decode("ascii")}


@dataclass(frozen=True, eq=False)
class Objects:
    """The n objects of one image.

    boxes: (n, 4) float64, left, top, width, height in pixels of the upright image. classes: (n,) int64, places in the
    list of class names. masks: n, None where an object has none. crowd: (n,) bool, a group of objects that nobody told
    apart, neither learned nor counted as missed. ids: the n annotation ids of the source. scores: (n,) float64 in
    [0, 1] in predictions, None in what people drew.
    """

    boxes: NDArray[np.float64]
    classes: NDArray[np.int64]
    masks: tuple[Rle | None, ...]
    crowd: NDArray[np.bool_]
    ids: tuple[int, ...]
    scores: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.classes)


def to_text(objects: Objects, classes: Sequence[str]) -> str:
    """The objects as they are stored: a JSON list with id, category (its name), bbox, iscrowd and, where there is one,
    segmentation, as COCO has them."""
    entries = [
        {
            "id": number,
            "category": classes[place],
            "bbox": box,
            "iscrowd": int(crowd),
            **({} if mask is None else {"segmentation": mask.to_coco()}),
        }
        for number, place, box, crowd, mask in zip(
            objects.ids,
            objects.classes.tolist(),
            objects.boxes.tolist(),
            objects.crowd.tolist(),
            objects.masks,
            strict=True,
        )
    ]
    return json.dumps(entries, ensure_ascii=False)


def from_text(text: str, classes: Sequence[str]) -> Objects:
    """Read back what `to_text` wrote; ValueError for a class that is not among `classes`."""
    entries = json.loads(text)
    place = {name: i for i, name in enumerate(classes)}
    if unknown := {entry["category"] for entry in entries} - place.keys():
        raise ValueError(f"no such class: {', '.join(sorted(unknown))}")
    return Objects(
        boxes=np.array([entry["bbox"] for entry in entries], np.float64).reshape(-1, 4),
        classes=np.array([place[entry["category"]] for entry in entries], np.int64),
        masks=tuple(_mask(entry.get("segmentation")) for entry in entries),
        crowd=np.array([entry["iscrowd"] for entry in entries], bool),
        ids=tuple(entry["id"] for entry in entries),
    )


def _mask(value: dict[str, Any] | None) -> Rle | None:
    if value is None:
        return None
    height, width = value["size"]
    return Rle(height, width, value["counts"].encode("ascii"))
