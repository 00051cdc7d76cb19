"""What a repair changed: one entry a field, for a person to check."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visiontune.data.annotations.table import ABSENT, Images, Kind, Table, without

_LONG = 200


@dataclass(frozen=True, slots=True)
class Change:
    """One field before and after, and the code of the finding that it mends.

    `field` is one of COCO's names, or "annotation", "image", "class" or "line" for what was taken out (`after` is None)
    """

    why: str
    file: str
    image_id: int | None
    annotation_id: int | None
    field: str
    before: Any
    after: Any
    place: str = ""

    def to_json(self) -> dict[str, Any]:
        """The change as plain JSON; long polygons and run lengths are cut."""
        return asdict(self) | {"before": _short(self.before), "after": _short(self.after)}


def dropped(changes: Iterable[Change]) -> Counter[str]:
    """How many annotations, images and lines were taken out, by the code of the finding."""
    return Counter(change.why for change in changes if change.field in ("annotation", "image", "line"))


def on_annotation(table: Table, row: int, why: str, field: str, before: Any, after: Any) -> Change:
    """A change of one annotation's field."""
    image_id, number = _id(table.annotations.image_ids[row]), _id(table.annotations.ids[row])
    return Change(why, table.name, image_id, number, field, before, after, table.annotation_place(row))


def on_image(table: Table, row: int, why: str, field: str, before: Any, after: Any) -> Change:
    """A change of one image's field."""
    return Change(why, table.name, _id(table.images.ids[row]), None, field, before, after, table.image_place(row))


def annotations_dropped(table: Table, why: Mapping[int, str]) -> tuple[Table, list[Change]]:
    """The table less these rows of its annotations. `why`: row -> the code of the finding."""
    if not why:
        return table, []
    columns, names = table.annotations, (*table.categories.names, None)
    changes = []
    for row, code in sorted(why.items()):
        box = None if np.isnan(columns.boxes[row]).any() else columns.boxes[row].tolist()
        before = {"class": names[table.category_rows[row]], "bbox": columns.odd.get((row, "bbox"), box)}
        changes.append(on_annotation(table, row, code, "annotation", before, None))
    keep = np.ones(len(columns), bool)
    keep[list(why)] = False
    return replace(table, annotations=columns.take(np.flatnonzero(keep))), changes


def images_taken(table: Table, rows: NDArray[np.int64]) -> Table:
    """The table with these rows of its images only; annotations stay."""
    images: Images = table.images.take(rows)
    return replace(table, images=images)


def boxes_changed(
    table: Table, boxes: Mapping[int, NDArray[np.float64]], why: Mapping[int, str]
) -> tuple[Table, list[Change]]:
    """The table with new boxes in some rows."""
    if not boxes:
        return table, []
    columns = table.annotations
    column = columns.boxes.copy()
    changes = []
    for row, box in sorted(boxes.items()):
        before = columns.odd.get((row, "bbox"), None if np.isnan(column[row]).any() else column[row].tolist())
        changes.append(on_annotation(table, row, why[row], "bbox", before, box.tolist()))
        column[row] = box
    return table.with_annotations(boxes=column, odd=without(columns.odd, list(boxes), "bbox")), changes


def segmentations_changed(
    table: Table, values: Mapping[int, tuple[Kind, Any]], why: Mapping[int, str]
) -> tuple[Table, list[Change]]:
    """The table with new segmentations in some rows, Kind.NONE and None where the mask is taken away."""
    if not values:
        return table, []
    columns = table.annotations
    kinds, segmentations = columns.kinds.copy(), list(columns.segmentations)
    changes = []
    for row, (kind, value) in sorted(values.items()):
        changes.append(on_annotation(table, row, why[row], "segmentation", segmentations[row], value))
        kinds[row], segmentations[row] = kind, value
    odd = without(columns.odd, list(values), "segmentation")
    return table.with_annotations(kinds=kinds, segmentations=tuple(segmentations), odd=odd), changes


def written(value: Any) -> Any:
    """A value of `odd` as it goes into a change."""
    return None if value is ABSENT else value


def _short(value: Any) -> Any:
    text = repr(value)
    return value if len(text) <= _LONG else text[: _LONG - 3] + "..."


def _id(number: np.int64) -> int | None:
    return None if number < 0 else int(number)
