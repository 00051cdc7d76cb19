"""Faults of data: which are found, what clean data raise, and how long a large file takes.

`text` plants each known fault into sound conversations about images, one at a time, and asks whether it is found once,
in its place; then inspects three clean sets (made up; scikit-learn's digits in class folders; parts of its photographs
with captions, inside a Parquet file) and counts every fault as a false alarm.

`boxes` plants each known fault into sound annotations, one at a time, and asks whether it is found once, in its place;
then examines three clean sets (made up; BCCD and the nuclei as repaired) and counts every finding as a false alarm;
then times a file of a million boxes and one of 250,000 polygons, reading included. Without folders the extracts that
the tests have stand for BCCD and the nuclei.

    python bench/faults.py text
    python bench/faults.py boxes [--bccd FOLDER] [--nuclei FOLDER] [--boxes 1000000] [--polygons 250000]
"""

import argparse
import platform
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from visiontune.data.annotations import coco, formats
from visiontune.data.annotations.examine import Examined, examine
from visiontune.data.annotations.findings import Finding
from visiontune.data.annotations.image_files import Places, measure
from visiontune.data.annotations.table import merged
from visiontune.data.inspect import inspect
from visiontune.demo_shapes import photographs

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests know which faults to plant
from tests.pictures import encoded
from tests.planted_annotations import PLANTS, planted, sound_annotations
from tests.planted_images import IMAGE_PLANTS, draw_images
from tests.planted_texts import BROUGHT_ALONG, sound, write
from tests.planted_texts import PLANTS as TEXT_PLANTS

EXTRACTS = Path(__file__).parents[1] / "tests/data/annotations"
WIDTH, HEIGHT = 640, 480
POINTS = 20
PER_IMAGE = 10
CLASSES = 80


def hits(findings: list[Finding], code: str, image_id: int | None, annotation_id: int | None) -> list[Finding]:
    """The findings with this code in this place."""
    return [
        finding
        for finding in findings
        if finding.code == code
        and (annotation_id is None or finding.annotation_id == annotation_id)
        and (image_id is None or finding.image_id in (image_id, None))
    ]


def mended(found: Examined, again: Examined) -> str:
    """What repair made of a fault: nothing left to do, or a person's choice."""
    if again.changes:
        return "NOT IDEMPOTENT"
    return "mended" if found.changes else "told"


def plant_annotations() -> tuple[int, int, int]:
    """(planted, found, findings besides) of the faults of annotations; prints a line each."""
    right, besides = 0, 0
    for plant in PLANTS:
        file, image_id, annotation_id = planted(sound_annotations(), plant)
        found = examine(coco.to_table(file, "planted"))
        hit = hits(found.findings, plant.code, image_id, annotation_id)
        right += len(hit) == 1
        others = [finding.code for finding in found.findings if finding not in hit]
        besides += len(others)
        line(plant.name, plant.code, hit, mended(found, examine(found.mended)), others)
    return len(PLANTS), right, besides


def plant_images() -> tuple[int, int, int]:
    """(planted, found, findings besides) of the faults of image files; prints a line each."""
    right, besides = 0, 0
    for plant in IMAGE_PLANTS:
        with tempfile.TemporaryDirectory() as name:
            folder, file = Path(name), sound_annotations(9)
            draw_images(folder, file)
            image_id = plant.plant(folder, file)
            table = coco.to_table(file, "planted")
            if plant.code == "image-in-several-splits":
                splits = tuple("test" if number == image_id else "train" for number in table.images.ids.tolist())
                table = replace(table, images=replace(table.images, splits=splits))
            found = examine(table, measure(table, Places(folder)))
            again = examine(found.mended, measure(found.mended, Places(folder)))
        hit = hits(found.findings, plant.code, image_id, None)
        right += len(hit) == 1
        others = [finding.code for finding in found.findings if finding not in hit]
        besides += len(others)
        line(plant.name, plant.code, hit, mended(found, again), others)
    return len(IMAGE_PLANTS), right, besides


