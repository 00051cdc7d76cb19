"""A text cut into pieces that are shaped alone: wherever a line may end or anything about the look changes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visiontune.data.pages.bidi import base_level, bidi_classes, levels, needs_bidi
from visiontune.data.pages.breaking import cluster_starts, line_breaks
from visiontune.data.pages.coverage import font_of_clusters
from visiontune.data.pages.fonts import Fonts
from visiontune.data.pages.markdown import HEADING_SIZES, Marks, read_marks
from visiontune.data.pages.properties import code_points, properties
from visiontune.data.pages.shaping import CONTROL, VISIBLE, Run, Shelf, Style, character_kinds, shelf
from visiontune.data.pages.spec import PageSpec

WIDEST_HANG = 0.4  # of the room: the text of a list item never starts further in

# Signs that are drawn apart from the word beside them. Words come again and words with their brackets hardly do, so
# this saves drawing; what fonts kern against letters (full stop, comma, apostrophe, hyphen) stays with its word.
_SIGN = np.array([chr(code) in '!"#$%&()*+/:;<=>?@[\\]^_`{|}~' for code in range(0x80)])


@dataclass(slots=True)
class Pieces:
    """The pieces of a text in reading order; all lists have one entry a piece.

    `visible` pieces count at the end of a line, blanks do not; `opportunity`: a line may end before the piece;
    `levels`: their embedding levels, None if all are zero.
    """

    starts: list[int]
    ends: list[int]
    runs: list[Run]
    shelves: list[Shelf]
    visible: list[bool]
    opportunity: list[bool]
    levels: list[int] | None


@dataclass(slots=True)
class Paragraph:
    """A hard line of the source, pieces first..last: the box of its lines, where its later lines start, its direction.

    `gone` is a line of Markdown that has nothing but a mark.
    """

    first: int
    last: int
    ascent: int
    descent: int
    hang: int
    rtl: bool
    gone: bool


@dataclass(slots=True)
class _Looks:
    """What decides the look of each character; arrays have shape (characters,), None where all are alike.

    `edge`: a piece starts here; `may`: a line may end before; `font`, `level`: its font and embedding level; `base`:
    the level of each hard line.
    """

    edge: NDArray[np.bool_]
    may: NDArray[np.bool_]
    font: NDArray[np.int64] | None
    level: NDArray[np.int64] | None
    base: list[int] | None


def cut(text: str, spec: PageSpec, fonts: Fonts) -> tuple[Pieces, list[Paragraph], NDArray[np.bool_] | None]:
    """The pieces of a text, its hard lines, and which characters are Markdown marks (None without Markdown)."""
    codes = code_points(text)
    may, must = line_breaks(codes)
    kinds = character_kinds()[codes]
    lines = np.append(0, np.flatnonzero(must))
    marks = read_marks(text, lines.tolist()) if spec.markdown else None
    if marks is not None:
        kinds[marks.consumed] = CONTROL
    looks = _looks(text, codes, kinds, may, lines, spec, fonts, marks)
    starts = np.flatnonzero(looks.edge)
    firsts = np.searchsorted(starts, lines)
    lasts = np.append(firsts[1:], len(starts))
    pieces = Pieces(
        starts=starts.tolist(),
        ends=np.append(starts[1:], len(text)).tolist(),
        runs=[],
        shelves=[],
        visible=(kinds[starts] == VISIBLE).tolist(),
        opportunity=looks.may[starts].tolist(),
        levels=None if looks.level is None else looks.level[starts].tolist(),
    )
    styles = _Styles(spec, fonts)
    headings = [0] * len(lines) if marks is None else [marks.heading.get(line, 0) for line in lines.tolist()]
    if looks.font is None and marks is None:
        pieces.shelves = [styles.shelf(0, False, False, 0)] * len(starts)
    else:
        hung = [marks is not None and line in marks.hang for line in lines.tolist()]
        none = np.zeros(len(starts), dtype=np.int64)
        pieces.shelves = styles.of_pieces(
            np.repeat(np.array(headings, dtype=np.int64), lasts - firsts),
            np.repeat(np.array(hung, dtype=np.int64), lasts - firsts),
            none if looks.level is None else looks.level[starts] % 2,
            none if looks.font is None else looks.font[starts],
        )
    pieces.runs = _runs(text, pieces, kinds[starts] == CONTROL if marks is not None else None)
    boxes = [styles.box(heading) for heading in headings]
    paragraphs = [
        Paragraph(first, last, ascent, descent, hang=0, rtl=False, gone=False)
        for first, last, (_, ascent, descent) in zip(firsts.tolist(), lasts.tolist(), boxes, strict=True)
    ]
    if looks.base is not None:
        for paragraph, base in zip(paragraphs, looks.base, strict=True):
            paragraph.rtl = base == 1
    if marks is not None:
        _shape_lists(pieces, paragraphs, marks, spec)
    _cut_long(text, pieces, paragraphs)
    return pieces, paragraphs, None if marks is None else marks.consumed


def _looks(
    text: str,
    codes: NDArray[np.uint32],
    kinds: NDArray[np.uint8],
    may: NDArray[np.bool_],
    lines: NDArray[np.int64],
    spec: PageSpec,
    fonts: Fonts,
    marks: Marks | None,
) -> _Looks:
    """Find what the characters' looks need; a text that the first font draws from left to right is soon done."""
    edge = _changes(kinds)
    beside_sign = _changes((codes < 0x80) & _SIGN[codes & 0x7F])
    font, level, base = None, None, None
    if not fonts.plain[codes].all():
        clusters = cluster_starts(codes)
        may &= clusters  # the rules for lines would cut some clusters, as Thai ones
        beside_sign &= clusters
        font = _fonts(text, codes, clusters, fonts, spec, marks)
        edge |= _changes(_scripts(codes)) & clusters
        level, base = _levels(codes, lines)
        if level is not None:
            edge |= _changes(level)
    elif marks is not None and spec.code_font is not None:
        font = _fonts(text, codes, np.ones(len(codes), dtype=bool), fonts, spec, marks)
    if font is not None:
        edge |= _changes(font)
    if marks is not None:
        edge[list(marks.hang.values())] = True
    edge |= may | beside_sign
    edge[lines] = True
    return _Looks(edge, may, font, level, base)


