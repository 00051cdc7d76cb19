"""Lines, grapheme clusters and bidirectional text, held to Unicode's own conformance tests."""

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from visiontune.data.pages.bidi import base_level, bidi_classes, levels, visual_order
from visiontune.data.pages.breaking import SOFT_HYPHEN, cluster_starts, line_breaks
from visiontune.data.pages.properties import code_points, properties, unicode_version


@cache
def cases() -> dict[str, list[Any]]:
    packed = Path(__file__).with_name("unicode_cases.json.gz").read_bytes()
    return json.loads(gzip.decompress(packed))


def broken(text: str) -> list[str]:
    """The text cut where a line may end."""
    may, _ = line_breaks(code_points(text))
    starts = [0, *np.flatnonzero(may).tolist()]
    return [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]


def test_lines_end_where_unicode_says() -> None:
    by_dictionary = properties()["line_break"].number("SA")
    checked = 0
    for numbers, wanted in cases()["lines"]:
        codes = np.array(numbers, dtype=np.uint32)
        if SOFT_HYPHEN in numbers or (properties()["line_break"].of[codes] == by_dictionary).any():
            continue  # our two tailorings; see below
        checked += 1
        assert line_breaks(codes)[0][1:].tolist() == wanted, [hex(code) for code in numbers]
    assert checked > 7000


def test_grapheme_clusters_are_unicodes() -> None:
    for numbers, wanted in cases()["clusters"]:
        assert cluster_starts(np.array(numbers, dtype=np.uint32))[1:].tolist() == wanted, [
            hex(code) for code in numbers
        ]


def test_bidirectional_text_runs_as_unicode_says() -> None:
    for numbers, wanted_base, base, wanted, order in cases()["bidi"]:
        classes = bidi_classes(np.array(numbers, dtype=np.uint32))
        own = base_level(classes) if wanted_base == 2 else wanted_base
        assert own == base
        found = levels(numbers, classes, own)
        assert [a if b is not None else None for a, b in zip(found, wanted, strict=True)] == wanted, numbers
        assert [i for i in visual_order(found) if wanted[i] is not None] == order, numbers


def test_thai_may_break_between_clusters_and_only_there() -> None:
    assert broken("ที่นี่") == ["ที่", "นี่"]


def test_a_soft_hyphen_is_no_opportunity() -> None:
    assert broken("co\u00adoperate now") == ["co\u00adoperate ", "now"]


def test_a_conjunct_is_one_cluster() -> None:
    assert cluster_starts(code_points("क्षत्रिय")).sum() == 3


def test_the_table_says_its_version() -> None:
    assert unicode_version() == "15.0.0"
