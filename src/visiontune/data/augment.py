"""Augmentation of training images: a function of the image and one number, so that it is the same wherever it runs."""

import hashlib
import math

import numpy as np
from PIL import Image

from visiontune.data.order import key

# What strength 1 allows, each way: a shift by a share of the side, a turn in degrees, a scale by a factor.
SHIFT, TURN, SCALE = 0.15, 15.0, 1.15


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
