"""Makes `unicode.npz`, the Unicode properties that laying out needs, from the files of the Unicode Character Database.

    python -m visiontune.data.pages.make_unicode /usr/share/unicode        (Debian: apt install unicode-data)

Run by hand when a new version of Unicode is wanted; the result travels with the package, so that the same text breaks
at the same places whatever Python is installed.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

CODE_POINTS = 0x110000
CONJUNCT_SCRIPTS = {
    "Devanagari",
    "Bengali",
    "Gujarati",
    "Telugu",
    "Malayalam",
    "Oriya",
}  # those of Indic_Conjunct_Break


def read(path: Path) -> Iterator[tuple[int, int, str]]:
    """Yield (first, last, value) of each line of a property file; `@missing` lines first, as the defaults they are."""
    text = path.read_text(encoding="utf-8")
    for pattern in (r"^# @missing: ([0-9A-F]+)\.\.([0-9A-F]+); *(\w+)", r"^([0-9A-F]+)(?:\.\.([0-9A-F]+))? *; *(\w+)"):
        for match in re.finditer(pattern, text, re.MULTILINE):
            yield int(match[1], 16), int(match[2] or match[1], 16), match[3]


def values(path: Path, default: str) -> list[str]:
    """The property's value of every code point."""
    found = [default] * CODE_POINTS
    for first, last, value in read(path):
        found[first : last + 1] = [value] * (last + 1 - first)
    return found


def members(path: Path, name: str) -> set[int]:
    """The code points that have a binary property."""
    return {code for first, last, value in read(path) if value == name for code in range(first, last + 1)}


def line_break(folder: Path) -> list[str]:
    """Line_Break, resolved by LB1 where one character decides; wide brackets and future emoji get their own class."""
    classes = values(folder / "LineBreak.txt", "XX")
    category = values(folder / "extracted/DerivedGeneralCategory.txt", "Cn")
    wide = values(folder / "EastAsianWidth.txt", "N")
    pictographic = members(folder / "emoji/emoji-data.txt", "Extended_Pictographic")
    for code, name in enumerate(classes):
        if name in ("AI", "SG", "XX"):
            classes[code] = "AL"
        elif name == "SA":
            classes[code] = "CM" if category[code] in ("Mn", "Mc") else "SA"
        elif name == "CJ":
            classes[code] = "NS"
        elif name in ("OP", "CP") and wide[code] in "FWH":
            classes[code] = name + "W"
        elif name == "ID" and category[code] == "Cn" and code in pictographic:
            classes[code] = "EPN"
    return classes


def grapheme(folder: Path) -> list[str]:
    """Grapheme_Cluster_Break with the emoji and the Indic consonants and linkers of GB11 and GB9c as classes."""
    classes = values(folder / "auxiliary/GraphemeBreakProperty.txt", "Other")
    syllabic = values(folder / "IndicSyllabicCategory.txt", "Other")
    scripts = values(folder / "Scripts.txt", "Unknown")
    for code in members(folder / "emoji/emoji-data.txt", "Extended_Pictographic"):
        classes[code] = "Pictographic"
    for code, script in enumerate(scripts):
        if script in CONJUNCT_SCRIPTS and syllabic[code] == "Virama":
            classes[code] = "Linker"
        elif script in CONJUNCT_SCRIPTS and syllabic[code] == "Consonant":
            classes[code] = "Consonant"
    return classes


def short_bidi(folder: Path) -> list[str]:
    """Bidi_Class by its short name."""
    long_names = {
        "Left_To_Right": "L", "Right_To_Left": "R", "Arabic_Letter": "AL", "European_Terminator": "ET",
        "European_Number": "EN", "Boundary_Neutral": "BN",
    }  # fmt: skip
    return [long_names.get(name, name) for name in values(folder / "extracted/DerivedBidiClass.txt", "L")]


def brackets(folder: Path) -> np.ndarray:
    """Rows (bracket, its partner, 1 if it opens), uint32; canonical equivalents are brought to one form."""
    rows = re.findall(r"^([0-9A-F]+); ([0-9A-F]+); ([oc])", (folder / "BidiBrackets.txt").read_text("utf-8"), re.M)
    return np.array([(int(a, 16), int(b, 16), kind == "o") for a, b, kind in rows], dtype=np.uint32)


def main(folder: Path) -> None:
    version = re.search(r"LineBreak-([\d.]+)\.txt", (folder / "LineBreak.txt").read_text("utf-8"))
    assert version, "LineBreak.txt does not say its version"
    properties = {
        "line_break": line_break(folder),
        "grapheme": grapheme(folder),
        "bidi": short_bidi(folder),
        "script": values(folder / "Scripts.txt", "Unknown"),
    }
    together = list(zip(*properties.values(), strict=True))
    starts = [0] + [code for code in range(1, CODE_POINTS) if together[code] != together[code - 1]]
    arrays: dict[str, np.ndarray] = {"starts": np.array(starts, dtype=np.uint32), "brackets": brackets(folder)}
    for name, of_code in properties.items():
        names = sorted(set(of_code))
        number = {value: index for index, value in enumerate(names)}
        arrays[f"{name}_names"] = np.array(names)
        arrays[name] = np.array([number[of_code[code]] for code in starts], dtype=np.uint8)
    arrays["version"] = np.array(version[1])
    np.savez_compressed(Path(__file__).with_name("unicode.npz"), allow_pickle=False, **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
