"""Makes `unicode_cases.json.gz`, for test_pages_unicode.py, from Unicode's own conformance tests.

    apt install unicode-data && python tests/data/make_unicode_cases.py

All tests of lines and grapheme clusters, and every fifteenth of the 91,707 of bidirectional text (all with `--all`).
"""

import gzip
import json
import sys
from pathlib import Path

UNICODE = Path("/usr/share/unicode")
EVERY = 15


def breaks(path: Path) -> list[tuple[list[int], list[bool]]]:
    """(code points, whether a break may stand before each but the first) of each test."""
    found = []
    for line in path.read_text("utf-8").splitlines():
        parts = line.split("#")[0].split()
        if parts:
            found.append(([int(code, 16) for code in parts[1::2]], [mark == "÷" for mark in parts[2:-1:2]]))
    return found


def bidi(path: Path, every: int) -> list[tuple[list[int], int, int, list[int | None], list[int]]]:
    """(code points, wanted base or 2 for automatic, base, level of each or None where removed, visual order)."""
    lines = [line for line in path.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    found = []
    for line in lines[::every]:
        codes, wanted, base, levels, order = line.split(";")
        level = [None if one == "x" else int(one) for one in levels.split()]
        visual = [int(one) for one in order.split()]
        found.append(([int(code, 16) for code in codes.split()], int(wanted), int(base), level, visual))
    return found


def main() -> None:
    cases = {
        "lines": breaks(UNICODE / "auxiliary/LineBreakTest.txt"),
        "clusters": breaks(UNICODE / "auxiliary/GraphemeBreakTest.txt"),
        "bidi": bidi(UNICODE / "BidiCharacterTest.txt", 1 if "--all" in sys.argv else EVERY),
    }
    packed = gzip.compress(json.dumps(cases, separators=(",", ":")).encode(), mtime=0)
    Path(__file__).with_name("unicode_cases.json.gz").write_bytes(packed)
    print({name: len(found) for name, found in cases.items()}, f"{len(packed):,} bytes")


if __name__ == "__main__":
    main()
