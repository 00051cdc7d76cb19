"""Objects in an image, in columns: boxes, classes, masks; and in predictions their scores."""

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
    apart, neither learned nor counted as missed. ids: the n annotation ids of the source. scores: (n,) float64 in [0, 1]
    in predictions, None in what people drew.
    """

    boxes: NDArray[np.float64]
    classes: NDArray[np.int64]
    masks: tuple[Rle | None, ...]
    crowd: NDArray[np.bool_]
    ids: tuple[int, ...]
    scores: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.classes)
