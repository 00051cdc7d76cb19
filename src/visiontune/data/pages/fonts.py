"""Fonts for laying text out: files named by the hash of their contents, in order of fallback."""

# pyright: reportAttributeAccessIssue=false
# uharfbuzz takes its names from a compiled module that has no types.

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import uharfbuzz as hb
from numpy.typing import NDArray

from visiontune.data.pages.properties import CODE_POINTS
from visiontune.errors import DataError
from visiontune.files import file_sha256

if TYPE_CHECKING:
    from visiontune.data.pages.shaping import Shelf, Style

DEFAULT_FONT = Path(__file__).parents[1] / "fonts" / "DejaVuSans.ttf"

# Debian's package for each script that a text may need and the default font lacks; others are in fonts-noto-core.
PACKAGES = {
    "Han": "fonts-noto-cjk",
    "Hiragana": "fonts-noto-cjk",
    "Katakana": "fonts-noto-cjk",
    "Hangul": "fonts-noto-cjk",
    "Bopomofo": "fonts-noto-cjk",
    "Common": "fonts-noto-core, fonts-symbola (signs and emoji)",
    "Inherited": "fonts-noto-core",
    "Unknown": "none: these are unassigned or private characters, or broken pairs of surrogates",
}


@dataclass(frozen=True)
class FontRef:
    """A font as a spec names it: any name, the SHA-256 of the file, and which face of a collection (.ttc) it is."""

    name: str
    sha256: str
    face: int = 0


class Font:
    """One face of a font file. Raises DataError if the file cannot be read or is no font that has outlines."""

    def __init__(self, path: Path, face: int = 0) -> None:
        try:
            self.ref = FontRef(path.stem, file_sha256(path), face)
        except OSError as error:
            raise DataError(f"The font cannot be read: {error.strerror}.", where=str(path)) from error
        self.path = path
        self.face = hb.Face(hb.Blob.from_file_path(str(path)), face)  # mapped: processes share one copy
        tables = set(self.face.table_tags)
        if "cmap" not in tables or not tables & {"glyf", "CFF ", "CFF2"}:
            raise DataError(
                f"{path.name} holds no outlines that can be drawn (face {face}).",
                where=str(path),
                fix="give a TrueType or OpenType font; of emoji, the monochrome 'Noto Emoji' and not the colour one",
            )

    @cached_property
    def covered(self) -> NDArray[np.bool_]:
        """Which code points the font has a glyph for; bool, shape (0x110000,)."""
        covered = np.zeros(CODE_POINTS, dtype=bool)
        covered[np.fromiter(self.face.unicodes, dtype=np.int64)] = True
        return covered

    def sized(self, size: int) -> hb.Font:
        """A HarfBuzz font at `size` pixels an em, in units of 1/64 pixel."""
        font = hb.Font(self.face)
        font.scale = (size * 64, size * 64)
        return font

    def line(self, size: int) -> tuple[float, float]:
        """Ascent and descent in pixels, both positive, as the font itself says."""
        extents = self.sized(size).get_font_extents("ltr")
        return extents.ascender / 64, -extents.descender / 64


class Fonts:
    """The fonts of a spec, loaded: `fonts[i]` is the i-th in the order of fallback, `refs` what a spec records."""

    def __init__(self, fonts: Sequence[Font]) -> None:
        if not fonts:
            raise DataError("Text needs at least one font.", fix=f"use the one of the package: {DEFAULT_FONT}")
        self.fonts = tuple(fonts)
        self.refs = tuple(font.ref for font in fonts)
        self.kept: dict[Style, Shelf] = {}  # words already drawn; see shaping.py
        self.kept_bytes = 0

    @cached_property
    def free_codes(self) -> NDArray[np.bool_]:
        """Code points that need no glyph in any font: blanks, controls, ignorable ones; bool, shape (0x110000,)."""
        from visiontune.data.pages.coverage import anyones

        return anyones()

    @cached_property
    def plain(self) -> NDArray[np.bool_]:
        """Code points that the first font draws and that run from left to right without shaping by script."""
        plain = self.fonts[0].covered.copy()
        plain[0x300:0x370] = False
        plain[0x590:] = False
        plain[0x2010:0x2027] = plain[0x20A0:0x20C0] = True  # quotation marks, dashes, currencies
        return (plain & self.fonts[0].covered) | np.isin(np.arange(len(plain)), [0x09, 0x0A, 0x0D, 0x20])

    def __reduce__(self) -> tuple[Any, ...]:
        """Other processes load the files again."""
        return load_fonts, ([(font.path, font.ref.face) for font in self.fonts],)

    def __len__(self) -> int:
        return len(self.fonts)

    def __getitem__(self, index: int) -> Font:
        return self.fonts[index]


def load_fonts(paths: Sequence[Path | str | tuple[Path | str, int]] = ()) -> Fonts:
    """Load fonts in order of fallback; without any, the one that travels with the package (DejaVu Sans).

    A path may come with the number of its face in a collection: ("NotoSansCJK-Regular.ttc", 2). Raises DataError.
    """
    chosen = [path if isinstance(path, tuple) else (path, 0) for path in paths or [DEFAULT_FONT]]
    return Fonts([Font(Path(path), face) for path, face in chosen])
