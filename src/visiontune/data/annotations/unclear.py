"""What was meant as annotations and is none: said as such, before it is taken for a folder of images."""

from pathlib import Path

import orjson

from visiontune.data.annotations import coco, yolo
from visiontune.errors import DataError


def refuse_unclear(source: Path) -> None:
    """DataError for an empty COCO file, a list of results, and YOLO labels without the names of their classes.

    In a folder that is looked for beside images/, where no other JSON file belongs; of other folders nothing is said.
    """
    if source.is_file():
        files = [source] if source.suffix.lower() == ".json" else []
    elif (source / "images").is_dir():
        files = sorted(source.glob("*.json"))
        _refuse_unnamed_labels(source)
    else:
        files = []
    for path in files:
        found = _problem(path, beside_images=source.is_dir())
        if found is not None:
            raise DataError(found, where=str(path), fix=coco.LAYOUTS)


def _problem(path: Path, beside_images: bool) -> str | None:
    """Why a JSON file is no COCO file; None where it is one, or may be something else."""
    data = path.read_bytes()
    if not data.strip():
        return "this JSON file is empty" if beside_images else None
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        return f"not JSON: {error}" if beside_images else None
    if isinstance(value, list):
        results = bool(value) and isinstance(value[0], dict) and "image_id" in value[0]
        kind = "results" if results else "entries"
        return f"this is a list of {len(value)} {kind}, and no COCO file" if results or beside_images else None
    missing = [name for name in coco.SECTIONS if not isinstance(value, dict) or name not in value]
    return f"this JSON file has no {', '.join(missing)}" if missing and beside_images else None


def _refuse_unnamed_labels(source: Path) -> None:
    if yolo.detect(source):
        return
    places = [source / name for name in ("labels", "images") if (source / name).is_dir()]
    labels = sorted(path for place in places for path in place.rglob("*.txt") if path.is_file() and _is_label(path))
    if labels:
        more = f" and {len(labels) - 1} more" if len(labels) > 1 else ""
        raise DataError(
            f"there are YOLO label files ({labels[0].relative_to(source)}{more}), and nothing names their classes",
            where=str(source),
            fix=f"add data.yaml or classes.txt: {yolo.LAYOUTS}",
        )


def _is_label(path: Path) -> bool:
    """Whether the first line of a text says an object."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeError):
        return False
    words = next((line.split() for line in lines if line.strip()), [])
    return len(words) >= 5 and yolo.problem(words, (1, 1)) is None
