"""A document laid out and rendered as pages: the same text, spec and fonts give the same bytes everywhere."""

from visiontune.data.pages.fonts import DEFAULT_FONT, Font, FontRef, Fonts, load_fonts
from visiontune.data.pages.layout import Line, PageLayout, lay_out
from visiontune.data.pages.legibility import (
    LEGIBLE_X_HEIGHT,
    Legibility,
    Solution,
    legibility,
    remedy,
    resize_scale,
    solve,
    x_height,
    x_heights,
)
from visiontune.data.pages.raster import pages, render
from visiontune.data.pages.spec import PageSpec, engine

__all__ = [
    "DEFAULT_FONT",
    "LEGIBLE_X_HEIGHT",
    "Font",
    "FontRef",
    "Fonts",
    "Legibility",
    "Line",
    "PageLayout",
    "PageSpec",
    "Solution",
    "engine",
    "lay_out",
    "legibility",
    "load_fonts",
    "pages",
    "remedy",
    "render",
    "resize_scale",
    "solve",
    "x_height",
    "x_heights",
]