def _shape_lists(pieces: Pieces, paragraphs: list[Paragraph], marks: Marks, spec: PageSpec) -> None:
    """Give list items their hanging indent, and take the height of lines that have nothing but a mark."""
    for paragraph in paragraphs:
        start = pieces.starts[paragraph.first]
        paragraph.gone = start in marks.gone
        if start in marks.hang:
            until = marks.hang[start]
            own = range(paragraph.first, paragraph.last)
            width = sum(pieces.runs[k].width for k in own if pieces.ends[k] <= until)
            paragraph.hang = min(width, int(WIDEST_HANG * spec.room[0]))


class _Styles:
    """The shelves of a document, by heading level, hanging, direction and font."""

    def __init__(self, spec: PageSpec, fonts: Fonts) -> None:
        self.spec, self.fonts = spec, fonts
        self._boxes: dict[int, tuple[int, int, int]] = {}

    def box(self, heading: int) -> tuple[int, int, int]:
        """(size, ascent, descent) in pixels of a common line of text, or of a heading."""
        if heading not in self._boxes:
            width, height = self.spec.room
            size = min(max(1, round(self.spec.font_size * HEADING_SIZES[heading])), min(width, height) // 2)
            line = min(max(2, round(size * self.spec.line_spacing)), height)
            above, below = self.fonts[0].line(size)
            ascent = round(line * above / (above + below))
            self._boxes[heading] = size, ascent, line - ascent
        return self._boxes[heading]

    def of_pieces(
        self,
        heading: NDArray[np.int64],
        hung: NDArray[np.int64],
        rtl: NDArray[np.int64],
        font: NDArray[np.int64],
    ) -> list[Shelf]:
        """The shelf of each piece."""
        number = ((heading * 2 + hung) * 2 + rtl) * len(self.fonts) + font
        by_number = {}
        for one, at in zip(*np.unique(number, return_index=True), strict=True):
            by_number[int(one)] = self.shelf(int(heading[at]), bool(hung[at]), bool(rtl[at]), int(font[at]))
        return [by_number[one] for one in number.tolist()]

    def shelf(self, heading: int, hung: bool, rtl: bool, font: int) -> Shelf:
        """The shelf of one look."""
        size, ascent, descent = self.box(heading)
        width, height = self.spec.room
        room = (width - int(WIDEST_HANG * width) if hung else width, height)
        return shelf(self.fonts, Style(font, size, rtl, ascent, descent, room, self.spec.tab_spaces))


def _changes(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Where a value differs from the one before."""
    changes = np.zeros(len(values), dtype=bool)
    changes[1:] = values[1:] != values[:-1]
    return changes


def _fonts(
    text: str, codes: NDArray[np.uint32], clusters: NDArray[np.bool_], fonts: Fonts, spec: PageSpec, marks: Marks | None
) -> NDArray[np.int64]:
    """The font of each character."""
    order = [i for i in range(len(fonts)) if i != spec.code_font] if len(fonts) > 1 else [0]
    if spec.code_font is not None and spec.code_font not in order:
        order.append(spec.code_font)
    font = font_of_clusters(text, codes, clusters, fonts, order)
    if marks is not None and spec.code_font is not None and marks.code.any():
        of_code = font_of_clusters(text, codes, clusters, fonts, [spec.code_font, *order])
        font = np.where(marks.code, of_code, font)
    return font


def _scripts(codes: NDArray[np.uint32]) -> NDArray[np.int64]:
    """The script of each character; those of no script of their own follow the one before."""
    script = properties()["script"]
    numbers = script.of[codes]
    own = ~script.chosen("Common", "Inherited", "Unknown")[numbers]
    last = np.maximum.accumulate(np.where(own, np.arange(len(codes)), -1))
    first = int(own.argmax())  # what stands before the first script goes with it
    return numbers[np.where(last < 0, first, last)].astype(np.int64)


def _levels(
    codes: NDArray[np.uint32], lines: NDArray[np.int64]
) -> tuple[NDArray[np.int64], list[int]] | tuple[None, None]:
    """Levels of all characters and the base level of each hard line; (None, None) if nothing runs leftwards."""
    classes = bidi_classes(codes)
    if not needs_bidi(classes):
        return None, None
    level = np.zeros(len(codes), dtype=np.int64)
    base: list[int] = []
    for start, end in zip(lines.tolist(), [*lines[1:].tolist(), len(codes)], strict=True):
        own = classes[start:end]
        base.append(base_level(own) if needs_bidi(own) else 0)
        if needs_bidi(own):
            level[start:end] = levels(codes[start:end].tolist(), own, base[-1])
    return level, base


def _runs(text: str, pieces: Pieces, hidden: NDArray[np.bool_] | None) -> list[Run]:
    if hidden is None and all(one is pieces.shelves[0] for one in pieces.shelves):
        known, made = pieces.shelves[0].runs, pieces.shelves[0].made
        return [
            known.get(piece := text[start:end]) or made(piece)
            for start, end in zip(pieces.starts, pieces.ends, strict=True)
        ]
    if hidden is None:
        return [
            one.runs.get(piece := text[start:end]) or one.made(piece)
            for start, end, one in zip(pieces.starts, pieces.ends, pieces.shelves, strict=True)
        ]
    return [
        one.nothing() if hide else one.run(text[start:end])
        for start, end, one, hide in zip(pieces.starts, pieces.ends, pieces.shelves, hidden.tolist(), strict=True)
    ]


def _cut_long(text: str, pieces: Pieces, paragraphs: list[Paragraph]) -> None:
    """Cut pieces that are wider than the page between grapheme clusters, where lines may then end."""
    narrowest = min(one.style.room[0] for one in {id(one): one for one in pieces.shelves}.values())
    if max([run.width for run in pieces.runs]) <= narrowest:
        return
    long = [
        i
        for i, (run, one) in enumerate(zip(pieces.runs, pieces.shelves, strict=True))
        if run.width > one.style.room[0] and pieces.visible[i]
    ]
    if not long:
        return
    added = np.zeros(len(pieces.runs) + 1, dtype=np.int64)
    for i in reversed(long):
        one = pieces.shelves[i]
        parts = one.parts(text[pieces.starts[i] : pieces.ends[i]])
        added[i + 1] += len(parts) - 1
        ends = (pieces.starts[i] + np.cumsum([len(part) for part in parts])).tolist()
        pieces.starts[i : i + 1] = [pieces.starts[i], *ends[:-1]]
        pieces.ends[i : i + 1] = ends
        pieces.runs[i : i + 1] = [one.run(part) for part in parts]
        pieces.shelves[i : i + 1] = [one] * len(parts)
        pieces.visible[i : i + 1] = [True] * len(parts)
        pieces.opportunity[i : i + 1] = [pieces.opportunity[i], *[True] * (len(parts) - 1)]
        if pieces.levels is not None:
            pieces.levels[i : i + 1] = [pieces.levels[i]] * len(parts)
    moved = np.cumsum(added)
    for paragraph in paragraphs:
        paragraph.first += int(moved[paragraph.first])
        paragraph.last += int(moved[paragraph.last])
