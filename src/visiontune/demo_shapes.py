"""Drawn shapes as a COCO source: what the demonstration of boxes and masks learns from, on photographs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from visiontune.errors import MachineError
from visiontune.files import folder_written_whole

CLASSES = ("disc", "square", "triangle", "cross", "bar", "diamond")
Outline = list[tuple[float, float]]


def photographs() -> list[Image.Image]:
    """The two sample photographs of scikit-learn; MachineError where that is not installed."""
    try:
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        raise MachineError(
            "The demo takes its photographs from scikit-learn, which is not installed.",
            fix="pip install 'visiontune[demo]'",
        ) from error
    return [Image.fromarray(image) for image in load_sample_images().images]


def draw_source(
    folder: Path,
    count: int,
    *,
    size: tuple[int, int] = (96, 96),
    classes: Sequence[str] = CLASSES[:2],
    seed: int = 0,
    masks: bool = True,
    most: int = 3,
    grounds: Sequence[Image.Image] = (),
) -> Path:
    """Write `folder`/images and `folder`/annotations.json, whole or not at all; returns the latter.

    Each image of `size` (width, height) shows 1 to `most` shapes that do not overlap, upon a part of one of the
    photographs `grounds`, or upon a soft pattern where there are none; polygons enclose what is drawn.
    """
    generator = np.random.default_rng(seed)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    with folder_written_whole(folder) as aside:
        (aside / "images").mkdir()
        for number in range(count):
            picture = _ground(generator, size, grounds)
            for place, outline in _shapes(generator, size, classes, most):
                shade = generator.integers(0, 256, 3)
                ImageDraw.Draw(picture).polygon(outline, fill=tuple(int(v) for v in shade))
                entry = {"id": len(annotations) + 1, "image_id": number + 1, "category_id": place + 1, "iscrowd": 0}
                annotations.append(entry | _described(outline, masks))
            picture.save(aside / "images" / f"{number:04d}.png")
            name = f"{number:04d}.png"
            images.append({"id": number + 1, "file_name": name, "width": size[0], "height": size[1]})
        categories = [{"id": place + 1, "name": name} for place, name in enumerate(classes)]
        value = {"images": images, "annotations": annotations, "categories": categories}
        (aside / "annotations.json").write_text(json.dumps(value), encoding="utf-8")
    return folder / "annotations.json"


def outline_of(name: str, left: float, top: float, side: float) -> Outline:
    """The outline of a shape inside a square."""
    half, third = side / 2, side / 3
    if name == "disc":
        turns = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        return [(left + half * (1 + float(np.cos(t))), top + half * (1 + float(np.sin(t)))) for t in turns]
    corners = {
        "square": [(0, 0), (side, 0), (side, side), (0, side)],
        "triangle": [(half, 0), (side, side), (0, side)],
        "bar": [(0, third), (side, third), (side, 2 * third), (0, 2 * third)],
        "diamond": [(half, 0), (side, half), (half, side), (0, half)],
        "cross": [
            (third, 0), (2 * third, 0), (2 * third, third), (side, third), (side, 2 * third), (2 * third, 2 * third),
            (2 * third, side), (third, side), (third, 2 * third), (0, 2 * third), (0, third), (third, third),
        ],
    }[name]  # fmt: skip
    return [(left + x, top + y) for x, y in corners]


def _ground(generator: np.random.Generator, size: tuple[int, int], grounds: Sequence[Image.Image]) -> Image.Image:
    width, height = size
    if not grounds:
        pattern = generator.normal(110, 12, (height // 8 + 1, width // 8 + 1, 3)).clip(0, 255).astype(np.uint8)
        return Image.fromarray(pattern).resize(size, Image.Resampling.BICUBIC)
    photograph = grounds[int(generator.integers(len(grounds)))]
    zoom = generator.uniform(1, min(photograph.width / width, photograph.height / height))
    wide, high = width * zoom, height * zoom
    left, top = generator.uniform(0, photograph.width - wide), generator.uniform(0, photograph.height - high)
    return photograph.resize(size, Image.Resampling.BILINEAR, box=(left, top, left + wide, top + high))


def _shapes(
    generator: np.random.Generator, size: tuple[int, int], classes: Sequence[str], most: int
) -> list[tuple[int, Outline]]:
    """(class, outline) of shapes that stand apart."""
    found: list[tuple[int, Outline]] = []
    taken: list[tuple[int, int, int]] = []
    for _ in range(int(generator.integers(1, most + 1))):
        side = int(generator.integers(min(size) // 6, min(size) // 3))
        left, top = (int(generator.integers(0, full - side)) for full in size)
        place = int(generator.integers(len(classes)))
        if any(abs(left - x) < max(side, s) and abs(top - y) < max(side, s) for x, y, s in taken):
            continue
        taken.append((left, top, side))
        found.append((place, outline_of(classes[place], left, top, side)))
    return found


def _described(outline: Outline, masks: bool) -> dict[str, Any]:
    """Box and area of an outline as COCO has them, with its polygon where masks are wanted."""
    xs, ys = np.array(outline, float).T
    box = [float(xs.min()), float(ys.min()), float(np.ptp(xs)), float(np.ptp(ys))]
    if not masks:
        return {"bbox": box, "area": box[2] * box[3]}
    area = float(abs(np.dot(xs, np.roll(ys, 1)) - np.dot(ys, np.roll(xs, 1))) / 2)
    return {"bbox": box, "area": area, "segmentation": [[float(v) for point in outline for v in point]]}
