"""Values with their intervals as inline SVG text, one a row on a common axis. Colours come from the page."""

from collections.abc import Sequence
from html import escape
from math import ceil, floor

WIDTH, LEFT, RIGHT = 440, 84, 24
TOP, ROW, AXIS = 8, 30, 22
STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)

Row = tuple[str, float, float, float]  # name, value, low end, high end


def around(rows: Sequence[Row], least: float, most: float) -> tuple[float, float]:
    """Round ends inside [least, most] between which all rows lie."""
    low, high = min(row[2] for row in rows), max(row[3] for row in rows)
    step = next((step for step in STEPS if high - low <= 2 * step), STEPS[-1])
    return max(least, floor(low / step + 1e-9) * step), min(most, ceil(high / step - 1e-9) * step)


def interval_chart(rows: Sequence[Row], ends: tuple[float, float], *, name: str, zero: bool = False) -> str:
    """A dot for each value, a bar for its interval, and an axis with its ends and its middle.

    `zero` marks zero by a line, for differences. `name` is read to those who cannot see the chart.
    """
    low, high = ends
    height = TOP + ROW * len(rows) + AXIS
    base = height - AXIS

    def across(x: float) -> float:
        return LEFT + (x - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(name)}">']
    for tick in (low, (low + high) / 2, high):
        x = f"{across(tick):.1f}"
        label = f"{tick:+.4g}" if zero and abs(tick) > 1e-12 else f"{tick:.4g}"
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{TOP}" y2="{base}"/>')
        parts.append(_text(float(x), base + 16, label.replace("-", "\u2212"), "middle"))
    if zero and low < 0 < high:
        parts.append(f'<line class="frame" x1="{across(0):.1f}" x2="{across(0):.1f}" y1="{TOP}" y2="{base}"/>')
    for i, (label, value, left, right) in enumerate(rows):
        y = TOP + ROW * (i + 0.5)
        parts.append(_text(LEFT - 12, y + 4, label, "end"))
        parts.append(
            f'<rect class="band" x="{across(left):.1f}" y="{y - 6:.1f}" height="12" '
            f'width="{max(1.0, across(right) - across(left)):.1f}"/>'
        )
        parts.append(f'<circle class="dot" cx="{across(value):.1f}" cy="{y:.1f}" r="4"/>')
    return "".join([*parts, "</svg>"])


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="label" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
