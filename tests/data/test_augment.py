"""Augmentation is a function of image or page and a number, keeps the size and never mirrors; no letter is lost."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from visiontune.data.augment import augmentation_key, augmented, augmented_page, page_map


def picture(width=40, height=30):
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def test_the_same_number_gives_the_same_picture_and_another_another():
    one, again, other = (np.asarray(augmented(picture(), 0.5, number)) for number in (1, 1, 2))
    assert np.array_equal(one, again) and not np.array_equal(one, other)


def test_strength_zero_changes_nothing():
    assert np.array_equal(np.asarray(augmented(picture(), 0.0, 3)), np.asarray(picture()))


@settings(max_examples=50, deadline=None)
@given(number=st.integers(0, 2**64 - 1), width=st.integers(1, 80), height=st.integers(1, 80))
def test_the_size_stays(number, width, height):
    assert augmented(picture(width, height), 1.0, number).size == (width, height)


@settings(max_examples=50, deadline=None)
@given(number=st.integers(0, 2**64 - 1))
def test_a_mark_moves_a_little_and_stays_on_its_side(number):
    pixels = np.zeros((101, 101, 3), dtype=np.uint8)
    pixels[46:55, 71:80] = 255  # a square right of the centre
    moved = np.asarray(augmented(Image.fromarray(pixels), 1.0, number))[..., 0].astype(float)
    rows, columns = np.indices(moved.shape)
    x, y = (columns * moved).sum() / moved.sum(), (rows * moved).sum() / moved.sum()
    assert np.hypot(x - 75, y - 50) < 101 * 0.15 * np.sqrt(2) + 14
    assert x > 50 or abs(x - 50) < 101 * 0.15


def test_each_sample_has_its_own_number_in_each_epoch_of_each_run():
    numbers = {augmentation_key(seed, name, epoch) for seed in (0, 1) for name in ("a", "b") for epoch in (0, 1)}
    assert len(numbers) == 8


def test_what_comes_in_from_outside_has_the_colour_of_the_border():
    pixels = np.full((20, 20, 3), 200, dtype=np.uint8)
    assert np.asarray(augmented(Image.fromarray(pixels), 1.0, 5)).min() >= 199


def print_at(places, shape=(120, 90)):
    """A white page with a black square of 7 x 7 pixels about each place (x, y)."""
    page = np.full(shape, 255, dtype=np.uint8)
    for x, y in places:
        page[y - 3 : y + 4, x - 3 : x + 4] = 0
    return page


MARGINS = (8, 10, 12, 14)


def test_the_same_number_gives_the_same_page_and_another_another():
    page = print_at([(30, 40)])
    one, again, other = (augmented_page(page, MARGINS, 0.5, number) for number in (1, 1, 2))
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    assert one.dtype == np.uint8 and one.shape == page.shape


def test_a_page_at_strength_zero_is_the_page_itself():
    page = print_at([(30, 40)])
    assert augmented_page(page, MARGINS, 0.0, 3) is page


sides = st.integers(32, 300)
shares = st.floats(0, 0.45)


@settings(max_examples=300, deadline=None)
@given(
    number=st.integers(0, 2**64 - 1),
    strength=st.floats(0, 1),
    height=sides,
    width=sides,
    margins=st.tuples(shares, shares, shares, shares),
)
def test_no_corner_inside_the_margins_leaves_the_page(number, strength, height, width, margins):
    top, right, bottom, left = (int(m * side) for m, side in zip(margins, (height, width) * 2, strict=True))
    there = page_map((height, width), (top, right, bottom, left), strength, np.random.default_rng(number))
    for x, y in [(left, top), (width - right, top), (width - right, height - bottom), (left, height - bottom)]:
        u, v, w = there @ (x, y, 1)
        assert w > 0 and -1e-6 <= u / w <= width + 1e-6 and -1e-6 <= v / w <= height + 1e-6


@settings(max_examples=50, deadline=None)
@given(number=st.integers(0, 2**64 - 1))
def test_print_in_the_corners_is_where_the_map_says_and_on_its_side(number):
    height, width = 120, 90
    for x, y in [(17, 11), (76, 11), (76, 104), (17, 104)]:
        there = page_map((height, width), MARGINS, 1.0, np.random.default_rng(number))
        ink = 255.0 - augmented_page(print_at([(x, y)]), MARGINS, 1.0, number)
        ink[ink < ink.max() / 2] = 0
        rows, columns = np.indices(ink.shape)
        found = np.array([(columns * ink).sum(), (rows * ink).sum()]) / ink.sum()
        u, v, w = there @ (x + 0.5, y + 0.5, 1)  # the centre of the square; a pixel's own centre is half a pixel in
        assert np.abs(found - (u / w - 0.5, v / w - 0.5)).max() < 0.7
        assert (found[0] > 45) == (x > 45) and (found[1] > 60) == (y > 60)
        assert (ink > 0).sum() > 20  # nothing of it was cut off


def test_what_moves_in_is_paper_and_print_stays_darker():
    page = print_at([(45, 60)])
    for number in range(40):
        seen = augmented_page(page, (0, 0, 0, 0), 1.0, number)
        assert min(seen[:3].min(), seen[-3:].min(), seen[:, :3].min(), seen[:, -3:].min()) > 150
        assert seen.min() < 90


def test_a_stronger_change_moves_farther_the_same_way():
    place = np.array([20.0, 30.0, 1.0])

    def move(strength):
        u, v, w = page_map((120, 90), (40, 30, 40, 30), strength, np.random.default_rng(4)) @ place
        return np.array([u / w, v / w]) - place[:2]

    weak, strong = move(0.2), move(0.8)
    assert np.linalg.norm(strong) > 2 * np.linalg.norm(weak) and weak @ strong > 0
