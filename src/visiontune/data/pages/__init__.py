"""A document laid out and rendered as pages: the same text, spec and fonts give the same bytes everywhere."""

from visiontune.data.pages.fonts import DEFAULT_FONT, Font, FontRef, Fonts, load_fonts
from visiontune.data.pages.layout import Line, PageLayout, lay_out
from visiontune.data.pages.legibility import Legibility, Solution, legibility, solve
from visiontune.data.pages.raster import pages, render
from visiontune.data.pages.spec import PageSpec, engine

__all__ = [
    "DEFAULT_FONT",
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
    "render",
    "solve",
]
