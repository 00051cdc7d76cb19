"""What the HTML pages share: how their templates are filled, and numbers and texts as a person reads them."""

from functools import cache
from math import isfinite
from typing import Any

import jinja2

from visiontune.metric_names import FIGURES, NAMES

CHARACTERS_SHOWN = 600
THIN_SPACE = "\u202f"  # narrow and not breaking


def within(name: str) -> str:
    """A name of a metric as it stands within a sentence: without the capital letter that starts a word."""
    return name[:1].lower() + name[1:] if name[1:2].islower() else name


def fill(template: str, facts: dict[str, Any], *, shown_pixels: int) -> str:
    """A page: the template with the facts in it. `shown_pixels` is the longest side of a picture on it."""
    return _environment().get_template(template).render({"shown_pixels": shown_pixels, **facts})


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("visiontune"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "fact": fact,
        "rate": rate,
        "interval": interval,
        "duration": duration,
        "memory": memory,
        "thousands": thousands,
        "short": short,
        "label": lambda name: (NAMES | FIGURES).get(name, name.replace("_", " ")),
    }
    return environment


def thousands(value: int) -> str:
    """1234567 as 1 234 567, with spaces that do not break."""
    return f"{value:,}".replace(",", THIN_SPACE)


def fact(value: Any, name: str = "") -> str:
    """Any plain value in short: numbers to four digits, bytes as memory, lists and mappings with commas."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float) and name.endswith("bytes"):
        return memory(value)
    if isinstance(value, int):
        return thousands(value)
    if isinstance(value, float):
        text = thousands(round(value)) if isfinite(value) and abs(value) >= 1e4 else f"{value:.4g}"
        return text.replace("-", "\u2212")
    if isinstance(value, dict):
        kind = name if name.endswith("bytes") else ""
        return ", ".join(f"{key}: {fact(inner, kind or key)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(fact(inner) for inner in value)
    return "–" if value is None else str(value)


def rate(metric: dict[str, Any]) -> str:
    """The value of a metric with three decimals, or a dash where nothing was counted."""
    return "–" if metric["value"] is None else _signed(metric["value"])


def interval(metric: dict[str, Any]) -> str:
    """The 95 % interval of a metric or a difference, or nothing."""
    if metric["low"] is None:
        return ""
    return f"{_signed(metric['low'])}{' to ' if metric['low'] < 0 else '–'}{_signed(metric['high'])}"


def _signed(value: float) -> str:
    return f"{value:.3f}".replace("-", "\u2212")


def duration(seconds: float) -> str:
    """Seconds as 12 s, 3 min 12 s or 5 h 04 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def memory(size: float) -> str:
    """Bytes as kB, MB or GB (powers of ten)."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size:g} bytes"


def short(text: str) -> str:
    """A text as it is, or its beginning."""
    return text if len(text) <= CHARACTERS_SHOWN else text[:CHARACTERS_SHOWN] + " …"
