"""Light Markdown: ATX headings, lists, fenced and inline code. Marks are not shown, only what they do."""

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

HEADING_SIZES = (1.0, 1.7, 1.45, 1.25, 1.15, 1.1, 1.05)  # of the text, and of headings of level 1 to 6

_HEADING = re.compile(r"( {0,3}(#{1,6})[ \t]+)\S")
_ITEM = re.compile(r"[ \t]*(?:[-*+]|\d{1,9}[.)])[ \t]+(?=\S)")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})([^`]*)$")
_TICKS = re.compile("`+")


@dataclass(frozen=True)
class Marks:
    """What Markdown says of a text. `consumed`, `code`: bool, shape (characters,).

    `heading[line start]` is the level of a heading, `hang[line start]` the position where the text of a list item
    starts, and `gone` the starts of lines that take no height.
    """

    consumed: NDArray[np.bool_]
    code: NDArray[np.bool_]
    heading: dict[int, int]
    hang: dict[int, int]
    gone: frozenset[int]


def read_marks(text: str, line_starts: list[int]) -> Marks:
    """Read the marks of a text whose lines start at `line_starts`."""
    consumed, code = np.zeros(len(text), dtype=bool), np.zeros(len(text), dtype=bool)
    heading: dict[int, int] = {}
    hang: dict[int, int] = {}
    gone: set[int] = set()
    fence = ""
    for start, end in zip(line_starts, [*line_starts[1:], len(text)], strict=True):
        line = text[start:end].rstrip("\r\n")
        opening = _FENCE.match(line)
        if fence:
            code[start:end] = True
            if opening and opening[1][0] == fence[0] and len(opening[1]) >= len(fence) and not opening[2].strip():
                consumed[start : start + len(line)] = True
                gone.add(start)
                fence = ""
            continue
        if opening:
            fence = opening[1]
            mark = opening.end(1)  # the language's name after the mark is shown
            consumed[start : start + mark] = True
            code[start:end] = True
            if not opening[2].strip():
                gone.add(start)
            continue
        if found := _HEADING.match(line):
            heading[start] = len(found[2])
            consumed[start : start + found.end(1)] = True
            title = line.rstrip(" \t").rstrip("#")  # as in "## Title ##"
            if title.endswith((" ", "\t")) and len(title.rstrip(" \t")) >= found.end(1):
                consumed[start + len(title.rstrip(" \t")) : start + len(line)] = True
        elif found := _ITEM.match(line):
            hang[start] = start + found.end()
        for first, last in _inline_code(line):
            consumed[start + first.start() : start + first.end()] = True
            consumed[start + last.start() : start + last.end()] = True
            code[start + first.end() : start + last.start()] = True
    return Marks(consumed, code, heading, hang, frozenset(gone))


def _inline_code(line: str) -> list[tuple[re.Match[str], re.Match[str]]]:
    """The opening and the closing backticks of each piece of code in a line: both are equally many."""
    ticks = list(_TICKS.finditer(line))
    following: dict[int, int] = {}
    closing = [-1] * len(ticks)
    for i in range(len(ticks) - 1, -1, -1):
        length = len(ticks[i][0])
        closing[i] = following.get(length, -1)
        following[length] = i
    found = []
    i = 0
    while i < len(ticks):
        if closing[i] > i:
            found.append((ticks[i], ticks[closing[i]]))
            i = closing[i]
        i += 1
    return found