def line(name: str, code: str, hit: list[Finding], outcome: str, others: list[str]) -> None:
    """One planted fault in one line."""
    severity = hit[0].severity if hit else "MISSED"
    more = f"  besides: {', '.join(sorted(set(others)))}" if others else ""
    print(f"  {name:<32} {code:<30} {severity:<8} {outcome}{more}")


def clean(name: str, source: Path | None) -> int:
    """The findings about a clean set: annotations that were made up, or real ones after repair."""
    if source is None:
        table = coco.to_table(sound_annotations(1000, seed=1), name)
        published: Counter[str] = Counter()
        files = None
    else:
        as_published = merged(formats.read(source), name)
        places = Places(source)
        with_images = (source / "JPEGImages").is_dir() or (source / "images").is_dir()
        files = measure(as_published, places) if with_images else None
        found = examine(as_published, files)
        published = Counter(finding.code for finding in found.findings)
        table = found.mended
        files = measure(table, places) if with_images else None
    alarms = examine(table, files).findings
    looked = "and image files" if files is not None else "without image files"
    print(
        f"  {name:<10} {len(table.images):>6,} images, {len(table.annotations):>7,} annotations {looked:<20} "
        f"as published: {dict(published) or 'nothing found'}; false alarms: {len(alarms)}"
    )
    return len(alarms)


