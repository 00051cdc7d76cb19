"""Annotations examined and mended, stage by stage: each stage sees the table as the stages before it have mended it.

So that every finding is about data that can be judged: whether a box lies in its image is asked when ids, sizes and the
way that boxes are written are known.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from visiontune.data.annotations.changes import Change, dropped
from visiontune.data.annotations.conventions import convention_faults, told
from visiontune.data.annotations.faults_areas import area_faults
from visiontune.data.annotations.faults_boxes import box_faults
from visiontune.data.annotations.faults_classes import class_faults
from visiontune.data.annotations.faults_duplicates import duplicate_faults
from visiontune.data.annotations.faults_ids import id_faults
from visiontune.data.annotations.faults_images import image_faults
from visiontune.data.annotations.faults_masks import mask_faults
from visiontune.data.annotations.faults_structure import structure_faults
from visiontune.data.annotations.findings import Finding, ordered
from visiontune.data.annotations.image_files import ImageFiles
from visiontune.data.annotations.measures import Measures
from visiontune.data.annotations.repairs_images import mend_images
from visiontune.data.annotations.repairs_objects import mend_areas, mend_boxes, mend_duplicates, mend_masks
from visiontune.data.annotations.repairs_records import mend_classes, mend_convention, mend_ids, mend_structure
from visiontune.data.annotations.table import Table

Find = Callable[[Table, Measures], list[Finding]]
Mend = Callable[[Table, Measures], tuple[Table, list[Change]]]

# A stage is run again on what it mended, so often at most: a repair that undid itself would never end.
_PASSES = 5
_WRONG_SIZES = ("image-size-differs", "exif-rotation")

# In this order. `geometry`: the stage needs boxes in pixels.
STAGES: tuple[tuple[Find, Mend, bool], ...] = (
    (lambda table, _: structure_faults(table), lambda table, _: mend_structure(table), False),
    (lambda table, _: id_faults(table), lambda table, _: mend_ids(table), False),
    (lambda table, _: class_faults(table), lambda table, _: mend_classes(table), False),
    (lambda table, _: convention_faults(table), lambda table, _: mend_convention(table), False),
    (mask_faults, mend_masks, True),
    (box_faults, mend_boxes, True),
    (area_faults, mend_areas, True),
    (lambda table, _: duplicate_faults(table), lambda table, _: mend_duplicates(table), False),
)


@dataclass(frozen=True, eq=False)
class Examined:
    """The findings about a table, the worst first; the table mended, and each change that took."""

    findings: list[Finding]
    mended: Table
    changes: list[Change]

    @property
    def dropped(self) -> Counter[str]:
        """How many annotations, images and lines `mended` lacks, by the code of the finding."""
        return dropped(self.changes)


def examine(table: Table, files: ImageFiles | None = None) -> Examined:
    """Find all faults of a table and mend what can be mended. The table itself stays as it is.

    With `files`, the measured image files of the table, those are looked at first.

    A file without one of its lists is not looked at further; where boxes are written in a way that is not certain,
    boxes, masks and areas are left as they are, and so are those of an image whose size is an error. Mended
    twice is mended once.
    """
    findings: list[Finding] = []
    changes: list[Change] = []
    unsure: dict[tuple[int, str], tuple[int, int]] = {}
    if files is not None:
        findings += image_faults(table, files)
        table, made = mend_images(table, files)
        changes += made
        table, unsure = _without_wrong_sizes(table, findings)
    of_unsure = {number for number, _ in unsure}
    measures = Measures(table)
    for find, mend, geometry in STAGES:
        if geometry and not told(table).certain:
            continue
        found = [one for one in find(table, measures) if not (geometry and one.image_id in of_unsure)]
        findings += found
        if any(finding.code == "missing-section" for finding in found):
            break
        # What is mended may lay bare what could not be seen before: a polygon put into a list, with half a point in it.
        for _ in range(_PASSES):
            if not any(finding.severity in ("repair", "drop") for finding in found):
                break
            table, made = mend(table, measures)
            if not made:
                break
            changes += made
            measures = Measures(table)
            found = [one for one in find(table, measures) if not (geometry and one.image_id in of_unsure)]
            said = set(findings)
            findings += [finding for finding in found if finding not in said]
    return Examined(ordered(findings), _with_sizes(table, unsure), changes)


def _without_wrong_sizes(table: Table, findings: list[Finding]) -> tuple[Table, dict[tuple[int, str], tuple[int, int]]]:
    """The table with the size 0, unknown, of images whose written size is an error; and these sizes by id and name.

    What follows from a wrong size is no fault of boxes, masks and areas.
    """
    wrong = {one.image_id for one in findings if one.code in _WRONG_SIZES and one.severity == "error"}
    images = table.images
    rows = [row for row, number in enumerate(images.ids.tolist()) if number in wrong]
    kept = {
        (int(images.ids[row]), images.file_names[row]): (int(images.widths[row]), int(images.heights[row]))
        for row in rows
    }
    return _with_sizes(table, dict.fromkeys(kept, (0, 0))), kept


def _with_sizes(table: Table, sizes: Mapping[tuple[int, str], tuple[int, int]]) -> Table:
    """The table with these widths and heights, by the id and the name of the image."""
    if not sizes:
        return table
    images = table.images
    widths, heights = images.widths.copy(), images.heights.copy()
    for row, key in enumerate(zip(images.ids.tolist(), images.file_names, strict=True)):
        if key in sizes:
            widths[row], heights[row] = sizes[key]
    return replace(table, images=replace(images, widths=widths, heights=heights))
