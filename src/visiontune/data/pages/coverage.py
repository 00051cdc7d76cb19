"""Which font draws which characters, and what to say when none does."""

import unicodedata
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from visiontune.data.pages.fonts import PACKAGES, Fonts
from visiontune.data.pages.properties import CODE_POINTS, properties
from visiontune.data.pages.shaping import VISIBLE, character_kinds
from visiontune.errors import DataError

# Characters that HarfBuzz shows as nothing when a font lacks them (Unicode's Default_Ignorable_Code_Point).
_IGNORABLE = (
    (0xAD, 0xAD), (0x34F, 0x34F), (0x61C, 0x61C), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F),
    (0x200B, 0x200F),
    (0x202A, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0),
    (0xFFF0, 0xFFF8), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF),
)  # fmt: skip


def anyones() -> NDArray[np.bool_]:
    """Code points that need no glyph of their own; bool, shape (0x110000,)."""
    free = character_kinds() != VISIBLE
    for first, last in _IGNORABLE:
        free[first : last + 1] = True
    assert len(free) == CODE_POINTS
    return free


def font_of_clusters(
    text: str, codes: NDArray[np.uint32], starts: NDArray[np.bool_], fonts: Fonts, order: list[int]
) -> NDArray[np.int64]:
    """For each character, the place of the font that draws its grapheme cluster: the first of `order` that covers all
    of it.

    If none does, the first that covers it composed (NFC), else the one that has its first character, else the first
    font. Shape (characters,); `starts` says where clusters start.
    """
    first = np.flatnonzero(starts)
    free = fonts.free_codes[codes]
    chosen = np.full(len(first), -1)
    for index in order:
        covers = np.logical_and.reduceat(fonts[index].covered[codes] | free, first)
        chosen[(chosen < 0) & covers] = index
        if (chosen >= 0).all():
            break
    ends = np.append(first[1:], len(codes))
    known: dict[str, int] = {}
    for i in np.flatnonzero(chosen < 0).tolist():
        cluster = text[first[i] : ends[i]]
        if cluster not in known:
            known[cluster] = _nearest(cluster, fonts, order)
        chosen[i] = known[cluster]
    return np.repeat(chosen, ends - first)


def _nearest(cluster: str, fonts: Fonts, order: list[int]) -> int:
    composed = unicodedata.normalize("NFC", cluster)
    for wanted in (composed, composed[:1]):
        for index in order:
            if all(fonts[index].covered[ord(c)] for c in wanted):
                return index
    return order[0]


def check_missing(missing: Counter[str], characters: int, limit: float) -> None:
    """Raise DataError if more than the share `limit` of a document's characters has no glyph."""
    count = missing.total()
    if count <= limit * characters:
        return
    script = properties()["script"]
    scripts = Counter[str]()
    for character, times in missing.items():
        scripts[script.names[script.of[ord(character)]]] += times
    shown = ", ".join(f"U+{ord(c):04X}" + (f" {c}" if c.isprintable() else "") for c, _ in missing.most_common(5))
    needed = "; ".join(f"{name}: {PACKAGES.get(name, 'fonts-noto-core')}" for name, _ in scripts.most_common(4))
    raise DataError(
        f"The fonts lack {count} of {characters} characters ({count / characters:.1%}; limit {limit:.1%}): "
        f"{shown} ({', '.join(name for name, _ in scripts.most_common(4))}).",
        where="the fonts of the page spec",
        fix=f"add a font that has them (Debian packages: {needed})",
    )