def large_file(count: int, polygons: bool, path: Path) -> None:
    """Write a COCO file of `count` sound boxes or polygons, ten an image, eighty classes."""
    random = np.random.default_rng(0)
    size = random.integers(10, 200, (count, 2))
    corner = (random.random((count, 2)) * (np.array([WIDTH, HEIGHT]) - size)).astype(np.int64)
    outlines = _outlines(corner, size, random) if polygons else None
    entries: list[dict[str, Any]] = []
    for k in range(count):
        entry: dict[str, Any] = {"id": k + 1, "image_id": k // PER_IMAGE, "category_id": k % CLASSES + 1, "iscrowd": 0}
        if outlines is None:
            entry |= {"bbox": [*corner[k].tolist(), *size[k].tolist()], "area": int(size[k].prod())}
        else:
            points, following = outlines[k], np.roll(outlines[k], -1, axis=0)
            low = points.min(axis=0)
            area = abs(float((points[:, 0] * following[:, 1] - points[:, 1] * following[:, 0]).sum()) / 2)
            entry |= {"bbox": [*low.tolist(), *(points.max(axis=0) - low).tolist()], "area": area}
            entry["segmentation"] = [points.ravel().tolist()]
        entries.append(entry)
    images = [
        {"id": k, "file_name": f"{k:06d}.jpg", "width": WIDTH, "height": HEIGHT}
        for k in range((count + PER_IMAGE - 1) // PER_IMAGE)
    ]
    categories = [{"id": k + 1, "name": f"class {k}"} for k in range(CLASSES)]
    path.write_bytes(orjson.dumps({"images": images, "annotations": entries, "categories": categories}))


def _outlines(corner: NDArray[np.int64], size: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.float64]:
    """(n, POINTS, 2): blobs that fill their boxes about."""
    angles = np.arange(POINTS) / POINTS * 2 * np.pi
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    radius = 0.6 + 0.4 * random.random((len(size), POINTS, 1))
    return (corner[:, None] + size[:, None] / 2 * (1 + circle * radius)).round(2)


def timed(count: int, polygons: bool) -> None:
    """Read and examine a large file, and say how long that took."""
    what = "polygons" if polygons else "boxes"
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "large.json"
        large_file(count, polygons, path)
        megabytes = path.stat().st_size / 1e6
        start = time.perf_counter()
        (table,) = coco.read(path)
        read = time.perf_counter() - start
        findings = examine(table).findings
        whole = time.perf_counter() - start
    seconds = f"read {read:.1f} s, in all {whole:.1f} s"
    print(f"  {count:>9,} {what:<8} {megabytes:>4.0f} MB: {seconds}, {len(findings)} findings")


def texts() -> None:
    """Faults of conversations about images."""
    print("one fault planted at a time")
    found = others = 0
    for plant in TEXT_PLANTS:
        with tempfile.TemporaryDirectory() as name:
            rows = sound(Path(name))
            more = plant.plant(Path(name), rows) or []
            told = inspect(write(Path(name), rows, *more)).faults
        hit = [fault for fault in told if (fault.code, fault.severity) == (plant.code, plant.severity)]
        hit = [fault for fault in hit if plant.where in fault.where]
        rest = [fault.code for fault in told if fault not in hit and fault.code != BROUGHT_ALONG.get(plant.name)]
        found += len(hit) == 1
        others += len(rest)
        outcome = f"{hit[0].severity}: {hit[0].where}" if hit else "NOT FOUND"
        print(f"  {plant.name:40} {plant.code:26} {outcome}{'; besides ' + ', '.join(rest) if rest else ''}")
    codes = {plant.code for plant in TEXT_PLANTS}
    print(f"planted {len(TEXT_PLANTS)} ({len(codes)} codes), found {found}, other faults that were said {others}\n")
    print("clean sets")
    alarms = 0
    for name, make in {"made up": lambda place: write(place, sound(place)), "digits": digits, "parts": parts}.items():
        with tempfile.TemporaryDirectory() as place:
            told = inspect(make(Path(place)))
        alarms += len(told.faults)
        print(f"  {name:8} {told.samples} samples, {len(told.faults)} faults {[fault.code for fault in told.faults]}")
    print(f"false alarms {alarms}")


def digits(folder: Path) -> Path:
    """A tenth of scikit-learn's digits, enlarged, in a folder a class."""
    from sklearn.datasets import load_digits

    for number, (scan, label) in enumerate(zip(*load_digits(return_X_y=True), strict=True)):
        if number % 10 == 0:
            place = folder / "digits" / str(label)
            place.mkdir(parents=True, exist_ok=True)
            pixels = (scan.reshape(8, 8) * 255 / 16).round().astype(np.uint8)
            Image.fromarray(pixels).resize((32, 32)).save(place / f"{number:04d}.png")
    return folder / "digits"


def parts(folder: Path) -> Path:
    """Parts of scikit-learn's photographs with captions, inside a Parquet file as `datasets` writes it."""
    rows = []
    for number, photograph in enumerate(photographs()):
        for top in range(0, photograph.height - 100, 100):
            for left in range(0, photograph.width - 100, 100):
                data = encoded(photograph.crop((left, top, left + 100, top + 100)), "JPEG", quality=90)
                caption = f"Photograph {number}, {left} pixels from the left and {top} from above."
                rows.append({"image": {"bytes": data, "path": None}, "caption": caption})
    pq.write_table(pa.Table.from_pylist(rows), folder / "parts.parquet")
    return folder / "parts.parquet"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["text", "boxes"])
    parser.add_argument("--bccd", type=Path, default=EXTRACTS / "bccd")
    parser.add_argument("--nuclei", type=Path, default=EXTRACTS / "nuclei")
    parser.add_argument("--boxes", type=int, default=1_000_000)
    parser.add_argument("--polygons", type=int, default=250_000)
    options = parser.parse_args()
    if options.kind == "text":
        texts()
        return

    print("one fault planted at a time")
    in_all = [plant_annotations(), plant_images()]
    planted_faults, found, besides = (sum(column) for column in zip(*in_all, strict=True))
    codes = {plant.code for plant in PLANTS} | {plant.code for plant in IMAGE_PLANTS}
    print(f"planted {planted_faults} ({len(codes)} codes), found {found}, other findings that they bring {besides}\n")

    print("clean sets")
    alarms = clean("made up", None) + clean("bccd", options.bccd) + clean("nuclei", options.nuclei)
    print(f"false alarms {alarms}\n")

    print(f"large files; {platform.processor() or platform.machine()}, one thread, numpy {np.__version__}")
    timed(options.boxes, polygons=False)
    timed(options.polygons, polygons=True)


if __name__ == "__main__":
    main()
