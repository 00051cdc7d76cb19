"""Objects in an image, in columns: boxes, classes, masks; and in predictions their scores."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST_LIKELY = 1e-3


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
    [0, 1] in predictions, None in what people drew. soft: (n, classes) float64 in [0, 1], how likely each class is in
    the eyes of a teacher; None in what people drew. looked_for: (classes,) bool, the classes whose objects were drawn
    in this image; whether it shows one of another class, nobody knows. None: all of them.
    """

    boxes: NDArray[np.float64]
    classes: NDArray[np.int64]
    masks: tuple[Rle | None, ...]
    crowd: NDArray[np.bool_]
    ids: tuple[int, ...]
    scores: NDArray[np.float64] | None = None
    soft: NDArray[np.float64] | None = None
    looked_for: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.classes)

    def some(self, rows: Sequence[int] | NDArray[np.int64]) -> "Objects":
        """The objects at these places, in this order."""
        places = np.asarray(rows, np.int64)
        return Objects(
            boxes=self.boxes[places],
            classes=self.classes[places],
            masks=tuple(self.masks[place] for place in places.tolist()),
            crowd=self.crowd[places],
            ids=tuple(self.ids[place] for place in places.tolist()),
            scores=None if self.scores is None else self.scores[places],
            soft=None if self.soft is None else self.soft[places],
            looked_for=self.looked_for,
        )

    def of_classes(self, chosen: NDArray[np.bool_]) -> "Objects":
        """The objects of the classes that are `chosen` (classes,), in their order."""
        return self.some(np.flatnonzero(chosen[self.classes]))


def to_text(objects: Objects, classes: Sequence[str]) -> str:
    """The objects as they are stored: `to_entries` as JSON."""
    return json.dumps(to_entries(objects, classes), ensure_ascii=False)


def to_entries(objects: Objects, classes: Sequence[str]) -> list[dict[str, Any]]:
    """For each object its id, category (the name), bbox, iscrowd and, where there is one, segmentation, as COCO has
    them; of predictions also score, and of a teacher's objects `likely`, how likely each class is."""
    return [
        {
            "id": number,
            "category": classes[place],
            "bbox": box,
            "iscrowd": int(crowd),
            **({} if mask is None else {"segmentation": mask.to_coco()}),
            **({} if objects.scores is None else {"score": round(float(objects.scores[row]), 6)}),
            **({} if objects.soft is None else {"likely": _likely(objects.soft[row], classes)}),
        }
        for row, (number, place, box, crowd, mask) in enumerate(
            zip(
                objects.ids,
                objects.classes.tolist(),
                objects.boxes.tolist(),
                objects.crowd.tolist(),
                objects.masks,
                strict=True,
            )
        )
    ]


def from_text(text: str, classes: Sequence[str], looked_for: NDArray[np.bool_] | None = None) -> Objects:
    """Read back what `to_text` wrote; ValueError for a class that is not among `classes`. `looked_for` as Objects has
    it."""
    return from_entries(json.loads(text), classes, looked_for)


def from_entries(
    entries: Sequence[dict[str, Any]], classes: Sequence[str], looked_for: NDArray[np.bool_] | None = None
) -> Objects:
    """Read back what `to_entries` gave; ValueError for a class that is not among `classes`. `looked_for` as Objects has
    it."""
    place = {name: i for i, name in enumerate(classes)}
    if unknown := {entry["category"] for entry in entries} - place.keys():
        raise ValueError(f"no such class: {', '.join(sorted(unknown))}")
    scored = bool(entries) and all("score" in entry for entry in entries)
    return Objects(
        boxes=np.array([entry["bbox"] for entry in entries], np.float64).reshape(-1, 4),
        classes=np.array([place[entry["category"]] for entry in entries], np.int64),
        masks=tuple(_mask(entry.get("segmentation")) for entry in entries),
        crowd=np.array([entry["iscrowd"] for entry in entries], bool),
        ids=tuple(entry["id"] for entry in entries),
        scores=np.array([entry["score"] for entry in entries], np.float64) if scored else None,
        soft=_soft(entries, place),
        looked_for=looked_for,
    )


def _likely(row: NDArray[np.float64], classes: Sequence[str]) -> dict[str, float]:
    """The classes that are not next to impossible, with how likely they are."""
    return {classes[c]: round(float(row[c]), 4) for c in np.flatnonzero(row >= LEAST_LIKELY).tolist()}


def _soft(entries: Sequence[dict[str, Any]], place: dict[str, int]) -> NDArray[np.float64] | None:
    """How likely each class of each object is; None where nothing says so. What people drew is certain."""
    if not any("likely" in entry for entry in entries):
        return None
    soft = np.zeros((len(entries), len(place)))
    for row, entry in zip(soft, entries, strict=True):
        for name, value in entry.get("likely", {entry["category"]: 1.0}).items():
            row[place[name]] = value
    return soft


def _mask(value: dict[str, Any] | None) -> Rle | None:
    if value is None:
        return None
    height, width = value["size"]
    return Rle(height, width, value["counts"].encode("ascii"))
