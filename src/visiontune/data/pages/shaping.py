"""Words shaped by HarfBuzz and drawn once: a `Run` is a piece of text in one font, size and direction with its grey
bitmap.

A run's box holds all of its ink, so runs set side by side never overlap and a line is a plain row of boxes.
"""

# pyright: reportAttributeAccessIssue=false
# uharfbuzz takes its names from a compiled module that has no types.

from dataclasses import dataclass, field
from functools import cache
from math import ceil, floor

import numpy as np
import uharfbuzz as hb
from numpy.typing import NDArray

from visiontune.data.pages.breaking import cluster_starts
from visiontune.data.pages.fonts import Fonts
from visiontune.data.pages.properties import CODE_POINTS, code_points
from visiontune.errors import DataError

VISIBLE, BLANK, NEWLINE, CONTROL = 0, 1, 2, 3  # kinds of characters; a piece of text never mixes them
NEWLINES = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
BLANKS = " \t\u1680" + "".join(chr(c) for c in range(0x2000, 0x200B) if c != 0x2007) + "\u205f\u3000"
BOX_WIDTH, BOX_HEIGHT = 0.6, 0.7  # of the box drawn for a missing glyph, in font sizes
MEMORY = 96 << 20  # bytes of bitmaps that a set of fonts may keep between documents


@dataclass(frozen=True, slots=True)
class Style:
    """How a run is drawn: font (its place in the fallback), size in pixels, direction, and the box of a common line.

    `ascent` and `descent` are pixels above and below the baseline, `room` the (width, height) that no run may exceed.
    """

    font: int
    size: int
    rtl: bool
    ascent: int
    descent: int
    room: tuple[int, int]
    tab: int = 4


@dataclass(slots=True, eq=False)  # not frozen: that costs a microsecond each
class Run:
    """A shaped piece of text, `cell`: (ascent + descent, width) uint8, white 255, ink 0; None where nothing is drawn.

    A piece of several grapheme clusters that is wider than the page keeps its true width and no cell: `Shelf.parts`
    cuts it. `missing` holds the characters that the font has no glyph for (drawn as boxes); `shrunk` says that the
    piece was too large for the page at its own size.
    """

    text: str
    width: int
    ascent: int
    descent: int
    cell: NDArray[np.uint8] | None
    missing: str = ""
    shrunk: bool = False

    @property
    def memory(self) -> int:
        """About how many bytes it takes."""
        return 350 + 4 * len(self.text) + (0 if self.cell is None else self.cell.nbytes)


@cache
def character_kinds() -> NDArray[np.uint8]:
    """VISIBLE, BLANK, NEWLINE or CONTROL for each code point; uint8, shape (0x110000,)."""
    kinds = np.zeros(CODE_POINTS, dtype=np.uint8)
    kinds[:0x20] = kinds[0x7F:0xA0] = CONTROL
    kinds[[ord(c) for c in BLANKS]] = BLANK
    kinds[[ord(c) for c in NEWLINES]] = NEWLINE
    return kinds


