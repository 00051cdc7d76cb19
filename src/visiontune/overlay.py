"""Objects drawn on their image for a person to see: boxes, masks and names in a colour for each class."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from visiontune.data.annotations.masks import to_pixels
from visiontune.data.objects import Objects, Rle
from visiontune.data.pages import DEFAULT_FONT, Font
from visiontune.errors import DataError

Colour = tuple[int, int, int]
Frame = tuple[float, float, float, float]  # left, top, right, bottom in pixels

# Told apart by colour-blind people too: Okabe and Ito 2008, "Color Universal Design", without black.
PALETTE: tuple[Colour, ...] = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (213, 94, 0),
    (86, 180, 233),
    (204, 121, 167),
    (240, 228, 66),
)
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
STRIP = (44, 44, 42)  # behind titles
PIXEL_ART = 48  # images up to this side are grown as the pixels they are
COVER = 0.3  # opacity of a mask
HIDDEN = 0.25  # share of a box that a label may hide
SMALLEST_LETTERS = 11
LONGEST_NAME = 40


def colour(number: int) -> Colour:
    """The colour of the class of that number, the same in every image; it repeats after the seven of the palette."""
    return PALETTE[number % len(PALETTE)]


def draw(
    image: Image.Image,
    objects: Objects,
    classes: Sequence[str],
    *,
    least_score: float = 0.0,
    side: int | None = None,
) -> Image.Image:
    """A copy of an image with the objects of at least `least_score` drawn on it; true objects have no score and stay.

    image: RGB, upright, the one that the objects belong to. `side` is the longer side of the result in pixels; None
    keeps the image's size. Lines and letters grow with the result. Crowds are dashed, their masks striped. A label
    stands where it covers no other label and hides no object; where there is no such place it is left out, and the
    colour says the class.
    A name that the font has no letters for is written as "class" and its place among `classes`, from 1 on. Raises
    DataError for a mask that is not of the image's size.
    """
    canvas = _resized(image, side)
    scale = (canvas.width / image.width, canvas.height / image.height)
    shown = [i for i in range(len(objects)) if objects.scores is None or objects.scores[i] >= least_score]
    shown.sort(key=lambda i: -objects.boxes[i, 2] * objects.boxes[i, 3])  # small ones on top of large ones
    width = max(1, round(max(canvas.size) / 300))
    edge = max(1, width // 2)
    canvas = _with_masks(canvas, image.size, objects, shown, width, edge)
    pen = ImageDraw.Draw(canvas)
    frames = {i: frame for i in shown if (frame := _frame(objects.boxes[i], scale, canvas.size)) is not None}
    for i, frame in frames.items():
        masked = objects.masks[i] is not None  # its contour is what counts
        _outline(pen, frame, colour(int(objects.classes[i])), width, 0 if masked else edge, bool(objects.crowd[i]))
    font = _font(max(SMALLEST_LETTERS, round(max(canvas.size) / 40)))
    labels: list[Frame] = []
    scores = objects.scores
    for i in frames if scores is None else sorted(frames, key=lambda i: -scores[i]):
        number = int(objects.classes[i])
        name = f"{shown_name(classes[number], number)}{', crowd' if objects.crowd[i] else ''}"
        label = _fitted(name, "" if scores is None else f" {scores[i]:.2f}", font, canvas.width)
        place = _place(label, frames[i], canvas.size, labels, list(frames.values()))
        if place is not None:
            labels.append(place)
            pen.rectangle(place, fill=colour(number))
            pen.text((place[0] + label.gap, place[1]), label.text, fill=_ink(colour(number)), font=font, anchor="la")
    return canvas


def beside(left: Image.Image, right: Image.Image, titles: tuple[str, str]) -> Image.Image:
    """Two RGB images side by side, each under its title; a title that is too long is shortened."""
    font = _font(max(SMALLEST_LETTERS, round(max(*left.size, *right.size) / 32)))
    strip, gap = round(sum(font.getmetrics()) * 1.3), max(4, left.width // 60)
    both = Image.new("RGB", (left.width + gap + right.width, strip + max(left.height, right.height)), STRIP)
    pen = ImageDraw.Draw(both)
    for picture, x, title in ((left, 0, titles[0]), (right, left.width + gap, titles[1])):
        both.paste(picture, (x, strip))
        label = _fitted(title, "", font, picture.width)
        pen.text((x + label.gap, (strip - label.height) / 2), label.text, fill=WHITE, font=font, anchor="la")
    return both


def shown_name(name: str, number: int) -> str:
    """A class name as it is drawn: on one line, not longer than LONGEST_NAME, in letters that the font has."""
    line = " ".join(name.split())[:LONGEST_NAME]
    has_all = line and line.isprintable() and _letters()[[ord(letter) for letter in line]].all()
    return line if has_all else f"class {number + 1}"


def _resized(image: Image.Image, side: int | None) -> Image.Image:
    if side is None:
        return image.copy()
    width, height = (max(1, round(length * side / max(image.size))) for length in image.size)
    grown = max(image.size) <= PIXEL_ART < side
    return image.resize((width, height), Image.Resampling.NEAREST if grown else Image.Resampling.LANCZOS)


def _ink(background: Colour) -> Colour:
    """Black or white, whichever is told better from a colour (relative luminance, WCAG 2)."""
    linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in background]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return BLACK if (luminance + 0.05) ** 2 > 0.05 * 1.05 else WHITE


# Masks and boxes


def _with_masks(
    canvas: Image.Image, size: tuple[int, int], objects: Objects, shown: Sequence[int], width: int, edge: int
) -> Image.Image:
    """The canvas with the masks that there are: a translucent cover, a contour of `width` pixels in it, and around it
    an edge of black or white."""
    masked = [(i, mask) for i in shown if (mask := objects.masks[i]) is not None]
    if not masked:
        return canvas
    pixels = np.array(canvas, np.float32)
    for i, mask in masked:
        if (mask.width, mask.height) != size:
            raise DataError(
                f"A mask is {mask.width} x {mask.height}, its image {size[0]} x {size[1]} pixels.",
                fix="draw objects on the upright image that they belong to",
            )
        inside, top, left = _region(mask, canvas.size, edge)
        part = pixels[top : top + inside.shape[0], left : left + inside.shape[1]]
        tint = np.array(colour(int(objects.classes[i])), np.float32)
        cover = inside
        if objects.crowd[i]:
            rows, columns = np.indices(inside.shape)
            cover = inside & ((rows + columns) // (3 * width) % 2 == 0)
        part[cover] += COVER * (tint - part[cover])
        part[inside & ~_eroded(inside, width)] = tint
        part[~inside & ~_eroded(~inside, edge, beyond=True)] = _ink(colour(int(objects.classes[i])))
    return Image.fromarray(pixels.round().astype(np.uint8))


def _region(mask: Rle, size: tuple[int, int], margin: int) -> tuple[NDArray[np.bool_], int, int]:
    """The rectangle that a mask fills on a canvas of `size` (width, height), with a margin where there is room, and its
    top and left; empty for an empty mask."""
    columns_first = Image.fromarray(to_pixels(mask).T.astype(np.uint8) * 255)  # as it lies in memory
    resized = columns_first.resize((size[1], size[0]), Image.Resampling.BILINEAR, reducing_gap=2.0)
    inside = np.asarray(resized).T >= 128
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if not len(rows):
        return inside[:0, :0], 0, 0
    top, left = max(0, int(rows[0]) - margin), max(0, int(columns[0]) - margin)
    return inside[top : rows[-1] + 1 + margin, left : columns[-1] + 1 + margin], top, left


def _eroded(inside: NDArray[np.bool_], steps: int, *, beyond: bool = False) -> NDArray[np.bool_]:
    """What is left after so many pixels at every border are taken away; `beyond` is what lies around the array."""
    for _ in range(steps):
        wide = np.pad(inside, 1, constant_values=beyond)
        inside = inside & wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:]
    return inside


def _frame(box: NDArray[np.float64], scale: tuple[float, float], size: tuple[int, int]) -> Frame | None:
    """A box on the canvas, cut at its edges; None where it lies outside."""
    left, top = float(box[0] * scale[0]), float(box[1] * scale[1])
    right, bottom = left + max(0.0, float(box[2] * scale[0])), top + max(0.0, float(box[3] * scale[1]))
    if right < 0 or bottom < 0 or left > size[0] or top > size[1]:
        return None
    x, y = size[0] - 1.0, size[1] - 1.0
    return min(max(0.0, left), x), min(max(0.0, top), y), min(right, x), min(bottom, y)


def _outline(pen: ImageDraw.ImageDraw, frame: Frame, tint: Colour, width: int, edge: int, dashed: bool) -> None:
    """The four sides of a frame, set off from any background by an `edge` of black or white on either side."""
    left, top, right, bottom = map(round, frame)
    across, down = [(left, right)], [(top, bottom)]
    if dashed:
        across, down = (_dashes(*ends, 5 * width, edge) for ends in (across[0], down[0]))
    for grown, shade in ((edge, _ink(tint)), (0, tint))[edge == 0 :]:
        inner = width - 1 + grown
        for start, end in across:
            pen.rectangle((start - grown, top - grown, end + grown, top + inner), fill=shade)
            pen.rectangle((start - grown, max(top, bottom - inner), end + grown, bottom + grown), fill=shade)
        for start, end in down:
            pen.rectangle((left - grown, start - grown, left + inner, end + grown), fill=shade)
            pen.rectangle((max(left, right - inner), start - grown, right + grown, end + grown), fill=shade)


def _dashes(start: int, end: int, length: int, edge: int) -> list[tuple[int, int]]:
    """Dashes that with their edges are as long as the gaps between them."""
    return [(at, min(at + length - 1 - 2 * edge, end)) for at in range(start, end + 1, 2 * length)]


# Labels


@dataclass(frozen=True)
class _Label:
    """A text with its size in pixels; `gap` is left free on either side of it."""

    text: str
    width: int
    height: int
    gap: int


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(DEFAULT_FONT, size)


@cache
def _letters() -> NDArray[np.bool_]:
    return Font(DEFAULT_FONT).covered


def _fitted(name: str, score: str, font: ImageFont.FreeTypeFont, most: int) -> _Label:
    """A name and a score that together are not wider than `most` pixels: the name is shortened, then left out."""
    gap = max(2, round(font.size / 5))
    text = name + score
    while name and font.getlength(text) + 2 * gap > most:
        name = name[:-1]
        text = f"{name.rstrip()}…{score}" if name else score.strip()
    return _Label(text, round(font.getlength(text)) + 2 * gap, sum(font.getmetrics()), gap)


def _place(
    label: _Label, frame: Frame, size: tuple[int, int], labels: Sequence[Frame], frames: Sequence[Frame]
) -> Frame | None:
    """Where a label stands: at its frame, inside the image, on no other label, and over at most HIDDEN of any frame;
    None where there is no such place."""
    if not label.text or label.width > size[0] or label.height > size[1]:
        return None
    left, top, right, bottom = frame
    for x, y in (
        (left, top - label.height),
        (left, bottom + 1),
        (right - label.width, top - label.height),
        (right - label.width, bottom + 1),
        (left, top),
        (right - label.width, bottom - label.height),
    ):
        x, y = (round(min(max(0, at), most)) for at, most in ((x, size[0] - label.width), (y, size[1] - label.height)))
        place = (x, y, x + label.width - 1, y + label.height - 1)
        if (_covered_share(place, labels) == 0).all() and (_covered_share(place, frames) <= HIDDEN).all():
            return place
    return None


def _covered_share(place: Frame, frames: Sequence[Frame]) -> NDArray[np.float64]:
    """The share of each frame, in whole pixels, that lies under a place: (frames,) float64."""
    left, top, right, bottom = np.array(frames, np.float64).reshape(-1, 4).round().T
    wide = np.minimum(right, place[2]) - np.maximum(left, place[0]) + 1
    high = np.minimum(bottom, place[3]) - np.maximum(top, place[1]) + 1
    return wide.clip(0) * high.clip(0) / ((right - left + 1) * (bottom - top + 1))
