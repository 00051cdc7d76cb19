"""Small pictures and folders of them, made for the tests of the data."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Picture = Callable[..., Image.Image]
Folder = Callable[..., Path]


def made(seed: int, side: int = 24) -> Image.Image:
    """A picture of soft blobs that no other seed looks like: RGB, side x side pixels."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """An image as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def picture() -> Picture:
    """`picture(seed)`: a picture that no other seed looks like."""
    return made


@pytest.fixture
def encode() -> Callable[..., bytes]:
    """`encode(image, "JPEG", quality=90)`: the bytes of a file."""
    return encoded


@pytest.fixture
def classes(tmp_path: Path) -> Folder:
    """`classes({"cat": 5, "dog": 7})`: class folders of different pictures, as PNG files 000.png, 001.png, ..."""

    def make(counts: dict[str, int], name: str = "photos", first_seed: int = 0) -> Path:
        root = tmp_path / name
        seed = first_seed
        for label, count in counts.items():
            (root / label).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                (root / label / f"{i:03d}.png").write_bytes(encoded(made(seed)))
                seed += 1
        return root

    return make
