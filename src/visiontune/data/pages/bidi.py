"""The bidirectional algorithm (UAX #9): the embedding level of each character and the visual order of a line.

A paragraph's classes become a string with one letter a character; the weak and neutral rules are regular expressions
over it. Explicit embeddings and isolates (X1 to X10) take a loop that runs only where such characters occur.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from visiontune.data.pages.properties import brackets, properties

DEEPEST = 125
LETTER = {
    "L": "L", "R": "R", "AL": "A", "EN": "E", "ES": "S", "ET": "T", "AN": "N", "CS": "C", "NSM": "M", "BN": "B",
    "B": "P", "S": "G", "WS": "W", "ON": "O", "LRE": "l", "RLE": "r", "LRO": "x", "RLO": "y", "PDF": "p",
    "LRI": "i", "RLI": "j", "FSI": "k", "PDI": "q",
}  # fmt: skip
NEUTRAL = "PGWOijkq"
_TURNS = re.compile("[RANryj]")
_W1 = re.compile("(.)(M+)", re.DOTALL)
_W2 = re.compile("A[^LR]*")
_W4_ES = re.compile("(?<=E)[SC](?=E)")
_W4_AN = re.compile("(?<=N)C(?=N)")
_W5 = re.compile("T+")
_W7 = re.compile("L[^LR]*")
_NEUTRALS = re.compile(f"[{NEUTRAL}]+")
_W6 = str.maketrans("STC", "OOO")
_AL = str.maketrans("A", "R")


@cache
def _letters() -> NDArray[np.uint8]:
    """The letter, as a byte, of each number of the bidi property."""
    names = properties()["bidi"].names
    return np.array([ord(LETTER[name]) for name in names], dtype=np.uint8)


def bidi_classes(codes: NDArray[np.uint32]) -> str:
    """One letter a character (see LETTER)."""
    return _letters()[properties()["bidi"].of[codes]].tobytes().decode("ascii")


def needs_bidi(classes: str) -> bool:
    """Whether anything in the text runs from right to left; without it all levels are zero."""
    return _TURNS.search(classes) is not None


def base_level(classes: str) -> int:
    """0 or 1, from the first strong character outside isolates (P2 and P3); 0 without one."""
    depth = 0
    for letter in re.findall("[LRAijkq]", classes):
        if letter in "ijk":
            depth += 1
        elif letter == "q":
            depth = max(0, depth - 1)
        elif depth == 0:
            return int(letter in "RA")
    return 0


def levels(codes: Sequence[int], classes: str, base: int) -> list[int]:
    """The level of each character of one paragraph, before lines are cut (rules X1 to I2, and L1 for separators)."""
    if re.search("[lrxypijkq]", classes):
        result, kinds, sequences = _explicit(classes, base)
    else:
        result, kinds = [base] * len(classes), list(classes)
        sequences = [[i for i, letter in enumerate(classes) if letter != "B"]]
    embedded = list(result)
    for sequence in sequences:
        if sequence:
            _resolve(sequence, embedded, result, kinds, classes, codes, base)
    removed = _removed(classes)
    for i in removed:  # characters that X9 removes follow the one before
        result[i] = result[i - 1] if i else base
    for match in re.finditer("[PG]|$", classes):  # L1; blanks at the end of a line are not drawn
        first = match.start()
        while first and classes[first - 1] in "WijkqBlrxyp":
            first -= 1
        result[first : match.end()] = [base] * (match.end() - first)
    return result


def _removed(classes: str) -> list[int]:
    return [match.start() for match in re.finditer("[lrxypB]", classes)]


def _explicit(classes: str, base: int) -> tuple[list[int], list[str], list[list[int]]]:
    """X1 to X8, then X10's isolating run sequences: (levels, classes after overrides, sequences of indices)."""
    stack: list[tuple[int, str, bool]] = [(base, "", False)]
    overflow_isolates = overflow_embeddings = valid_isolates = 0
    result, kinds = [base] * len(classes), list(classes)
    match_of: dict[int, int] = {}  # initiator -> its PDI
    waiting: list[int] = []
    for i, letter in enumerate(classes):
        level, override, _ = stack[-1]
        if letter in "lrxy":
            result[i] = level
            deeper = level + (1 + level % 2 if letter in "ry" else 2 - level % 2)
            if deeper <= DEEPEST and not overflow_isolates and not overflow_embeddings:
                stack.append((deeper, {"x": "L", "y": "R"}.get(letter, ""), False))
            elif not overflow_isolates:
                overflow_embeddings += 1
        elif letter in "ijk":
            result[i] = level
            kinds[i] = override or letter
            rightwards = base_level(_isolated(classes, i)) == 0 if letter == "k" else letter == "i"
            deeper = level + (2 - level % 2 if rightwards else 1 + level % 2)
            if deeper <= DEEPEST and not overflow_isolates and not overflow_embeddings:
                valid_isolates += 1
                stack.append((deeper, "", True))
                waiting.append(i)
            else:
                overflow_isolates += 1
        elif letter == "q":
            if overflow_isolates:
                overflow_isolates -= 1
            elif valid_isolates:
                overflow_embeddings = 0
                while not stack[-1][2]:
                    stack.pop()
                stack.pop()
                valid_isolates -= 1
                match_of[waiting.pop()] = i
            result[i] = stack[-1][0]
            kinds[i] = stack[-1][1] or letter
        elif letter == "p":
            result[i] = level
            if overflow_isolates:
                pass
            elif overflow_embeddings:
                overflow_embeddings -= 1
            elif not stack[-1][2] and len(stack) > 1:
                stack.pop()
        elif letter == "P":
            result[i] = base
        else:
            result[i] = level
            if override and letter != "B":
                kinds[i] = override
    return result, kinds, _sequences(classes, result, match_of)


