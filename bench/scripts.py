"""Ten languages in six scripts, laid out and drawn: is every grapheme cluster of the source on the pages, and where it
belongs?

For each language of tests/data/udhr: the clusters that the lines' runs draw are those of the source; no glyph is
missing; no ink lies outside the margins; lines of right-to-left paragraphs start at the right margin, by the ink on the
drawn page.

    python bench/scripts.py [folder for a PNG of each first page]
"""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from visiontune.data.pages import Line, PageLayout, PageSpec, lay_out, load_fonts, render
from visiontune.data.pages.breaking import cluster_starts
from visiontune.data.pages.properties import code_points
from visiontune.data.pages.shaping import VISIBLE, character_kinds

HERE = Path(__file__).parents[1] / "tests/data"
LANGUAGES = ("ar", "de", "en", "es", "fr", "hi", "ja", "ko", "ru", "zh")
BEARING = 4  # pixels of air that a first letter may have on its right


def clusters(text: str) -> Counter[str]:
    """The grapheme clusters of a text that have ink, counted."""
    if not text:
        return Counter()
    starts = np.flatnonzero(cluster_starts(code_points(text))).tolist()
    parts = [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]
    return Counter(part for part in parts if character_kinds()[ord(part[0])] == VISIBLE)


def drawn(line: Line) -> Counter[str]:
    """The clusters that a line draws."""
    return sum((clusters(run.text) for run in line.runs), Counter[str]())


def from_the_right(page: PageLayout, spec: PageSpec) -> tuple[int, int]:
    """(right-to-left lines, those of them whose ink starts at the right margin)."""
    image, edge = render(page), spec.width - spec.margins[1]
    lines = [line for line in page.lines if line.rtl and line.runs]
    good = 0
    for line in lines:
        columns = np.flatnonzero((image[line.y : line.y + line.ascent + line.descent] < 128).any(axis=0))
        good += edge - BEARING <= columns[-1] + 1 <= edge
    return len(lines), good


def main() -> int:
    fonts = load_fonts(sorted((HERE / "fonts").glob("*.[ot]tf")))
    spec = PageSpec(fonts=fonts.refs)
    save = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    print(
        "| language | clusters of the source | on the pages | missing glyphs | ink in margins | at the right | pages |"
    )
    print("|---|---|---|---|---|---|---|")
    wrong = 0
    for language in LANGUAGES:
        text = (HERE / f"udhr/{language}.txt").read_text("utf-8")
        laid = lay_out(text, spec, fonts)
        same = all(drawn(line) == clusters(text[line.start : line.end]) for page in laid for line in page.lines)
        found = sum((drawn(line) for page in laid for line in page.lines), Counter[str]())
        missing = sum(page.missing.total() for page in laid)
        outside = 0
        for page in laid:
            image = render(page)
            outside += int((image < 255).sum() - (image[32:-32, 32:-32] < 255).sum())
        right = [from_the_right(page, spec) for page in laid]
        lines, good = sum(a for a, _ in right), sum(b for _, b in right)
        source = clusters(text)
        fine = (
            same
            and found == source
            and not missing
            and not outside
            and lines == good
            and (lines > 0) == (language == "ar")
        )
        wrong += not fine
        print(
            f"| {language} | {source.total():,} | {found.total():,} | {missing} | {outside} | "
            f"{f'{good} of {lines}' if lines else '-'} | {len(laid)} |" + ("" if fine else "  WRONG")
        )
        if save is not None:
            save.mkdir(parents=True, exist_ok=True)
            Image.fromarray(render(laid[0])).save(save / f"{language}.png")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
