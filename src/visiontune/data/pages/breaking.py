"""Where a text may break: lines by UAX #14, grapheme clusters by UAX #29.

Both work on arrays: most rules look at two neighbouring classes and become one table of pairs; the few that look
further are regular expressions over a string with one byte a class. Numbers follow the regular expression of UAX #14,
section 8.2, example 7. Two tailorings: scripts without spaces that need a dictionary (Thai, Lao, Khmer, Burmese) may
break between any two grapheme clusters, and a soft hyphen is no opportunity.
"""

import re
from functools import cache

import numpy as np
from numpy.typing import NDArray

from visiontune.data.pages.properties import properties

Mask = NDArray[np.bool_]

SOFT_HYPHEN = 0xAD
JAMO = {"JL", "JV", "JT", "H2", "H3"}
LETTERS = {"AL", "HL", "SA"}
IDEOGRAPHS = {"ID", "EB", "EM", "EPN"}


def _forbidden(a: str, b: str, spaces: bool) -> bool:
    """Whether no line may end between classes a and b, with or without spaces between (LB7 to LB31, Unicode 15)."""
    if b == "ZW":
        return True
    if a == "ZW":
        return False
    if b == "WJ":
        return True
    if not spaces and (a in ("WJ", "GL") or (b == "GL" and a not in ("BA", "HY"))):
        return True
    if b in ("CL", "CP", "EX", "IS", "SY") or a in ("OP", "OPW"):
        return True
    if (a == "QU" and b in ("OP", "OPW")) or (a in ("CL", "CP") and b == "NS") or (a == "B2" and b == "B2"):
        return True
    if spaces:
        return False
    if a == "QU" or b == "QU":
        return True
    if a == "CB" or b == "CB":
        return False
    return (
        b in ("BA", "HY", "NS", "IN")
        or a == "BB"
        or (a == "SY" and b == "HL")
        or (a in LETTERS and b == "NU")
        or (a == "NU" and b in LETTERS)
        or (a == "PR" and b in IDEOGRAPHS)
        or (a in IDEOGRAPHS and b == "PO")
        or (a in ("PR", "PO") and b in LETTERS)
        or (a in LETTERS and b in ("PR", "PO"))
        or (a == "JL" and b in ("JL", "JV", "H2", "H3"))
        or (a in ("JV", "H2") and b in ("JV", "JT"))
        or (a in ("JT", "H3") and b == "JT")
        or (a in JAMO and b == "PO")
        or (a == "PR" and b in JAMO)
        or (a in LETTERS and b in LETTERS and (a, b) != ("SA", "SA"))
        or (a == "IS" and b in LETTERS)
        or (a in LETTERS | {"NU"} and b == "OP")
        or (a == "CP" and b in LETTERS | {"NU"})
        or (a in ("EB", "EPN") and b == "EM")
    )


@cache
def _line_pairs() -> NDArray[np.bool_]:
    """[spaces between, class before, class after] -> forbidden; bool, shape (2, classes, classes)."""
    names = properties()["line_break"].names
    return np.array([[[_forbidden(a, b, spaces) for b in names] for a in names] for spaces in (False, True)])


def _one_of(property_name: str, *names: str) -> bytes:
    """A regular expression for one byte that is the class number of any of the names."""
    prop = properties()[property_name]
    return b"[" + b"".join(re.escape(bytes([prop.number(name)])) for name in names) + b"]"


@cache
def _number_pattern() -> re.Pattern[bytes]:
    """A number with its signs and brackets, in which no line ends (LB25)."""
    sign = _one_of("line_break", "PR", "PO") + b"?"
    opening = _one_of("line_break", "OP", "OPW", "HY") + b"?"
    inside = _one_of("line_break", "NU", "SY", "IS") + b"*"
    closing = _one_of("line_break", "CL", "CP") + b"?"
    # The sign at the end may also be the first of the next number, so it is looked at and not taken.
    after = b"(?=(" + sign + b"))"
    return re.compile(sign + opening + _one_of("line_break", "NU") + inside + closing + after, re.DOTALL)


