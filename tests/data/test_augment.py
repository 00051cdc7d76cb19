"""Augmentation is a function of the image and a number, keeps the size and never mirrors."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from visiontune.data.augment import augmentation_key, augmented


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
