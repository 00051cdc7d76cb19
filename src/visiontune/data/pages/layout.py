"""Text cut into lines and pages: `lay_out` says where every character of a text stands."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from visiontune.data.pages.bidi import visual_order
from visiontune.data.pages.coverage import check_missing
from visiontune.data.pages.fonts import Fonts
from visiontune.data.pages.pieces import Paragraph, Pieces, cut
from visiontune.data.pages.properties import code_points
from visiontune.data.pages.shaping import CONTROL, Run, character_kinds, forget_unused
from visiontune.data.pages.spec import PageSpec

MISSING_LIMIT = 0.005


@dataclass(frozen=True, slots=True)
class Line:
    """One line: `runs` from left to right, set side by side from pixel `x`; `y` is its top, its baseline `ascent`
    below.

    It shows the characters `start`..`end` of the source; those without ink (blanks at its end, line ends) count too.
    """

    x: int
    y: int
    ascent: int
    descent: int
    start: int
    end: int
    rtl: bool
    runs: tuple[Run, ...]

    @property
    def width(self) -> int:
        """Pixels from the left edge of the first run to the right edge of the last."""
        return sum([run.width for run in self.runs])


@dataclass(frozen=True)
class PageLayout:
    """Where the characters `start`..`end` of a document stand on one page of `width` x `height` pixels.

    `missing` counts the characters drawn as boxes for want of a glyph, `controls` those that have neither ink nor
    width, `consumed` the Markdown marks that are not shown, `shrunk` the pieces drawn smaller because the page is too
    narrow or low.
    """

    width: int
    height: int
    lines: tuple[Line, ...]
    start: int
    end: int
    missing: Counter[str] = field(default_factory=Counter)
    controls: int = 0
    consumed: int = 0
    shrunk: int = 0


def lay_out(text: str, spec: PageSpec, fonts: Fonts, *, missing_limit: float = MISSING_LIMIT) -> list[PageLayout]:
    """The pages of a text. Each character is on some page, in order: the lines' spans joined are the whole text.

    An empty text is one empty page. Raises DataError if the fonts are not the spec's, or if a larger share of the
    characters than `missing_limit` has no glyph in any of them.
    """
    spec.check(fonts)
    if not text:
        return [PageLayout(spec.width, spec.height, (), 0, 0)]
    forget_unused(fonts)
    pieces, paragraphs, consumed = cut(text, spec, fonts)
    pages = [_page(lines, text, spec, consumed) for lines in _paged(_filled(pieces, paragraphs, spec), spec)]
    check_missing(sum((page.missing for page in pages), Counter[str]()), len(text), missing_limit)
    return pages


@dataclass(slots=True)
class _Filled:
    """A line without its place on a page; an `empty` one is an empty line of the source, `gone` one without height."""

    x: int
    ascent: int
    descent: int
    start: int
    end: int
    rtl: bool
    runs: list[Run]
    empty: bool
    gone: bool


def _filled(pieces: Pieces, paragraphs: list[Paragraph], spec: PageSpec) -> Iterator[_Filled]:
    """Fill each hard line's lines as far as they go (greedy); blanks at the end of a line take no room."""
    room = spec.room[0]
    left = spec.margins[3]
    runs, levels = pieces.runs, pieces.levels
    index = np.arange(len(runs))
    visible = np.array(pieces.visible)
    after = np.cumsum([run.width for run in runs])
    before: list[int] = [0, *after.tolist()]
    reach: list[int] = np.maximum.accumulate(np.where(visible, after, 0)).tolist()  # after each piece, less blanks
    last_visible: list[int] = np.maximum.accumulate(np.where(visible, index, -1)).tolist()
    last_chance: list[int] = np.maximum.accumulate(np.where(pieces.opportunity, index, -1)).tolist()
    tall = any(one.tall for one in {id(one): one for one in pieces.shelves}.values())
    for paragraph in paragraphs:
        first, stop = paragraph.first, paragraph.last
        hang = 0
        while first < stop:
            end = bisect_right(reach, before[first] + room - hang, first, stop)
            if end < stop:
                chance = last_chance[end]
                end = chance if chance > first else max(end, first + 1)
            shown = max(last_visible[end - 1] + 1, first)
            of_line = runs[first:shown]
            if levels is not None and of_line:
                of_line = [of_line[i] for i in visual_order(levels[first:shown])]
            x = left
            if paragraph.rtl:
                x += room - hang - (before[shown] - before[first])
            else:
                x += hang
            ascent, descent = paragraph.ascent, paragraph.descent
            if tall and of_line:
                ascent = max(ascent, max([run.ascent for run in of_line]))
                descent = max(descent, max([run.descent for run in of_line]))
            yield _Filled(
                x,
                ascent,
                descent,
                pieces.starts[first],
                pieces.ends[end - 1],
                paragraph.rtl,
                of_line,
                empty=not of_line,
                gone=paragraph.gone,
            )
            first = end
            hang = paragraph.hang


def _paged(filled: Iterator[_Filled], spec: PageSpec) -> Iterator[list[Line]]:
    """Set lines under each other and start a page when the next does not fit; an empty line never starts one."""
    top, bottom = spec.margins[0], spec.height - spec.margins[2]
    y = top
    lines: list[Line] = []
    for one in filled:
        height = one.ascent + one.descent
        if one.gone:
            height = 0
        elif one.empty:
            height = min(round(height * spec.paragraph_spacing), bottom - y)
        if y + height > bottom and lines:
            yield lines
            lines, y = [], top
        ascent = min(one.ascent, height)
        lines.append(Line(one.x, y, ascent, height - ascent, one.start, one.end, one.rtl, tuple(one.runs)))
        y += height
    yield lines


def _page(lines: list[Line], text: str, spec: PageSpec, consumed: NDArray[np.bool_] | None) -> PageLayout:
    start, end = lines[0].start, lines[-1].end
    missing = Counter[str]()
    shrunk = 0
    for line in lines:
        for run in line.runs:
            if run.missing or run.shrunk:
                missing.update(run.missing)
                shrunk += run.shrunk
    own = text[start:end]
    marks = 0 if consumed is None else int(consumed[start:end].sum())
    controls = 0 if own.isprintable() else int((character_kinds()[code_points(own)] == CONTROL).sum())
    return PageLayout(spec.width, spec.height, tuple(lines), start, end, missing, controls, marks, shrunk)
