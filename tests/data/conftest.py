"""Small pictures and folders of them, made for the tests of the data."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests import pictures

Picture = Callable[..., Image.Image]
Folder = Callable[..., Path]


@pytest.fixture
def picture() -> Picture:
    """`picture(seed)`: a picture that no other seed looks like."""
    return pictures.picture


@pytest.fixture
def encode() -> Callable[..., bytes]:
    """`encode(image, "JPEG", quality=90)`: the bytes of a file."""
    return pictures.encoded


@pytest.fixture
def classes(tmp_path: Path) -> Folder:
    """`classes({"cat": 5, "dog": 7})`: class folders of different pictures, as PNG files 000.png, 001.png, ..."""

    def make(counts: dict[str, int], name: str = "photos", first_seed: int = 0) -> Path:
        root = tmp_path / name
        seed = first_seed
        for label, count in counts.items():
            (root / label).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                (root / label / f"{i:03d}.png").write_bytes(pictures.encoded(pictures.picture(seed)))
                seed += 1
        return root

    return make