def line_breaks(codes: NDArray[np.uint32]) -> tuple[Mask, Mask]:
    """(may, must) break before each character: two bool arrays of shape (characters,).

    `must` is part of `may`. The first character has neither; a newline at the very end makes no further line.
    """
    prop = properties()["line_break"]
    count = len(codes)
    may, must = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
    if count < 2:
        return may, must
    classes = prop.of[codes]
    classes[codes == SOFT_HYPHEN] = prop.number("CM")
    number = prop.number

    # LB4 to LB6: hard line ends; a return and a line feed belong together.
    must[1:] = prop.chosen("BK", "CR", "LF", "NL")[classes[:-1]]
    must[1:] &= ~((classes[:-1] == number("CR")) & (classes[1:] == number("LF")))

    # LB9 and LB10: marks belong to what they follow, or else count as letters.
    marks = prop.chosen("CM", "ZWJ")[classes]
    if marks.any():
        attached = marks.copy()
        attached[0] = False
        attached[1:] &= ~prop.chosen("BK", "CR", "LF", "NL", "SP", "ZW")[classes[:-1]]
        units = np.flatnonzero(~attached)
        kinds = classes[units]
        kinds[prop.chosen("CM", "ZWJ")[kinds]] = number("AL")
        after_joiner = classes[units[1:] - 1] == number("ZWJ")  # LB8a
    else:
        units, kinds, after_joiner = np.arange(count), classes, np.zeros(count - 1, dtype=bool)
    if len(units) < 2:
        return may, must

    # What stands before each boundary once spaces are left out; LB7 holds a space to what it follows.
    space = kinds == number("SP")
    index = np.arange(len(kinds))
    last = np.maximum.accumulate(np.where(space, -1, index))[:-1]
    before = kinds[last]
    before[(last < 0) | (space[:-1] & prop.chosen("BK", "CR", "LF", "NL")[before])] = number("CB")  # holds to nothing
    forbidden = _line_pairs()[space[:-1].view(np.uint8), before, kinds[1:]]
    forbidden |= space[1:] | after_joiner
    forbidden |= prop.chosen("BK", "CR", "LF", "NL")[kinds[1:]]  # LB6
    _longer_rules(kinds, forbidden)
    boundary = units[1:]
    may[boundary[~forbidden]] = True
    may |= must
    return may, must


def _longer_rules(kinds: NDArray[np.uint8], forbidden: Mask) -> None:
    """Apply the rules that look at more than two classes; `forbidden[i]` is the boundary before unit i + 1."""
    prop = properties()["line_break"]
    hebrew = np.flatnonzero(kinds == prop.number("HL"))
    for i in hebrew.tolist():  # LB21a
        if i + 2 < len(kinds) and prop.names[kinds[i + 1]] in ("HY", "BA"):
            forbidden[i + 1] |= prop.names[kinds[i + 2]] not in ("CB",)
    text = kinds.tobytes()
    if (kinds == prop.number("NU")).any():  # LB25
        for match in _number_pattern().finditer(text):
            forbidden[match.start() : match.end(1) - 1] = True
    if (kinds == prop.number("RI")).any():  # LB30a
        for match in re.finditer(_one_of("line_break", "RI") + b"{2}", text):
            forbidden[match.start()] = True


def _joined(a: str, b: str) -> bool:
    """Whether UAX #29 keeps two grapheme classes in one cluster (GB3 to GB9b)."""
    if a == "CR" and b == "LF":
        return True
    if a in ("CR", "LF", "Control") or b in ("CR", "LF", "Control"):
        return False
    return (
        (a == "L" and b in ("L", "V", "LV", "LVT"))
        or (a in ("LV", "V") and b in ("V", "T"))
        or (a in ("LVT", "T") and b == "T")
        or b in ("Extend", "ZWJ", "SpacingMark", "Linker")
        or a == "Prepend"
    )


@cache
def _grapheme_pairs() -> NDArray[np.bool_]:
    names = properties()["grapheme"].names
    return np.array([[_joined(a, b) for b in names] for a in names])


@cache
def _grapheme_patterns() -> re.Pattern[bytes]:
    """Emoji sequences (GB11), flags (GB12, GB13) and Indic conjuncts (GB9c), each from first to last class."""
    consonant, linker = _one_of("grapheme", "Consonant"), _one_of("grapheme", "Linker")
    emoji, flag = _one_of("grapheme", "Pictographic"), _one_of("grapheme", "Regional_Indicator")
    marks = _one_of("grapheme", "Extend", "Linker", "ZWJ") + b"+"
    with_linker = b"(?=" + _one_of("grapheme", "Extend", "ZWJ") + b"*" + linker + b")"
    sequence = emoji + b"(?:" + _one_of("grapheme", "Extend", "Linker") + b"*" + _one_of("grapheme", "ZWJ") + emoji
    conjunct = consonant + b"(?:" + with_linker + marks + consonant + b")+"
    return re.compile(sequence + b")+|" + flag + b"{2}|" + conjunct, re.DOTALL)


def cluster_starts(codes: NDArray[np.uint32]) -> Mask:
    """Where grapheme clusters start; bool, shape (characters,). Extended clusters with Indic conjuncts (GB9c)."""
    prop = properties()["grapheme"]
    starts = np.ones(len(codes), dtype=bool)
    if len(codes) < 2:
        return starts
    classes = prop.of[codes]
    starts[1:] = ~_grapheme_pairs()[classes[:-1], classes[1:]]
    if prop.chosen("Pictographic", "Regional_Indicator", "Linker")[classes].any():
        for match in _grapheme_patterns().finditer(classes.tobytes()):
            starts[match.start() + 1 : match.end()] = False
    return starts
