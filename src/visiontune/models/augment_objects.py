"""Augmentation of images with objects: a function of both and one number, so that it is the same wherever it runs."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageStat
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from visiontune.data.annotations.masks import areas_and_boxes, from_pixels, to_pixels
from visiontune.data.objects import Objects, Rle

# What strength 1 allows, each way: factors, a share of the side, degrees of the colour circle.
ZOOM, SHIFT = 2.0, 0.15
BRIGHTNESS, CONTRAST, SATURATION, HUE = 1.3, 1.3, 1.5, 15.0
LEAST_SEEN = 0.25
SQUARE = 1.1  # the longer side in shorter ones, at most
# Luminance, and the turn of hues that keeps it, as feColorMatrix in the W3C's Filter Effects has them.
_LUMINANCE = np.tile([0.213, 0.715, 0.072], (3, 1))
_HUE_TURN = np.array([[-0.213, -0.715, 0.928], [0.143, 0.140, -0.283], [-0.787, 0.715, 0.072]])


def augmented_objects(
    image: Image.Image,
    objects: Objects,
    strength: float,
    mirror: Literal["none", "horizontal", "all"],
    number: int,
) -> tuple[Image.Image, Objects]:
    """The image mirrored, zoomed, shifted and recoloured, and what is left of its objects where they then are.

    image: RGB. strength: 0 (mirrored at most) to 1. mirror: "horizontal" swaps left and right half of the time, "all"
    takes one of the eight symmetries of the square, each as often, and for an image that is not square one of the four
    that keep it wide or high: models that squeeze images into a square would see its objects in shapes that no image
    shows. number: 0 to 2**64 - 1, decides everything.

    A window, smaller or larger than the image, is cut out and not resized: the model's own resize does that, so pixels
    and masks stay exact and the size changes. What lies outside has the median colour of the image's border. An object
    that the window cuts is dropped where less than LEAST_SEEN of its mask (of its box, where it has none) or less than
    a pixel a side is left; a crowd is kept while any of it is. What was cut has the tight box of its mask, or its box
    cut.
    """
    generator = np.random.default_rng(number)
    transposed, left_right, up_down = generator.integers(2, size=3).astype(bool).tolist()
    draw = generator.uniform(-strength, strength, 7)
    spot = generator.random(2)
    square = max(image.size) <= SQUARE * min(image.size)
    turned = (transposed and mirror == "all" and square, left_right and mirror != "none", up_down and mirror == "all")
    size = np.array(image.size)[::-1]
    sides = size[::-1] if turned[0] else size
    wanted = sides / ZOOM ** draw[0]
    window = (*(spot * (sides - wanted) + SHIFT * draw[1:3] * wanted), *np.maximum(1, wanted))
    top, left, height, width = np.rint(window).astype(int).tolist()
    whole = (top, left, height, width) == (0, 0, *sides.tolist())

    def seen(thing: Any) -> Any:
        thing = _transposed(thing) if turned[0] else thing
        thing = functional.horizontal_flip(thing) if turned[1] else thing
        thing = functional.vertical_flip(thing) if turned[2] else thing
        return thing if whole else _windowed(thing, top, left, height, width)

    if not whole or any(turned):
        objects = _moved(objects, (image.height, image.width), seen)
    image = seen(image)
    return (_recoloured(image, draw[3:]) if strength else image), objects


def _moved(objects: Objects, size: tuple[int, int], seen: Callable[[Any], Any]) -> Objects:
    """What is left of the objects of an image of `size` (height, width), seen as the image is."""
    boxes = seen(_boxes(torch.from_numpy(objects.boxes), size)).numpy()
    before, after = objects.boxes[:, 2] * objects.boxes[:, 3], boxes[:, 2] * boxes[:, 3]
    share = np.divide(after, before, out=np.ones_like(after), where=before > 0)
    cut = share < 1 - 1e-9
    masks: list[Rle | None] = [None] * len(objects)
    for place, mask in enumerate(objects.masks):
        if mask is None or (cut[place] and not share[place]):
            continue
        masks[place] = moved = from_pixels(seen(tv_tensors.Mask(torch.from_numpy(to_pixels(mask)))).numpy())
        if cut[place]:
            areas, tight = areas_and_boxes([mask, moved])
            share[place], boxes[place] = areas[1] / max(1.0, areas[0]), tight[1]
    enough = np.where(objects.crowd, share > 0, (share >= LEAST_SEEN) & (boxes[:, 2:] >= 1).all(axis=1))
    return replace(objects, boxes=boxes, masks=tuple(masks)).some(np.flatnonzero(~cut | enough))


def _boxes(values: torch.Tensor, size: tuple[int, int]) -> Any:
    untyped: Any = tv_tensors.BoundingBoxes
    return untyped(values, format="XYWH", canvas_size=size)


def _transposed(seen: Any) -> Any:
    """Rows and columns swapped; torchvision has no function for it."""
    if isinstance(seen, tv_tensors.BoundingBoxes):
        height, width = seen.canvas_size
        return _boxes(seen.as_subclass(torch.Tensor)[:, [1, 0, 3, 2]], (width, height))
    if isinstance(seen, tv_tensors.Mask):
        return tv_tensors.Mask(seen.as_subclass(torch.Tensor).mT)
    return seen.transpose(Image.Transpose.TRANSPOSE)


def _windowed(seen: Any, top: int, left: int, height: int, width: int) -> Any:
    """What lies in a window; an image has the median colour of its border beyond its sides."""
    if isinstance(seen, torch.Tensor):
        return functional.crop(seen, top, left, height, width)
    pixels = np.asarray(seen)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    window = Image.new("RGB", (width, height), tuple(np.median(border, axis=0).astype(int).tolist()))
    window.paste(seen, (-left, -top))
    return window


def _recoloured(image: Image.Image, draw: NDArray[np.float64]) -> Image.Image:
    """Brightness, contrast, saturation and hue changed by four numbers from -1 to 1, in one pass: each is linear."""
    brightness, contrast, saturation = np.array([BRIGHTNESS, CONTRAST, SATURATION]) ** draw[:3]
    angle = math.radians(HUE) * draw[3]
    colour = math.cos(angle) * (np.eye(3) - _LUMINANCE) + math.sin(angle) * _HUE_TURN
    matrix = brightness * contrast * (_LUMINANCE + saturation * colour)
    grey = _LUMINANCE[0] @ ImageStat.Stat(image).mean
    offset = np.full((3, 1), brightness * (1 - contrast) * grey)
    # Pillow rounds, and cuts at 0 and 255.
    return image.convert("RGB", tuple(np.hstack([matrix, offset]).ravel().tolist()))
