"""Unicode properties of code points as arrays, from the table that travels with the package."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TABLE = Path(__file__).with_name("unicode.npz")
CODE_POINTS = 0x110000


@dataclass(frozen=True)
class Property:
    """One property: `of[code point]` is a number, uint8, shape (0x110000,); `names[number]` is Unicode's name of it."""

    names: tuple[str, ...]
    of: NDArray[np.uint8]

    def number(self, name: str) -> int:
        """The number of a value."""
        return self.names.index(name)

    def chosen(self, *names: str) -> NDArray[np.bool_]:
        """Which numbers are among the names; bool, shape (values,). Use it as `chosen(...)[of[codes]]`."""
        return np.isin(np.array(self.names), names)


@cache
def properties() -> dict[str, Property]:
    """`line_break`, `grapheme`, `bidi` and `script`, each a Property."""
    with np.load(TABLE) as table:
        lengths = np.diff(table["starts"].astype(np.int64), append=CODE_POINTS)
        return {
            name: Property(tuple(map(str, table[f"{name}_names"])), np.repeat(table[name], lengths))
            for name in ("line_break", "grapheme", "bidi", "script")
        }


@cache
def brackets() -> dict[int, tuple[int, bool]]:
    """Each paired bracket's partner and whether it opens (UAX #9, BD14 and BD15)."""
    with np.load(TABLE) as table:
        return {int(code): (int(partner), bool(opens)) for code, partner, opens in table["brackets"]}


@cache
def unicode_version() -> str:
    """The version of Unicode that the table was made from."""
    with np.load(TABLE) as table:
        return str(table["version"])


def code_points(text: str) -> NDArray[np.uint32]:
    """The text's code points, uint32, shape (len(text),); lone surrogates stay as they are."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
