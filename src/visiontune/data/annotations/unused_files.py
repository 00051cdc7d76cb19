"""Files that nobody uses: images that no annotation lists, labels that belong to no image."""

import posixpath
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from visiontune.data.annotations import yolo
from visiontune.data.annotations.findings import Finding, on_file
from visiontune.data.annotations.image_files import ImageFiles
from visiontune.data.annotations.table import Table
from visiontune.data.faults import some
from visiontune.data.format_names import Annotations as Format
from visiontune.data.images import SUFFIXES

# What a tool may leave beside labels, and what names the classes.
_NO_LABELS = frozenset({"classes.txt", "obj.names", "train.txt", "val.txt", "valid.txt", "test.txt", "readme.txt"})


def unused_files(table: Table, files: ImageFiles, kind: Format, root: Path) -> list[Finding]:
    """A warning about images that are not used, and one about YOLO labels: of those in the folders that are used.

    `root` is the folder of the data set, from which the places of YOLO's labels are worked out.
    """
    used = {path for path in files.paths if path is not None}
    findings: list[Finding] = []
    if kind != "yolo":  # its reader takes every image of a folder
        listed = {posixpath.basename(name) for name in table.images.file_names}  # several files may have one name
        images = _others(used, lambda path: path.suffix.lower() in SUFFIXES and path.name not in listed)
        what = "without an XML file" if kind == "voc" else "that the annotations do not list"
        fix = "annotate them, or take them out; they are not used, not even as images without objects"
        findings += _told(table, "unused-images", images, f"images {what}: {len(images)}", fix)
    else:
        base = root.absolute()  # as the paths of the images are
        labels = {yolo.label_file(path, base) for path in used}
        unused = _others(labels, lambda path: path.suffix == ".txt" and path.name.casefold() not in _NO_LABELS)
        found = f"label files without an image: {len(unused)}"
        findings += _told(table, "unused-labels", unused, found, "add their images, or take them out")
    return findings


def _others(used: set[Path], wanted: Callable[[Path], bool]) -> list[Path]:
    """The wanted files beside those that are used, sorted."""
    names: dict[Path, set[str]] = defaultdict(set)
    for path in used:
        names[path.parent].add(path.name)
    return sorted(
        path
        for folder, own in names.items()
        if folder.is_dir()
        for path in folder.iterdir()
        if path.name not in own and not path.name.startswith(".") and wanted(path) and path.is_file()
    )


def _told(table: Table, code: str, paths: list[Path], found: str, fix: str) -> list[Finding]:
    return [on_file(table, code, "warning", found, fix, some([path.name for path in paths]))] if paths else []
