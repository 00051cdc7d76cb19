"""Small pictures, and the bytes that they are as files."""

import io
from typing import Any

import numpy as np
from PIL import Image


def picture(seed: int, side: int = 24) -> Image.Image:
    """A picture of soft blobs that no other seed looks like: RGB, side x side pixels."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """An image as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
