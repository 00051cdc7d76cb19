"""Images with boxes and masks: COCO, YOLO and Pascal VOC, examined and, where that is asked for, mended."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from visiontune.data import faults
from visiontune.data.annotations import formats
from visiontune.data.annotations.examine import Examined, examine
from visiontune.data.annotations.findings import Finding
from visiontune.data.annotations.masks import objects
from visiontune.data.annotations.table import merged
from visiontune.data.faults import Fault
from visiontune.data.formats.image_folder import SPLIT_NAMES
from visiontune.data.formats.rows import Listing, SourceRow
from visiontune.data.objects import to_text
from visiontune.errors import DataError

NAMES: dict[formats.Format, str] = {"coco": "COCO", "yolo": "YOLO", "voc": "Pascal VOC"}


def detect(source: Path) -> bool:
    """Whether this is a file or a folder of annotations."""
    try:
        formats.detect(source)
    except DataError:
        return False
    return True


def read(source: Path, repair: bool = False) -> Listing:
    """List the images of a source with their objects, as they are once mended; DataError where it cannot be read.

    The listing has each change that mending takes. Without `repair` it counts the findings that nobody agreed to mend.
    An image with a finding that nothing mends for certain is left out, and the finding is an error.
    """
    kind = formats.detect(source)
    found = examine(merged(formats.read(source), source.name))
    table, images = found.mended, _ImageFiles(source)
    wrong = {finding.image_id for finding in found.findings if finding.severity == "error"}
    rows, listed = [], _faults(found, repair)
    for place, name in enumerate(table.images.file_names):
        if int(table.images.ids[place]) in wrong:
            continue
        path = images.find(name, table.images.splits[place])
        if isinstance(path, Fault):
            listed.append(path)
            continue
        mine = objects(table, place)
        shown = tuple(sorted({table.categories.names[c] for c in mine.classes.tolist()}))
        answer, split = to_text(mine, table.categories.names), table.images.splits[place]
        rows.append(SourceRow(name, (path,), (name,), None, answer, False, split, of_classes=shown))
    return Listing(
        format=NAMES[kind],
        rows=sorted(rows, key=lambda row: row.id),
        faults=listed,
        classes=table.categories.names,
        changes=found.changes,
        unmended=_unmended(found, repair),
    )


def _unmended(found: Examined, repair: bool) -> dict[str, int]:
    """How many findings of each code `repair` would mend or take out, and has not."""
    return {} if repair else dict(Counter(f.code for f in found.findings if f.severity in ("repair", "drop")))


def _faults(found: Examined, repair: bool) -> list[Fault]:
    """The findings as faults; what was mended is said once for each kind."""
    if not repair:
        return [finding.to_fault() for finding in found.findings]
    left = [finding.to_fault() for finding in found.findings if finding.severity != "repair"]
    mended: dict[str, list[Finding]] = defaultdict(list)
    for finding in found.findings:
        if finding.severity == "repair":
            mended[finding.code].append(finding)
    return left + [_mended(code, some) for code, some in mended.items()]


def _mended(code: str, some: Sequence[Finding]) -> Fault:
    first = some[0]
    found = f"{len(some)} mended, the first: {first.found}"
    return Fault(f"mended-{code}", "warning", first.to_fault().where, found, f"done: {first.fix}; see repairs.jsonl")


class _ImageFiles:
    """The files that annotations name: below the source's folder or one of its subfolders, and for a file in a folder
    called annotations also below the folders beside that one, as COCO is published."""

    def __init__(self, source: Path) -> None:
        root = source if source.is_dir() else source.parent
        outer = root.parent if root.name.casefold() == "annotations" else root
        self._outer = outer.resolve()
        self._folders = list(dict.fromkeys([root, *_children(root), *_children(outer)]))

    def find(self, name: str, split: str | None) -> Path | Fault:
        """The file of an image; the fault where there is none, or several in as many folders."""
        found = [folder for folder in self._folders if name and (folder / name).is_file()]
        of_split = [folder for folder in found if SPLIT_NAMES.get(folder.name.casefold()) == split]
        if len(found) > 1 and split is not None and len(of_split) == 1:
            found = of_split
        if not found:
            return faults.missing_file(name or "an image without a name", name)
        if len(found) > 1:
            return faults.ambiguous_file(name, [folder.name for folder in found])
        if not (path := found[0] / name).resolve().is_relative_to(self._outer):
            return faults.outside_folder(name, name)
        return path


def _children(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
