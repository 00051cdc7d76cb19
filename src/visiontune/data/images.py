"""Encoded images read safely: what the header says, and the pixels as upright 8-bit RGB."""

import io
import struct
import warnings
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps

from visiontune.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
TEXT_SUFFIXES = (".txt", ".md", ".markdown")

# Pillow refuses above the same number: more pixels than this in a small file are an attack or an accident.
MAX_PIXELS = 178_956_970

# What Pillow's readers raise on broken blocks.
_BROKEN = (OSError, ValueError, SyntaxError, TypeError, LookupError, struct.error)
_WITH_FRAMES = ("PNG", "WEBP", "TIFF", "GIF")
# TIFF's NewSubfileType: the lowest bit says that a page is another one's picture, made smaller.
_SUBFILE, _REDUCED = 254, 1
_SIDEWAYS = (5, 6, 7, 8)
_FIX = f"save it again as one of {', '.join(FORMATS)}, or take it out"


class ImageError(DataError):
    """Bytes that are no image which visiontune reads; `code` is that of the fault."""

    def __init__(self, found: str, code: str = "unreadable-image", fix: str | None = None) -> None:
        super().__init__(found, fix=fix)
        self.code = code


@dataclass(frozen=True)
class ImageFacts:
    """What an image's header says. Width and height are in pixels, after the EXIF orientation (1 to 8) is applied.

    `values`: the smallest and the largest grey value, where there are more than 8 bits and the pixels were decoded.
    `frames`: how many pictures a file holds, of which the first is seen.
    """

    width: int
    height: int
    format: str
    mode: str
    orientation: int
    values: tuple[float, float] | None = None
    frames: int = 1


def read_header(data: bytes) -> ImageFacts:
    """Read an image's facts without keeping its pixels; DataError when it is no image that visiontune reads."""
    image = _opened(data)
    return _facts(image, _frames(image.format, data))


def decode(data: bytes) -> Image.Image:
    """Decode the (first) image of a file: RGB, uint8, upright. Transparency is dropped, 16-bit grey scaled to 8 bits.

    Raises DataError that names what is wrong with the bytes.
    """
    return decode_with_facts(data)[1]


def decode_with_facts(data: bytes) -> tuple[ImageFacts, Image.Image]:
    """What `read_header` and `decode` say, for the price of one."""
    image = _opened(data)
    mode = image.mode
    try:
        image.load()
        deep = np.asarray(image) if image.mode in ("I", "F") or image.mode.startswith("I;16") else None
        values = None if deep is None or not deep.size else (float(deep.min()), float(deep.max()))
        facts = replace(_facts(image, _frames(image.format, data)), mode=mode, values=values)
        upright = ImageOps.exif_transpose(image) if facts.orientation != 1 else image
        return facts, _rgb(upright)
    except DataError:
        raise
    # Pillow's decoders raise errors of nearly every kind on broken bytes (OSError, SyntaxError, struct.error, ...).
    except Exception as error:
        raise _unreadable(data, error) from error


def image_files(path: Path, suffixes: Collection[str] = SUFFIXES) -> list[Path]:
    """The file at `path`, or all files in the folder there and below that end in one of `suffixes` (of images), sorted.

    DataError when there are none.
    """
    if path.is_file():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in suffixes and file.is_file())
    found = [file for file in found if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    if not found:
        raise DataError(
            "there are no images here" if suffixes is SUFFIXES else "there are no text files here",
            where=str(path),
            fix=f"{'image' if suffixes is SUFFIXES else 'text'} files end in {', '.join(sorted(suffixes))}",
        )
    return found


def _facts(image: ImageFile.ImageFile, frames: int) -> ImageFacts:
    orientation = _orientation(image)
    width, height = image.size
    if orientation in _SIDEWAYS:
        width, height = height, width
    return ImageFacts(width, height, image.format or "", image.mode, orientation, frames=frames)


def _opened(data: bytes) -> ImageFile.ImageFile:
    if not data:
        raise ImageError("the image file is empty", "empty-file", _FIX)
    try:
        image = _pillows(data)
    except Exception as error:
        raise _unreadable(data, error) from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _too_large(width, height)
    return image


def _pillows(data: bytes) -> ImageFile.ImageFile:
    """The image as Pillow opens it. Its warning of half as many pixels as are allowed is for no one here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(data), formats=FORMATS)


def _unreadable(data: bytes, error: Exception) -> ImageError:
    if isinstance(error, Image.UnidentifiedImageError):
        return ImageError(f"not an image of a known format ({', '.join(FORMATS)})", "unknown-format", _FIX)
    if isinstance(error, Image.DecompressionBombError):
        return _too_large(*_size(data))
    return ImageError(f"the image cannot be decoded: {error or type(error).__name__}", fix=_FIX)


def _too_large(width: int, height: int) -> ImageError:
    found = f"the image is too large: {width:,} x {height:,} pixels (at most {MAX_PIXELS:,} pixels)"
    return ImageError(found, "image-too-large", "make it smaller")


def _size(data: bytes) -> tuple[int, int]:
    """Width and height of an image that Pillow refuses to open for its size: its readers say them without asking."""
    for form in FORMATS:
        factory, accept = Image.OPEN[form]
        if accept is None or accept(data[:16]) is True:
            return factory(io.BytesIO(data), "").size
    raise ImageError("the image is too large", "image-too-large", "make it smaller")


def _frames(form: str | None, data: bytes) -> int:
    """The pictures in a file, by its headers alone. What a JPEG holds beside its own is a preview or a depth map."""
    if form not in _WITH_FRAMES:
        return 1
    try:
        image: Any = _pillows(data)  # another one: looking at frames leaves the first
        frames: int = image.n_frames  # all readers of these formats have it
        if form != "TIFF" or frames == 1:
            return frames
        whole = 0
        for i in range(frames):
            image.seek(i)
            whole += not image.getexif().get(_SUBFILE, 0) & _REDUCED
        return max(1, whole)
    # Broken pages behind the first say nothing about it. A page that is too large is not read.
    except (*_BROKEN, EOFError, Image.DecompressionBombError):
        return 1


def _orientation(image: Image.Image) -> int:
    # Pillow turns TIFF images itself while it loads them, and says so in their size.
    if image.format == "TIFF":
        return 1
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    # A broken EXIF block says nothing about the pixels, which may well be fine. Anything else makes the image
    # unreadable, which is counted and listed.
    except _BROKEN:
        return 1
    return value if value in range(1, 9) else 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_grey(np.asarray(image).astype(np.float32) / 257, "integer grey values outside 0 .. 65535")
    if image.mode == "F":
        values = np.asarray(image).astype(np.float32)
        scale = 255 if values.size and values.max() <= 1 else 1
        return _from_grey(values * scale, "floating-point grey values outside 0 .. 1 and 0 .. 255")
    if image.mode in ("PA", "La", "RGBa") or (image.mode == "P" and "transparency" in image.info):
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    return image.convert("RGB")


def _from_grey(values: np.ndarray, found: str) -> Image.Image:
    """values: (height, width), float32, in [0, 255]."""
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 255):
        raise DataError(found, fix="save the image with 8 or 16 bits a channel")
    return Image.fromarray(np.rint(values).astype(np.uint8)).convert("RGB")
