"""Each known fault of image files planted into a folder of sound images: what the examination is measured with."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tests.planted_annotations import Coco

_ORIENTATION = 0x0112


@dataclass(frozen=True)
class ImagePlant:
    """A fault by name, the code under which it must be found, and how it gets into a folder; and into which image."""

    name: str
    code: str
    plant: Callable[[Path, Coco], int]


def draw_images(folder: Path, coco: Coco, seed: int = 0) -> None:
    """Write an image of noise, no two alike, for each image of sound annotations."""
    random = np.random.default_rng(seed)
    for image in coco["images"]:
        pixels = random.integers(0, 256, (image["height"], image["width"], 3), dtype=np.uint8)
        path = folder / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def _missing(folder: Path, coco: Coco) -> int:
    image = coco["images"][3]
    (folder / image["file_name"]).unlink()
    return image["id"]


def _truncated(folder: Path, coco: Coco) -> int:
    path = folder / coco["images"][3]["file_name"]
    path.write_bytes(path.read_bytes()[:-2000])
    return coco["images"][3]["id"]


def _without_size(_: Path, coco: Coco) -> int:
    del coco["images"][3]["width"]
    return coco["images"][3]["id"]


def _of_other_size(folder: Path, coco: Coco) -> int:
    path = folder / coco["images"][3]["file_name"]
    with Image.open(path) as image:
        image.resize((image.width * 2, image.height * 2)).save(path)
    return coco["images"][3]["id"]


def oriented(path: Path, orientation: int) -> None:
    """Give an image file an EXIF orientation."""
    with Image.open(path) as stored:
        exif = stored.getexif()
        exif[_ORIENTATION] = orientation
        buffer = io.BytesIO()
        stored.save(buffer, "PNG", exif=exif.tobytes())
    path.write_bytes(buffer.getvalue())


def _turned(folder: Path, coco: Coco) -> int:
    image = coco["images"][4]
    oriented(folder / image["file_name"], 6)
    # A box at the right edge of the wide stored image is outside of the high upright one: boxes are of stored pixels.
    box = [image["width"] - 12, 5, 10, 8]
    category = coco["categories"][0]["id"]
    coco["annotations"].append(
        {"id": 9000, "image_id": image["id"], "category_id": category, "bbox": box, "area": 80, "iscrowd": 0}
    )
    return image["id"]


def _upside_down(folder: Path, coco: Coco) -> int:
    oriented(folder / coco["images"][4]["file_name"], 3)
    return coco["images"][4]["id"]


def _mirrored(folder: Path, coco: Coco) -> int:
    oriented(folder / coco["images"][4]["file_name"], 2)
    return coco["images"][4]["id"]


def _square_turned(folder: Path, coco: Coco) -> int:
    image = {"id": 9000, "file_name": "square.png", "width": 80, "height": 80}
    draw_images(folder, {"images": [image]}, seed=1)
    oriented(folder / "square.png", 6)
    coco["images"].append(image)
    of_image = {"id": 9000, "image_id": 9000, "category_id": coco["categories"][0]["id"]}
    coco["annotations"].append({**of_image, "bbox": [5, 40, 20, 30], "area": 600, "iscrowd": 0})
    return 9000


def _copied(folder: Path, coco: Coco) -> int:
    first, other = coco["images"][0], coco["images"][3]
    (folder / other["file_name"]).write_bytes((folder / first["file_name"]).read_bytes())
    return other["id"]


IMAGE_PLANTS = (
    ImagePlant("image file missing", "missing-image-file", _missing),
    ImagePlant("image file cut off", "unreadable-image", _truncated),
    ImagePlant("width not written", "missing-image-size", _without_size),
    ImagePlant("image of another size", "image-size-differs", _of_other_size),
    ImagePlant("image turned by EXIF", "exif-rotation", _turned),
    ImagePlant("image upside down by EXIF", "exif-orientation", _upside_down),
    ImagePlant("image mirrored by EXIF", "exif-orientation", _mirrored),
    ImagePlant("square image turned by EXIF", "exif-orientation", _square_turned),
    ImagePlant("image there twice", "duplicate-image", _copied),
    ImagePlant("image in two splits", "image-in-several-splits", _copied),
)