@dataclass(slots=True)
class Shelf:
    """The runs of one style, kept by their text."""

    style: Style
    fonts: Fonts
    font: hb.Font
    raster: hb.RasterDraw
    buffer: hb.Buffer
    runs: dict[str, Run] = field(default_factory=dict)
    older: dict[str, Run] = field(default_factory=dict)  # not used lately
    tall: bool = False  # whether any of the runs needs more than the box of a common line

    def nothing(self) -> Run:
        """A run without width or ink, for what is not shown."""
        return Run("", 0, self.style.ascent, self.style.descent, None)

    def run(self, text: str) -> Run:
        """The run of a piece of text that holds one kind of character and asks for one style."""
        found = self.runs.get(text)
        return found if found is not None else self.made(text)

    def made(self, text: str) -> Run:
        """Shape, draw and keep a piece of text that is not among `runs`."""
        older = self.older.pop(text, None)
        if older is not None:
            self.runs[text] = older
            self.fonts.kept_bytes += older.memory
            return older
        kind = int(character_kinds()[ord(text[0])])
        if kind == VISIBLE:
            run = self._drawn(text)
        else:
            width = self._blank_width(text) if kind == BLANK else 0
            run = Run(text, width, self.style.ascent, self.style.descent, None)
        self.runs[text] = run
        self.tall |= run.ascent > self.style.ascent or run.descent > self.style.descent
        self.fonts.kept_bytes += run.memory
        return run

    @property
    def box(self) -> int:
        """The width in pixels of the box drawn for a missing glyph."""
        return max(2, round(BOX_WIDTH * self.style.size))

    @property
    def box_height(self) -> int:
        """Its height in pixels; it stands on the baseline."""
        return max(2, round(BOX_HEIGHT * self.style.size))

    def _shaped(self, text: str) -> hb.Buffer:
        buffer = self.buffer
        buffer.clear_contents()
        buffer.add_str(text)
        buffer.direction = "rtl" if self.style.rtl else "ltr"
        buffer.language = "und"  # or else HarfBuzz asks the process's locale
        buffer.guess_segment_properties()
        hb.shape(self.font, buffer)
        return buffer

    def _advance(self, buffer: hb.Buffer) -> int:
        return ceil(sum([p.x_advance for p in buffer.glyph_positions or ()]) / 64)

    def parts(self, text: str) -> list[str]:
        """A piece wider than the page, cut between grapheme clusters into the longest pieces that fit."""
        starts = [*np.flatnonzero(cluster_starts(code_points(text))).tolist(), len(text)]
        found: list[str] = []
        first = 0
        while first < len(starts) - 1:
            fits, beyond = 1, 2
            while first + beyond < len(starts) and self._fits(text[starts[first] : starts[first + beyond]]):
                fits, beyond = beyond, 2 * beyond
            beyond = min(beyond, len(starts) - first)
            while beyond - fits > 1:
                middle = (fits + beyond) // 2
                if self._fits(text[starts[first] : starts[first + middle]]):
                    fits = middle
                else:
                    beyond = middle
            while fits > 1 and self.run(text[starts[first] : starts[first + fits]]).width > self.style.room[0]:
                fits -= 1  # ink beyond the advance
            found.append(text[starts[first] : starts[first + fits]])
            first += fits
        return found

    def _fits(self, text: str) -> bool:
        return self._advance(self._shaped(text)) <= self.style.room[0]

    def _blank_width(self, text: str) -> int:
        """Whole pixels for each blank; a tab is as wide as `tab` spaces wherever it stands."""
        width = 0
        for character in dict.fromkeys(text):
            positions = self._shaped(" " if character == "\t" else character).glyph_positions or ()
            one = max(1, round(sum(p.x_advance for p in positions) / 64))
            width += text.count(character) * one * (self.style.tab if character == "\t" else 1)
        return width

    def _drawn(self, text: str) -> Run:
        buffer = self._shaped(text)
        style, raster, font = self.style, self.raster, self.font
        if len(text) > 64 and (width := self._advance(buffer)) > style.room[0] and _clusters(text) > 1:
            return Run(text, width, style.ascent, style.descent, None)
        missing: dict[int, str] = {}  # by place: one character may ask for several glyphs
        boxes: list[int] = []
        pen = 0
        # y is turned over, so that the first row of the bitmap is its top.
        for info, position in zip(buffer.glyph_infos, buffer.glyph_positions or (), strict=True):
            if info.codepoint:
                raster.transform = (1, 0, 0, -1, pen + position.x_offset, -position.y_offset)
                raster.draw_glyph(font, info.codepoint)
                pen += position.x_advance
            else:
                missing[info.cluster] = text[info.cluster]
                boxes.append(pen // 64)
                pen += self.box * 64
        if not text.isprintable():  # surrogates are drawn as the replacement character
            missing |= {i: c for i, c in enumerate(text) if "\ud800" <= c <= "\udfff"}
        image = raster.render()
        extents = image.extents
        height, ink_width = extents.height, extents.width
        # From the pen's start and from the baseline: how far the ink goes, in pixels.
        left, top = (extents.x_origin, -extents.y_origin) if height else (0, 0)
        bottom = height - top
        width = max(round(pen / 64), left + ink_width)
        if boxes:
            width, top_of_all = max(width, boxes[-1] + self.box), max(top, self.box_height)
        else:
            top_of_all = top
        pad = max(0, -left)
        width += pad
        ascent, descent = max(style.ascent, top_of_all), max(style.descent, bottom)
        room_width, room_height = style.room
        if width > room_width and _clusters(text) > 1:
            return Run(text, width, style.ascent, style.descent, None)
        if width > room_width or ascent + descent > room_height:
            return self._smaller(text, width, ascent + descent)
        cell = np.full((ascent + descent, width), 255, dtype=np.uint8)
        if height:
            ink = np.frombuffer(image.buffer, dtype=np.uint8).reshape(height, extents.stride)[:, :ink_width]
            np.invert(ink, out=cell[ascent - top : ascent + bottom, pad + left : pad + left + ink_width])
        for x in boxes:
            _draw_box(cell[ascent - self.box_height : ascent, pad + x : pad + x + self.box])
        return Run(text, width, ascent, descent, cell, "".join(missing.values()))

    def _smaller(self, text: str, width: int, height: int) -> Run:
        """The piece at the largest size that fits the page; what is too wide only because it is long is cut before."""
        style = self.style
        scale = min(style.room[0] / width, style.room[1] / height)
        size = min(style.size - 1, floor(style.size * scale))
        if size < 1:
            raise DataError(
                f"A character with {len(text) - 1} marks on it does not fit on a page at any size.",
                where=ascii(text[:20]),
                fix="clean the text: no script stacks so many marks",
            )
        ascent = min(style.ascent, ceil(style.ascent * scale))
        descent = min(style.descent, floor(style.descent * scale))
        smaller = shelf(self.fonts, Style(style.font, size, style.rtl, ascent, descent, style.room)).run(text)
        return Run(text, smaller.width, smaller.ascent, smaller.descent, smaller.cell, smaller.missing, shrunk=True)


def _clusters(text: str) -> int:
    return int(cluster_starts(code_points(text)).sum())


def _draw_box(area: NDArray[np.uint8]) -> None:
    """A hollow rectangle with a pixel of air at each side."""
    inner = area[:, 1:-1] if area.shape[1] > 4 else area
    line = max(1, area.shape[1] // 12)
    inner[:line] = inner[-line:] = 0
    inner[:, :line] = inner[:, -line:] = 0


def shelf(fonts: Fonts, style: Style) -> Shelf:
    """The shelf of a style among those that the fonts keep."""
    found = fonts.kept.get(style)
    if found is None:
        raster, buffer = hb.RasterDraw(), hb.Buffer()
        raster.scale_factor = (64, 64)
        buffer.cluster_level = hb.BufferClusterLevel.MONOTONE_CHARACTERS
        found = fonts.kept[style] = Shelf(style, fonts, fonts[style.font].sized(style.size), raster, buffer)
    return found


def forget_unused(fonts: Fonts, limit: int = MEMORY) -> None:
    """Once kept runs take half of `limit` bytes, drop those not used since the last time; no pixel depends on it."""
    if fonts.kept_bytes > limit // 2:
        for style, one in list(fonts.kept.items()):
            if not one.runs:
                del fonts.kept[style]
            one.older, one.runs = one.runs, {}
        fonts.kept_bytes = 0
