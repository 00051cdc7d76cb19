"""Pages drawn: the runs of each line set side by side on white paper."""

import numpy as np
from numpy.typing import NDArray

from visiontune.data.pages.fonts import Fonts
from visiontune.data.pages.layout import MISSING_LIMIT, PageLayout, lay_out
from visiontune.data.pages.spec import PageSpec


def render(page: PageLayout) -> NDArray[np.uint8]:
    """Draw a page: (height, width) uint8, paper 255, ink 0, edges in between."""
    image = np.full((page.height, page.width), 255, dtype=np.uint8)
    for line in page.lines:
        x, baseline = line.x, line.y + line.ascent
        for run in line.runs:
            if run.cell is not None:
                image[baseline - run.ascent : baseline + run.descent, x : x + run.width] = run.cell
            x += run.width
    return image


def pages(text: str, spec: PageSpec, fonts: Fonts, *, missing_limit: float = MISSING_LIMIT) -> list[NDArray[np.uint8]]:
    """Lay out and draw a text: a list of (height, width) uint8 pages, the same bytes in every process.

    Raises DataError as `lay_out` does.
    """
    return [render(page) for page in lay_out(text, spec, fonts, missing_limit=missing_limit)]
