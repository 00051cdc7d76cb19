"""Images with boxes and masks: COCO, YOLO and Pascal VOC, examined and, where that is asked for, mended."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from visiontune.data.annotations import formats
from visiontune.data.annotations.examine import Examined, examine
from visiontune.data.annotations.findings import Finding, on_file
from visiontune.data.annotations.image_files import measure
from visiontune.data.annotations.left_out import left_out
from visiontune.data.annotations.masks import objects
from visiontune.data.annotations.table import merged
from visiontune.data.annotations.unused_files import unused_files
from visiontune.data.faults import Fault
from visiontune.data.formats.rows import Listing, SourceRow
from visiontune.data.objects import to_text
from visiontune.errors import DataError
from visiontune.machine import cores

IMAGES_FOR_WORKERS = 2000
# What is said of all images, whatever their target is, by the survey of a preparation.
_SAID_ANYWAY = ("duplicate-image", "image-in-several-splits")
NAMES: dict[formats.Format, str] = {"coco": "COCO", "yolo": "YOLO", "voc": "Pascal VOC"}


def detect(source: Path) -> bool:
    """Whether this is a file or a folder of annotations."""
    try:
        formats.detect(source)
    except DataError:
        return False
    return True


def read(source: Path, repair: bool = False, kind: formats.Format | None = None) -> Listing:
    """List the images of a source with their objects, as they are once mended; DataError where it cannot be read.

    The listing has each change that mending takes. Without `repair` it counts the findings that nobody agreed to
    mend. An image with a finding that nothing mends for certain is left out, and so is one that lost all of its objects
    (`left_out`). `kind`: read it as that.
    """
    kind = kind or formats.detect(source)
    written, places = merged(formats.read(source, kind), source.name), formats.places(source, kind)
    files = measure(written, places, _workers(len(written.images)))
    found = examine(written, files)
    table, rows = found.mended, []
    unusable, besides = left_out(written, found)
    single = 0
    for place, (name, split) in enumerate(zip(table.images.file_names, table.images.splits, strict=True)):
        if place in unusable:
            continue
        (path,) = places.find(name, split)  # one without a file, or with several, was taken out
        mine = objects(table, place)
        single += int((~mine.crowd).sum())
        shown = tuple(sorted({table.categories.names[c] for c in mine.classes.tolist()}))
        answer = to_text(mine, table.categories.names)
        called = places.shown(name, path)
        rows.append(SourceRow(called, (path,), (called,), None, answer, False, split, of_classes=shown))
    if rows and not single:
        what = f"none of {len(rows)} images has an object{' that is no crowd' * any(row.of_classes for row in rows)}"
        besides.append(
            on_file(written, "no-objects", "warning", what, "add boxes: nothing can be learned from these data")
        )
    return Listing(
        format=NAMES[kind],
        rows=sorted(rows, key=lambda row: row.id),
        faults=_faults([*found.findings, *besides, *unused_files(written, files, kind, places.base)], repair),
        classes=table.categories.names,
        changes=found.changes,
        unmended=_unmended(found, repair),
    )


def _workers(count: int) -> int:
    """How many processes look at so many images: all cores, or one where that is done sooner."""
    return cores() if count >= IMAGES_FOR_WORKERS else 1


def _unmended(found: Examined, repair: bool) -> dict[str, int]:
    """How many findings of each code `repair` would mend or take out, and has not."""
    return {} if repair else dict(Counter(f.code for f in found.findings if f.severity in ("repair", "drop")))


def _faults(findings: Sequence[Finding], repair: bool) -> list[Fault]:
    """The findings as faults; what was mended is said once for each kind."""
    told = [finding for finding in findings if finding.code not in _SAID_ANYWAY]
    if not repair:
        return [finding.to_fault() for finding in told]
    left = [finding.to_fault() for finding in told if finding.severity != "repair"]
    mended: dict[str, list[Finding]] = defaultdict(list)
    for finding in told:
        if finding.severity == "repair":
            mended[finding.code].append(finding)
    return left + [_mended(code, some) for code, some in mended.items()]


def _mended(code: str, some: Sequence[Finding]) -> Fault:
    first = some[0]
    found = f"{len(some)} mended, the first: {first.found}"
    return Fault(f"mended-{code}", "warning", first.to_fault().where, found, f"done: {first.fix}; see repairs.jsonl")
