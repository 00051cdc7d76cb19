"""Masks as one polygon: filled, it is the mask, whatever its pieces and holes, and it does not cross itself."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from visiontune.data.annotations.crossings import crossing
from visiontune.data.annotations.masks import Rings, from_pixels, packed, to_pixels
from visiontune.data.annotations.outlines import outline
from visiontune.data.annotations.table import Kind


def filled(polygon: list[float], pixels: np.ndarray) -> np.ndarray:
    return to_pixels(packed(Kind.POLYGONS, [polygon], *pixels.shape))


@given(st.integers(0, 10_000), st.floats(0, 3), st.floats(0.1, 0.95))
@settings(max_examples=60, deadline=None)
def test_filled_the_outline_is_the_mask(seed: int, smooth: float, share: float) -> None:
    random = np.random.default_rng(seed)
    values = gaussian_filter(random.random(tuple(random.integers(1, 40, 2))), smooth)
    pixels = values >= np.quantile(values, share)
    polygon = outline(from_pixels(pixels))
    assert polygon is not None and (filled(polygon, pixels) == pixels).all()
    points = np.array(polygon).reshape(-1, 2)
    ring = Rings(points, np.array([0, len(points)]), np.array([0]), np.array([0]))
    assert not crossing(ring)[0] and abs(ring.areas()[0]) == pixels.sum()


def test_straight_lines_have_no_points_between_their_ends() -> None:
    pixels = np.zeros((9, 12), bool)
    pixels[2:5, 3:10] = True
    assert outline(from_pixels(pixels)) == [3, 2, 10, 2, 10, 5, 3, 5]


@pytest.mark.parametrize(
    "rows",
    [["#.#", "...", "#.#"], ["###", "#.#", "###"], ["#.", ".#"], [".#", "#."], ["#####", "#.#.#", "#####"]],
    ids=["pieces", "a hole", "a corner", "the other corner", "two holes"],
)
def test_pieces_holes_and_corners_are_one_polygon(rows: list[str]) -> None:
    pixels = np.array([[sign == "#" for sign in row] for row in rows])
    polygon = outline(from_pixels(pixels))
    assert polygon is not None and (filled(polygon, pixels) == pixels).all()


def test_an_empty_mask_has_none() -> None:
    assert outline(from_pixels(np.zeros((4, 5), bool))) is None