def _isolated(classes: str, start: int) -> str:
    """The classes between an isolate initiator and its matching PDI, or the end."""
    depth = 0
    for i in range(start, len(classes)):
        depth += (classes[i] in "ijk") - (classes[i] == "q")
        if depth == 0:
            return classes[start + 1 : i]
    return classes[start + 1 :]


def _sequences(classes: str, result: list[int], match_of: dict[int, int]) -> list[list[int]]:
    """Level runs joined over isolates (BD13), without the characters that X9 removes."""
    runs: list[list[int]] = []
    for i, letter in enumerate(classes):
        if letter in "lrxypB":
            continue
        if runs and result[runs[-1][-1]] == result[i]:
            runs[-1].append(i)
        else:
            runs.append([i])
    by_first = {run[0]: run for run in runs}
    closers = set(match_of.values())
    sequences = []
    for run in runs:
        if run[0] in closers:
            continue
        whole = list(run)
        while whole[-1] in match_of:
            whole += by_first[match_of[whole[-1]]]
        sequences.append(whole)
    return sequences


def _resolve(
    sequence: list[int],
    embedded: list[int],
    result: list[int],
    kinds: list[str],
    classes: str,
    codes: Sequence[int],
    base: int,
) -> None:
    """W1 to W7, N0 to N2, I1 and I2 on one isolating run sequence; writes levels into `result`."""
    level = embedded[sequence[0]]
    starts, ends = _outside(sequence, embedded, classes, base)
    own = "R" if level % 2 else "L"
    text = "".join([kinds[i] for i in sequence])
    # The class before the sequence stands in front while the weak rules run, and is taken off again.
    text = _W1.sub(lambda m: m[1] + ("O" if m[1] in "ijkq" else m[1]) * len(m[2]), starts + text)
    text = _W2.sub(lambda m: m[0].replace("E", "N"), text).translate(
        _AL
    )  # W2, W3; R or L ends an Arabic letter's reach
    text = _W4_AN.sub("N", _W4_ES.sub("E", text))
    text = _W5.sub(_terminators, text).translate(_W6)
    text = _W7.sub(lambda m: m[0].replace("E", "L"), text)[1:]
    known = brackets()
    if any(kind == "O" and codes[i] in known for i, kind in zip(sequence, text, strict=True)):
        text = _pairs(sequence, text, kinds, codes, starts, own, classes)
    text = _neutrals(text, starts, ends, own)
    for i, kind in zip(sequence, text, strict=True):
        if level % 2:
            result[i] = level + (kind in "LEN")
        else:
            result[i] = level + (1 if kind == "R" else 2 if kind in "EN" else 0)


