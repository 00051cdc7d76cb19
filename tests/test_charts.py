import re
from math import isfinite
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visiontune.charts import (
    LONGEST_SERIES,
    Line,
    line_chart,
    precision_recall_chart,
    smoothed,
    stacked_bar,
    thinned,
    tick_label,
    ticks,
)

numbers = st.floats(-1e12, 1e12, allow_nan=False)


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def places(element: ElementTree.Element) -> list[tuple[float, float]]:
    return [tuple(map(float, place.split(","))) for place in element.attrib["points"].split()]  # pyright: ignore


@settings(max_examples=200, deadline=None)
@given(numbers, numbers)
def test_ticks_are_round_even_and_hold_the_range(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    found = ticks(low, high)
    assert 2 <= len(found) <= 13 and all(isfinite(tick) for tick in found)
    assert found == sorted(set(found))
    slack = 1e-6 * (found[-1] - found[0])
    assert found[0] <= low + slack and found[-1] >= high - slack
    step = found[1] - found[0]
    assert float(f"{step:.0e}".split("e")[0]) in (1, 2, 5)


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (600, "600"),
        (12000, "12k"),
        (3e-4, "3e-4"),
        (2.5e-5, "2.5e-5"),
        (-0.5, "-0.5"),
        (5e6, "5M"),
    ],
)
def test_tick_labels_are_short(value: float, label: str) -> None:
    assert tick_label(value) == label


def test_a_long_series_is_thinned_and_keeps_its_spikes_and_ends() -> None:
    y: list[float | None] = [1.0] * 100_000
    y[54_321], y[12_345], y[777] = 9.0, -9.0, None
    kept = thinned(y)
    assert len(kept) <= LONGEST_SERIES and kept == sorted(set(kept))
    assert {0, 12_345, 54_321, 99_999} <= set(kept) and 777 not in kept
    assert thinned([1.0, 2.0]) == [0, 1]


def test_the_smoothed_line_does_not_lag_behind_a_straight_one() -> None:
    line = [float(i) for i in range(100)]
    assert smoothed(line, 10)[10:-10] == pytest.approx(line[10:-10])
    assert smoothed([1.0, None, 3.0], 3) == [1.0, 2.0, 3.0]
    assert smoothed([None, None], 3) == [None, None]


def test_a_chart_puts_values_where_they_belong() -> None:
    svg = parsed(line_chart([Line([0, 50, 100], [0.0, 1.0, 0.5])], name="a & b", x_label="step"))
    (line,) = [e for e in svg.iter() if e.attrib.get("class") == "line-main"]
    (x0, y0), (x1, y1), (x2, y2) = places(line)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 > y2 > y1, "up is less"
    assert y2 - y1 == pytest.approx((y0 - y1) / 2, abs=0.2)
    assert svg.attrib["aria-label"] == "a & b" and svg.attrib["role"] == "img"


def test_a_missing_value_is_a_gap_and_a_lonely_one_a_dot() -> None:
    svg = parsed(line_chart([Line([1, 2, 3, 4, 5], [1.0, 2.0, None, 2.0, float("nan")])], name="loss", x_label="step"))
    assert [len(places(e)) for e in svg.iter() if e.tag == "polyline"] == [2, 1]
    assert len([e for e in svg.iter() if e.tag == "circle"]) == 1


def test_a_band_reaches_from_its_low_to_its_high_and_the_best_point_is_marked() -> None:
    line = Line([1, 2, 3], [0.5, 0.6, 0.7], low=[0.4, None, 0.6], high=[0.6, None, 0.8])
    svg = parsed(line_chart([line], name="accuracy", x_label="step", y_range=(0, 1), best=(3, 0.7)))
    (band,) = [e for e in svg.iter() if e.attrib.get("class") == "band"]
    (_, a), (_, b), (_, c), (_, d) = places(band)
    assert d - a == pytest.approx(c - b, abs=0.2)
    assert len([e for e in svg.iter() if e.attrib.get("class") == "best"]) == 2


@pytest.mark.parametrize("y", [[], [None, None]])
def test_nothing_to_draw_is_no_chart(y: list[float | None]) -> None:
    assert line_chart([Line(list(range(len(y))), y)], name="loss", x_label="step") == ""
    assert stacked_bar([("data", 0.0)], name="time") == ""


@settings(max_examples=50, deadline=None)
@given(st.lists(st.none() | numbers, min_size=1, max_size=700), st.booleans())
def test_any_series_gives_a_small_well_formed_picture(y: list[float | None], from_zero: bool) -> None:
    svg = line_chart([Line(list(range(len(y))), y)], name='<"loss">', x_label="<step>", from_zero=from_zero)
    assert "nan" not in svg and "inf" not in svg
    if svg:
        parsed(svg)
    assert len(svg) < 40_000


def test_the_parts_of_a_bar_fill_it_in_proportion() -> None:
    svg = parsed(stacked_bar([("data", 1.0), ("forward", 3.0)], name="time"))
    widths = [float(rect.attrib["width"]) for rect in svg]
    assert widths[1] == pytest.approx(3 * widths[0]) and sum(widths) == pytest.approx(440)
    assert [rect.attrib["class"] for rect in svg] == ["share-0", "share-1"]


def test_colours_are_left_to_the_page() -> None:
    svg = line_chart(
        [Line([1, 2], [1.0, 2.0], low=[0.0, 1.0], high=[2.0, 3.0])], name="x", x_label="step", best=(1, 1.0)
    )
    assert not re.search(r"#[0-9a-f]{3}|fill=|stroke=|style=", svg)


def test_a_precision_recall_chart_runs_from_recall_0_to_1_and_names_its_classes() -> None:
    svg = precision_recall_chart(
        [1.0, 0.5, 0.0], [("cat & dog", [0.5, 0.25, 0.0]), ("tram", [None, None, None])], name="Boxes at IoU 0.5"
    )
    chart = parsed(svg)
    assert chart.attrib["aria-label"] == "Boxes at IoU 0.5: mean of the classes; beside it cat & dog, tram"
    drawn = {e.attrib["class"]: places(e) for e in chart.iter() if e.tag == "polyline"}
    assert list(drawn) == ["line-beside-0", "line-main"], "the mean is drawn last, on top"
    frame = next(e for e in chart.iter() if e.attrib.get("class") == "frame")
    (x0, y0), (x1, y1), (x2, y2) = drawn["line-main"]
    assert (x0, x2, y2) == tuple(float(frame.attrib[end]) for end in ("x1", "x2", "y1"))
    assert (x1, y1) == (pytest.approx((x0 + x2) / 2), pytest.approx((y0 + y2) / 2))
    assert drawn["line-beside-0"][0] == (x0, pytest.approx(y1)), "precision 0.5"


def test_classes_that_were_never_seen_give_no_precision_recall_chart() -> None:
    assert precision_recall_chart([], [], name="Boxes") == ""
