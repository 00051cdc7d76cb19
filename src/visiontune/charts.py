"""Small charts as inline SVG text: lines with bands, histograms, and one stacked bar. Pure functions; colours come from
the page.

The page styles the classes `grid`, `frame`, `label`, `line-NAME`, `band`, `best` and `share-0`, `share-1`, ...
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, isfinite, log10

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 440, 200
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 36
LONGEST_SERIES = 400

Values = Sequence[float | None]


@dataclass(frozen=True)
class Line:
    """One line of a chart; None in `y` leaves a gap. `style` names its CSS class, `low` and `high` bound its band."""

    x: Sequence[float]
    y: Values
    style: str = "main"
    low: Values | None = None
    high: Values | None = None
    points: bool = False


def tick_label(value: float) -> str:
    """A round number as short as it can be read: 0, 0.25, 300, 12k, 3e-5."""
    if value and not 1e-3 <= abs(value) < 1e4:
        for unit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if abs(value) >= unit:
                return f"{value / unit:g}{suffix}"
        digits, exponent = f"{value:.3g}".split("e") if "e" in f"{value:.3g}" else (f"{value * 1e4:.3g}", "-4")
        return f"{digits}e{int(exponent)}"
    return f"{value:.6g}"


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart), the outermost at or beyond low and high."""
    size = max(abs(low), abs(high))
    if size < 1e-300:
        low, high = 0.0, 1.0
    elif high - low <= 1e-12 * size:
        low, high = low - size / 2, high + size / 2
    rough = (high - low) / about
    power = 10.0 ** floor(log10(rough))
    step = next(times * power for times in (1, 2, 5, 10) if times * power >= rough * (1 - 1e-9))
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    return [float(f"{k * step:.12g}") for k in range(first, last + 1)]


