"""distillation.json: what a distillation made, in numbers, and how it is known again."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visiontune.data.dataset_info import LeftOut
from visiontune.data.objects import Objects
from visiontune.training.teacher_targets import ClassThreshold

RECORD_NAME = "distillation.json"
UNLABELLED_NAME = "unlabelled"


def recorded(out: Path) -> str | None:
    """The fingerprint of the distillation that stands in the folder, None where none is done."""
    path = out / RECORD_NAME
    return json.loads(path.read_text(encoding="utf-8"))["fingerprint"] if path.is_file() else None


def counts_of(
    found: Sequence[Objects], classes: Sequence[str], asked: Sequence[str], left_out: Sequence[LeftOut]
) -> dict[str, Any]:
    """What is said of the images that nobody labelled; `classes` are what class numbers stand for, of which the teacher
    was `asked` for some."""
    return {
        "folder": UNLABELLED_NAME,
        "images": len(found),
        "nothing_found": sum(not len(one) for one in found),
        "objects": by_class([one.classes[~one.crowd] for one in found], classes, asked),
        "doubtful": by_class([one.classes[one.crowd] for one in found], classes, asked),
        "left_out": [{"id": row.id, "code": row.code, "found": row.found} for row in left_out],
    }


def by_class(numbers: Sequence[NDArray[np.int64]], classes: Sequence[str], own: Sequence[str]) -> dict[str, int]:
    """How many objects there are of each of the `own` classes; `classes` are what the numbers stand for."""
    counts = np.bincount(np.concatenate([np.zeros(0, np.int64), *numbers]), minlength=len(classes))
    return {name: int(counts[classes.index(name)]) for name in own}


def said_of(one: ClassThreshold) -> str:
    """A threshold for the person who watches."""
    where = f"all classes together, for it has {one.drawn} true objects" if one.from_all_classes else "its best F1"
    if one.threshold is None:
        return f"none, for no finding of it is right, of {one.drawn} true objects: none is taken"
    return f"{one.threshold:.3f} ({where}); {one.right} of {one.found} findings right, {one.drawn} true objects"
