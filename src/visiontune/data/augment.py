"""Augmentation of training images and pages: a function of the image and one number, so that it is the same wherever
it runs."""

import hashlib
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from visiontune.data.order import key

# What strength 1 allows, each way: a shift by a share of the side, a turn in degrees, a scale by a factor.
SHIFT, TURN, SCALE = 0.15, 15.0, 1.15
# The same for pages, which scanners and hands hold straighter; a corner is pulled by a share of the sides.
PAGE_SHIFT, PAGE_TURN, PAGE_SCALE, PAGE_PULL = 0.05, 3.0, 1.1, 0.03
INK, PAPER, LIGHT, GRAIN = 60, 50, 16, 10


def augmentation_key(seed: int, sample_id: str, epoch: int) -> int:
    """The number that decides a sample's augmentation in an epoch of a run."""
    name = int.from_bytes(hashlib.blake2b(sample_id.encode("utf-8"), digest_size=8).digest(), "big")
    return key(seed, 7, name, epoch)


def augmented(image: Image.Image, strength: float, number: int) -> Image.Image:
    """The image shifted, turned and scaled a little, in its size; never mirrored, for text and digits have a side.

    image: RGB. strength: 0 (nothing) to 1. What moves in from outside has the median colour of the image's border.
    """
    draw = np.random.default_rng(number).uniform(-strength, strength, 4)
    angle, scale = math.radians(TURN) * draw[0], SCALE ** draw[1]
    width, height = image.size
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    # Pillow wants, for each pixel of the result, where it comes from: the inverse map, about the centre.
    centre_x, centre_y = width / 2, height / 2
    from_x, from_y = centre_x + SHIFT * width * draw[2], centre_y + SHIFT * height * draw[3]
    matrix = (cos, sin, from_x - cos * centre_x - sin * centre_y, -sin, cos, from_y + sin * centre_x - cos * centre_y)
    pixels = np.asarray(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    fill = tuple(int(value) for value in np.median(border, axis=0))
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=fill)


def augmented_page(
    page: NDArray[np.uint8], margins: tuple[int, int, int, int], strength: float, number: int
) -> NDArray[np.uint8]:
    """The page as a camera or a scanner may show it, in its size; never mirrored, and no letter leaves it.

    page: (height, width), grey. margins: top, right, bottom, left in pixels; what is drawn lies inside them. strength:
    0 (the page itself) to 1. The page is turned, scaled, shifted and seen a little askew, and made smaller where its
    text would not fit any more. What moves in from outside is paper. Then ink and paper come nearer to each other, the
    light is uneven and the paper has grain.
    """
    if strength == 0:
        return page
    generator = np.random.default_rng(number)
    back = np.linalg.inv(page_map(page.shape, margins, strength, generator))
    back /= back[2, 2]
    paper = int(np.median(np.concatenate([page[0], page[-1], page[:, 0], page[:, -1]])))
    height, width = page.shape
    seen = Image.fromarray(page).transform(
        (width, height),
        Image.Transform.PERSPECTIVE,
        tuple(back.ravel()[:8]),
        Image.Resampling.BILINEAR,
        fillcolor=paper,
    )
    darkest, lightest = strength * INK * generator.random(), 255 - strength * PAPER * generator.random()
    levels = np.linspace(darkest, lightest, 256, dtype=np.float32)
    corners = generator.uniform(-strength * LIGHT, 0, (2, 2)).astype(np.float32)
    light = np.asarray(Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR))
    grain = generator.integers(0, 256, page.shape, dtype=np.uint8)
    swing = strength * GRAIN * generator.random()
    result = levels[np.asarray(seen)] + light + np.linspace(-swing, swing, 256, dtype=np.float32)[grain]
    return np.clip(result, 0, 255, out=result).astype(np.uint8)


def page_map(
    shape: tuple[int, int], margins: tuple[int, int, int, int], strength: float, generator: np.random.Generator
) -> NDArray[np.float64]:
    """The (3, 3) homography from places (x, y, 1) on a page of `shape` (height, width) to places on the changed page.

    The rectangle inside the margins stays on the page whatever is drawn.
    """
    draw = strength * generator.uniform(-1, 1, 12)
    size = np.array(shape[::-1], dtype=np.float64)
    top, right, bottom, left = margins
    corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1)]) * size
    angle, scale = math.radians(PAGE_TURN) * draw[0], PAGE_SCALE ** draw[1]
    turn = scale * np.array([(math.cos(angle), -math.sin(angle)), (math.sin(angle), math.cos(angle))])
    pulled = corners + PAGE_PULL * size * draw[4:].reshape(4, 2)
    there = _homography(corners, (pulled - size / 2) @ turn.T)
    text = np.array([(left, top), (size[0] - right, top), size - (right, bottom), (left, size[1] - bottom)])
    moved = _moved(there, text)
    low, high = moved.min(axis=0), moved.max(axis=0)
    shrink = min(1.0, *(size / (high - low)))
    wanted = size / 2 + PAGE_SHIFT * size * draw[2:4]
    shift = np.maximum(-shrink * low, np.minimum(size - shrink * high, wanted))
    return np.array([(shrink, 0, shift[0]), (0, shrink, shift[1]), (0, 0, 1)]) @ there


def _moved(homography: NDArray[np.float64], places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where a homography takes places (n, 2)."""
    lifted = np.column_stack([places, np.ones(len(places))]) @ homography.T
    return lifted[:, :2] / lifted[:, 2:]


def _homography(start: NDArray[np.float64], end: NDArray[np.float64]) -> NDArray[np.float64]:
    """The (3, 3) homography that takes four places to four others, both (4, 2), its last element 1."""
    rows, zeros, ones = [], np.zeros(3), np.ones((4, 1))
    for (x, y, one), (u, v) in zip(np.hstack([start, ones]), end, strict=True):
        rows.append([x, y, one, *zeros, -u * x, -u * y])
        rows.append([*zeros, x, y, one, -v * x, -v * y])
    return np.append(np.linalg.solve(np.array(rows), end.ravel()), 1.0).reshape(3, 3)