def thinned(y: Values, limit: int = LONGEST_SERIES) -> list[int]:
    """At most `limit` places of a series, the first, the last and each bucket's smallest and largest among them."""
    if len(y) <= limit:
        return list(range(len(y)))
    values = _floats(y)
    kept = {0, len(y) - 1}
    for bucket in np.array_split(np.arange(len(y)), (limit - 2) // 2):
        known = bucket[np.isfinite(values[bucket])]
        if len(known):
            kept |= {int(known[values[known].argmin()]), int(known[values[known].argmax()])}
    return sorted(kept)


def smoothed(y: Values, span: int) -> list[float | None]:
    """The mean of about `span` values around each, fewer at the ends; values that are missing are left out."""
    values = _floats(y)
    known = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    places = np.arange(len(values))
    first, last = np.maximum(places - span // 2, 0), np.minimum(places + span // 2 + 1, len(values))
    means = (sums[last] - sums[first]) / np.maximum(counts[last] - counts[first], 1)
    return [float(mean) if some else None for mean, some in zip(means, counts[last] > counts[first], strict=True)]


def line_chart(
    lines: Sequence[Line],
    *,
    name: str,
    x_label: str,
    y_range: tuple[float, float] | None = None,
    from_zero: bool = False,
    best: tuple[float, float] | None = None,
) -> str:
    """Lines over a common x as SVG text; `name` is read to those who cannot see it. "" where there is nothing to draw.

    `y_range` fixes the range of y, else it is that of the values (and zero, with `from_zero`); `best` marks one point.
    """
    everything = np.concatenate([_floats(y) for line in lines for y in (line.y, line.low, line.high) if y is not None])
    everything = everything[np.isfinite(everything)]
    if not len(everything):
        return ""
    low, high = y_range or (min(0.0, everything.min()) if from_zero else everything.min(), everything.max())
    y_ticks = ticks(float(low), float(high))
    x_low = float(min(line.x[0] for line in lines if len(line.x)))
    x_high = float(max(line.x[-1] for line in lines if len(line.x)))
    if x_high == x_low:
        x_low, x_high = x_low - 1, x_high + 1

    parts, across, down = _axes((x_low, x_high), y_ticks, name=name, x_label=x_label)
    for line in lines:
        kept = thinned(line.y)
        if line.low is not None and line.high is not None:
            upper, lower = ([(across(line.x[i]), ends[i]) for i in kept] for ends in (line.high, line.low))
            edge = [(x, down(y)) for x, y in [*upper, *reversed(lower)] if y is not None]
            parts.append(f'<polygon class="band" points="{_points(edge)}"/>')
        for run in _without_gaps([(across(line.x[i]), line.y[i]) for i in kept]):
            placed = [(x, down(y)) for x, y in run]
            parts.append(f'<polyline class="line-{line.style}" points="{_points(placed)}"/>')
            if line.points or len(placed) == 1:
                parts += [
                    f'<circle class="line-{line.style} dot" cx="{x:.1f}" cy="{y:.1f}" r="2.4"/>' for x, y in placed
                ]
    if best is not None:
        x, y = across(best[0]), down(best[1])
        parts.append(f'<line class="best" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<circle class="best" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>')
    return "".join([*parts, "</svg>"])


def precision_recall_chart(mean: Values, classes: Sequence[tuple[str, Values]], *, name: str) -> str:
    """Precision by recall, values at evenly spaced recalls from 0 to 1, as SVG text; "" where there is none.

    `mean` is the main line; each class, by its name and its values, has the style `beside-0`, `beside-1`, ...
    """
    lines = [(mean, "main"), *((values, f"beside-{c}") for c, (_, values) in enumerate(classes))]
    beside = f"; beside it {', '.join(label for label, _ in classes)}" if classes else ""
    return line_chart(
        [Line(np.linspace(0, 1, len(values)).tolist(), values, style) for values, style in reversed(lines)],
        name=f"{name}: mean of the classes{beside}",
        x_label="recall",
        y_range=(0, 1),
    )


def histogram(values: Sequence[float], *, name: str, x_label: str, bars: int = 24) -> str:
    """How many values lie where, as SVG text: about `bars` bars of one round width, their counts at the left.

    A line marks zero where values lie on both sides of it. "" without values.
    """
    if not len(values):
        return ""
    edges = np.array(ticks(min(values), max(values), bars))
    counts = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]  # an edge may round to within its value
    y_ticks = [tick for tick in ticks(0.0, float(counts.max())) if tick == round(tick)]
    parts, across, down = _axes((float(edges[0]), float(edges[-1])), y_ticks, name=name, x_label=x_label)
    for left, right, count in zip(edges, edges[1:], counts.tolist(), strict=False):
        if count:
            size = f'width="{max(across(right) - across(left) - 1, 1):.1f}" height="{down(0) - down(count):.1f}"'
            parts.append(f'<rect class="share-1" x="{across(left):.1f}" y="{down(count):.1f}" {size}/>')
    if edges[0] < 0 < edges[-1]:
        zero, baseline = across(0), HEIGHT - BOTTOM
        parts.append(f'<line class="frame" x1="{zero:.1f}" x2="{zero:.1f}" y1="{TOP}" y2="{baseline}"/>')
    return "".join([*parts, "</svg>"])


def stacked_bar(parts: Sequence[tuple[str, float]], *, name: str) -> str:
    """Named amounts as one bar, SVG text; part i has the class `share-i`. "" where all are zero."""
    total = sum(amount for _, amount in parts)
    if total <= 0:
        return ""
    drawn = [
        f'<svg class="bar" viewBox="0 0 {WIDTH} 26" preserveAspectRatio="none" role="img" aria-label="{escape(name)}">'
    ]
    done = 0.0
    for i, (_, amount) in enumerate(parts):
        x, width = done / total * WIDTH, amount / total * WIDTH
        drawn.append(f'<rect class="share-{i}" x="{x:.2f}" y="0" width="{width:.2f}" height="26"/>')
        done += amount
    return "".join([*drawn, "</svg>"])


def _axes(
    x_range: tuple[float, float], y_ticks: Sequence[float], *, name: str, x_label: str
) -> tuple[list[str], Callable[[float], float], Callable[[float], float]]:
    """The opening of a chart with its grid and labels, and where an x and a y stand in it."""
    (x_low, x_high), baseline = x_range, HEIGHT - BOTTOM

    def across(x: float) -> float:
        return LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def down(y: float) -> float:
        inside = min(max(y, y_ticks[0]), y_ticks[-1])
        return baseline - (inside - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)}">']
    for tick in y_ticks:
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down(tick):.1f}" y2="{down(tick):.1f}"/>'
        )
        parts.append(_text(LEFT - 7, down(tick) + 4, tick_label(tick), "end"))
    for tick in ticks(x_low, x_high):
        if x_low <= tick <= x_high:
            parts.append(_text(across(tick), baseline + 16, tick_label(tick), "middle"))
    parts.append(_text(WIDTH - RIGHT, HEIGHT - 4, x_label, "end"))
    parts.append(f'<line class="frame" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{baseline}" y2="{baseline}"/>')
    return parts, across, down


def _floats(values: Values) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="label" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _without_gaps(points: Sequence[tuple[float, float | None]]) -> list[list[tuple[float, float]]]:
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if y is not None and isfinite(y):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]
