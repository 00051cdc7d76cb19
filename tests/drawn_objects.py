"""Drawn images with objects: scenes that have an upper side, a left side or neither, and COCO files of them."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from visiontune.data.annotations.masks import from_pixels
from visiontune.data.pages import DEFAULT_FONT

Scene = tuple[Image.Image, list[tuple[int, int, int, int]], list[str]]
"""An RGB image, boxes (left, top, width, height) in whole pixels and a class name for each."""

WIDTH, HEIGHT = 160, 120
WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "lazy",
    "dogs",
    "while",
    "people",
    "read",
    "bright",
    "signs",
    "about",
    "every",
    "hotel",
    "kitchen",
]


def street(seed: int) -> Scene:
    """Cars and people on the ground below a sky; one in four is a night scene, with the lights turned round."""
    rng = np.random.default_rng(seed)
    sky, ground = int(rng.integers(150, 230)), int(rng.integers(40, 110))
    if seed % 4 == 3:
        sky, ground = ground, sky
    horizon = int(rng.integers(40, 60))
    image = Image.new("RGB", (WIDTH, HEIGHT), (sky,) * 3)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, horizon, WIDTH, HEIGHT), fill=(ground,) * 3)
    boxes, names = [], []
    for _ in range(int(rng.integers(2, 5))):
        colour = tuple(rng.integers(0, 256, 3).tolist())
        if rng.random() < 0.5:
            width = int(rng.integers(10, 20)) * 2
            height, wheel = width // 2, width // 6
            x, y = int(rng.integers(0, WIDTH - width)), int(rng.integers(horizon - 5, HEIGHT - height))
            right, bottom = x + width - 1, y + height - 1
            draw.rectangle((x + width // 4, y, right - width // 4, bottom), fill=colour)
            draw.rectangle((x, y + height // 3, right, bottom - wheel // 2), fill=colour)
            draw.ellipse((x + 2, bottom - wheel, x + 2 + wheel, bottom), fill=(0, 0, 0))
            draw.ellipse((right - 2 - wheel, bottom - wheel, right - 2, bottom), fill=(0, 0, 0))
            names.append("car")
        else:
            width = int(rng.integers(4, 8)) * 2
            height, head = 3 * width, width // 2
            x, y = int(rng.integers(0, WIDTH - width)), int(rng.integers(horizon - 10, HEIGHT - height))
            right = x + width - 1
            draw.ellipse((x + head // 2, y, right - head // 2, y + head), fill=(220, 180, 150))
            draw.rectangle((x, y + head, right, y + 2 * width), fill=colour)
            draw.rectangle((x + width // 4, y + 2 * width, right - width // 4, y + height - 1), fill=(30, 30, 60))
            names.append("person")
        boxes.append((x, y, width, height))
    return _noisy(image, rng), boxes, names


def cells(seed: int, *, count: int = 8, radius: int = 10, depth: int = 80, lamp: float = 0.0, light: int = 0) -> Scene:
    """Up to `count` ellipses of about `radius` pixels, `depth` levels off their ground. `lamp`: how many levels lighter
    the lower border is than the upper one; `light`: how many levels the images' brightness differs."""
    rng = np.random.default_rng(seed)
    ground = 170 + int(rng.integers(-light, light + 1))
    image = Image.new("RGB", (WIDTH, HEIGHT), (ground,) * 3)
    draw = ImageDraw.Draw(image)
    boxes = []
    for _ in range(int(rng.integers(count // 2, count + 1))):
        half = np.maximum(1, np.rint(radius * rng.uniform(0.7, 1.3, 2))).astype(int)
        x, y = (int(rng.integers(0, side - 2 * part)) for side, part in zip((WIDTH, HEIGHT), half, strict=True))
        width, height = (2 * half).tolist()
        colour = tuple(ground - depth + int(value) for value in rng.integers(-depth // 8, depth // 8 + 1, 3))
        draw.ellipse((x, y, x + width - 1, y + height - 1), fill=colour)
        boxes.append((x, y, width, height))
    shine = lamp * (np.arange(HEIGHT) / HEIGHT - 0.5)
    return _noisy(image, rng, shine[:, None, None]), boxes, ["cell"] * len(boxes)


def letters(seed: int) -> Scene:
    """Letters that their mirror image is not, each a class."""
    rng = np.random.default_rng(seed)
    return _written(seed, rng, ["EFLPR"[int(rng.integers(5))] for _ in range(4)], (20, 30), letters=True)


def text_lines(seed: int) -> Scene:
    """Lines of one or two words, all of one class."""
    rng = np.random.default_rng(seed)
    lines = [" ".join(rng.choice(WORDS, int(rng.integers(1, 3)))) for _ in range(5)]
    return _written(seed, rng, lines, (12, 18), letters=False)


def _written(seed: int, rng: np.random.Generator, texts: Sequence[str], sizes: tuple[int, int], letters: bool) -> Scene:
    ground, ink = (230, 20) if seed % 2 else (20, 230)
    image = Image.new("RGB", (WIDTH, HEIGHT), (ground,) * 3)
    draw = ImageDraw.Draw(image)
    boxes, names = [], []
    for text in texts:
        font = ImageFont.truetype(DEFAULT_FONT, int(rng.integers(*sizes)))
        _, _, wide, high = draw.textbbox((0, 0), text, font=font)
        x, y = int(rng.integers(0, max(1, WIDTH - wide))), int(rng.integers(0, HEIGHT - high))
        draw.text((x, y), text, font=font, fill=(ink,) * 3)
        left, top, right, bottom = draw.textbbox((x, y), text, font=font)
        boxes.append((int(left), int(top), int(min(right, WIDTH) - left), int(bottom - top)))
        names.append(text if letters else "line")
    return _noisy(image, rng), boxes, names


def _noisy(image: Image.Image, rng: np.random.Generator, more: np.ndarray | float = 0.0) -> Image.Image:
    pixels = np.asarray(image) + more + rng.normal(0, 4, (HEIGHT, WIDTH, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def coco_source(folder: Path, scenes: Sequence[Scene], *, masks: bool = False, crowds: Sequence[int] = ()) -> Path:
    """The scenes as PNG files and a COCO file, which is returned. Masks fill their boxes; the objects whose numbers are
    in `crowds`, counted over all scenes, are crowds."""
    (folder / "images").mkdir(parents=True)
    names = sorted({name for _, _, some in scenes for name in some} or {"thing"})
    images, annotations = [], []
    for number, (image, boxes, classes) in enumerate(scenes):
        file = f"{number:04d}.png"
        image.save(folder / "images" / file)
        images.append({"id": number, "file_name": file, "width": image.width, "height": image.height})
        for box, name in zip(boxes, classes, strict=True):
            left, top, width, height = box
            entry = {
                "id": len(annotations),
                "image_id": number,
                "category_id": names.index(name),
                "bbox": list(box),
                "area": width * height,
                "iscrowd": int(len(annotations) in crowds),
            }
            if masks:
                cover = np.zeros((image.height, image.width), bool)
                cover[top : top + height, left : left + width] = True
                entry["segmentation"] = from_pixels(cover).to_coco()
            annotations.append(entry)
    categories = [{"id": place, "name": name} for place, name in enumerate(names)]
    path = folder / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path
