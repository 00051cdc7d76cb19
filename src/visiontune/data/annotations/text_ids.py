"""Ids and references that are written as texts or as 3.0, and the whole numbers that they stand for.

"7" and 7.0 are 7. Any other text that is the id of an image or a class becomes a free number, and so do the references
to it: what belongs together stays together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visiontune.data.annotations.table import Odd, Table

_MOST_DIGITS = 18  # of a number that fits into 64 bits


@dataclass(frozen=True, eq=False)
class TextIds:
    """What the odd ids and references of a table stand for."""

    table: Table

    @cached_property
    def images(self) -> dict[int, int]:
        """row -> the number of an image whose id is none."""
        return _numbers(self.table.images.ids, self.table.images.odd)

    @cached_property
    def categories(self) -> dict[int, int]:
        """row -> the number of a class whose id is none."""
        return _numbers(self.table.categories.ids, self.table.categories.odd)

    @cached_property
    def image_references(self) -> dict[int, int]:
        """row -> the number of the image that an annotation's odd image_id means, where there is one."""
        images = self.table.images
        return _references(self.table.annotations.odd, "image_id", images.ids, images.odd, self.images)

    @cached_property
    def category_references(self) -> dict[int, int]:
        """row -> the number of the class that an annotation's odd category_id means, where there is one."""
        classes = self.table.categories
        return _references(self.table.annotations.odd, "category_id", classes.ids, classes.odd, self.categories)


def whole_number(value: Any) -> int | None:
    """The whole number from 0 that a text or a float says; None for anything else."""
    if isinstance(value, str):
        text = value.strip()
        return int(text) if text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS else None
    if isinstance(value, float) and value.is_integer() and 0 <= value < 10**_MOST_DIGITS:
        return int(value)
    return None


def _numbers(ids: NDArray[np.int64], odd: Odd) -> dict[int, int]:
    """row -> number. Two rows that are written alike get one number: which of them is meant is a fault of its own."""
    written = {row: value for (row, name), value in odd.items() if name == "id"}
    usable = {row: value for row, value in written.items() if whole_number(value) is not None or _says_something(value)}
    taken: dict[int, Any] = dict.fromkeys(ids[ids >= 0].tolist())
    given: dict[Any, int] = {}
    for value in usable.values():
        number = whole_number(value)
        if number is not None and number not in taken:
            taken[number] = given[value] = number
    free = max(taken, default=0) + 1
    for value in usable.values():
        if value not in given:
            given[value] = free
            free += 1
    return {row: given[value] for row, value in usable.items()}


def _references(
    odd: Odd, name: str, ids: NDArray[np.int64], odd_ids: Odd, numbers: Mapping[int, int]
) -> dict[int, int]:
    by_text = {odd_ids[row, "id"]: number for row, number in numbers.items()}
    known = {*ids.tolist(), *numbers.values()}
    found: dict[int, int] = {}
    for (row, field), value in odd.items():
        if field == name and isinstance(value, str | float):
            number = by_text.get(value, whole_number(value))
            if number is not None and number in known:
                found[row] = number
    return found


def _says_something(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