def _terminators(match: re.Match[str]) -> str:
    """W5: signs such as a per cent sign count as part of the number beside them."""
    beside = match.string[match.start() - 1 : match.start()] + match.string[match.end() : match.end() + 1]
    return "E" * len(match[0]) if "E" in beside else match[0]


def _outside(sequence: list[int], embedded: list[int], classes: str, base: int) -> tuple[str, str]:
    """sos and eos (X10): from the higher of the levels at either side of each end."""
    level = embedded[sequence[0]]
    before = sequence[0] - 1
    while before >= 0 and classes[before] in "lrxypB":
        before -= 1
    after = sequence[-1] + 1
    while after < len(classes) and classes[after] in "lrxypB":
        after += 1
    left = max(level, embedded[before] if before >= 0 else base)
    open_isolate = classes[sequence[-1]] in "ijk"
    right = max(level, base if open_isolate or after >= len(classes) else embedded[after])
    return "LR"[left % 2], "LR"[right % 2]


def _neutrals(text: str, starts: str, ends: str, own: str) -> str:
    """N1 and N2."""

    def turned(match: re.Match[str]) -> str:
        left = text[match.start() - 1] if match.start() else starts
        right = text[match.end()] if match.end() < len(text) else ends
        left, right = ("R" if c in "EN" else c for c in (left, right))
        return (left if left == right else own) * len(match[0])

    return _NEUTRALS.sub(turned, text)


def _pairs(
    sequence: list[int], text: str, kinds: list[str], codes: Sequence[int], starts: str, own: str, classes: str
) -> str:
    """N0: brackets take the direction of what they enclose, or of what stands before them."""
    found: list[tuple[int, int]] = []
    waiting: list[tuple[str, int]] = []
    for place, index in enumerate(sequence):
        entry = brackets().get(codes[index])
        if entry is None or text[place] != "O":
            continue
        partner, opens = entry
        if opens:
            if len(waiting) == 63:
                return text
            waiting.append((_canonical(partner), place))
        else:
            name = _canonical(codes[index])
            for back in range(len(waiting) - 1, -1, -1):
                if waiting[back][0] == name:
                    found.append((waiting[back][1], place))
                    del waiting[back:]
                    break
    letters = list(text)
    for first, last in sorted(found):
        inside = {("R" if c in "EN" else c) for c in letters[first + 1 : last] if c in "LREN"}
        if own in inside:
            direction = own
        elif inside:
            earlier = next((letters[i] for i in range(first - 1, -1, -1) if letters[i] in "LREN"), starts)
            other = "R" if own == "L" else "L"
            direction = other if ("R" if earlier in "EN" else earlier) == other else own
        else:
            continue
        for place in (first, last):
            letters[place] = direction
            follow = place + 1
            while follow < len(letters) and classes[sequence[follow]] == "M":
                letters[follow] = direction
                follow += 1
    return "".join(letters)


def _canonical(code: int) -> str:
    return unicodedata.normalize("NFD", chr(code))


def visual_order(of_parts: Sequence[int]) -> list[int]:
    """The parts of a line from left to right, given the level of each in reading order (L2)."""
    order = list(range(len(of_parts)))
    if not order:
        return order
    lowest_odd = min((level for level in of_parts if level % 2), default=None)
    if lowest_odd is None:
        return order
    for level in range(max(of_parts), lowest_odd - 1, -1):
        i = 0
        while i < len(order):
            if of_parts[order[i]] >= level:
                end = i
                while end < len(order) and of_parts[order[end]] >= level:
                    end += 1
                order[i:end] = order[i:end][::-1]
                i = end
            else:
                i += 1
    return order
