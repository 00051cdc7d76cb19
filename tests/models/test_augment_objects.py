"""Augmented objects: where they are in the new image, which are left, and that nothing but the arguments decides."""

import random
import statistics
import time

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from visiontune.data.annotations.masks import areas_and_boxes, from_pixels, to_pixels
from visiontune.data.objects import Objects
from visiontune.models.augment_objects import LEAST_SEEN, augmented_objects

MIRRORS = ("none", "horizontal", "all")
numbers = st.integers(0, 2**64 - 1)
strengths = st.sampled_from((0.0, 0.3, 1.0))
mirrors = st.sampled_from(MIRRORS)


def drawn(boxes, size=(50, 40), *, masks=True, crowd=(), seed=0):
    """An image of grey noise with a rectangle of its own colour for each box, and the objects; size is (width, height).

    Class, id, score and soft class all tell which box an object was.
    """
    width, height = size
    rng = np.random.default_rng(seed)
    pixels = rng.integers(100, 110, (height, width, 1)).repeat(3, axis=2).astype(np.uint8)
    covers = []
    n = len(boxes)
    for place, (left, top, wide, high) in enumerate(boxes):
        cover = np.zeros((height, width), bool)
        cover[top : top + high, left : left + wide] = True
        pixels[cover] = (200, 20 + place % 9, 10)
        covers.append(from_pixels(cover) if masks else None)
    objects = Objects(
        boxes=np.array(boxes, np.float64).reshape(-1, 4),
        classes=np.arange(n, dtype=np.int64),
        masks=tuple(covers),
        crowd=np.isin(np.arange(n), list(crowd)),
        ids=tuple(100 + place for place in range(n)),
        scores=np.arange(n) / 10,
        soft=np.eye(n),
        looked_for=np.arange(n) != 1,
    )
    return Image.fromarray(pixels), objects


@st.composite
def scenes(draw):
    """Up to five rectangles in an image of any shape, with masks or without."""
    width, height = draw(st.integers(6, 60)), draw(st.integers(6, 60))
    boxes = []
    for _ in range(draw(st.integers(0, 5))):
        left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        boxes.append((left, top, draw(st.integers(1, width - left)), draw(st.integers(1, height - top))))
    return drawn(boxes, (width, height), masks=draw(st.booleans()))


def same(one: Objects, other: Objects) -> bool:
    columns = ("boxes", "classes", "crowd", "scores", "soft")
    return (one.masks, one.ids) == (other.masks, other.ids) and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in columns
    )


@settings(max_examples=150)
@given(scene=scenes(), strength=strengths, mirror=mirrors, number=numbers)
def test_boxes_stay_inside_fit_their_masks_and_no_object_is_new(scene, strength, mirror, number):
    image, objects = scene
    seen, found = augmented_objects(image, objects, strength, mirror, number)
    assert len(found) <= len(objects) and set(found.ids) <= set(objects.ids)
    assert np.array_equal(found.looked_for, objects.looked_for)
    low, high = found.boxes[:, :2], found.boxes[:, :2] + found.boxes[:, 2:]
    assert (low >= 0).all() and (high <= seen.size).all() and (found.boxes[:, 2:] >= 1).all()
    masks = [mask for mask in found.masks if mask is not None]
    assert all((mask.width, mask.height) == seen.size for mask in masks)
    if masks:
        assert np.array_equal(found.boxes, areas_and_boxes(masks)[1])


@settings(max_examples=100)
@given(scene=scenes(), strength=strengths, mirror=mirrors, number=numbers)
def test_class_score_and_crowd_go_with_their_object(scene, strength, mirror, number):
    image, objects = scene
    _, found = augmented_objects(image, objects, strength, mirror, number)
    places = np.array([number - 100 for number in found.ids], int)
    assert np.array_equal(found.classes, places) and np.array_equal(found.scores, places / 10)
    assert np.array_equal(found.soft, np.eye(len(objects))[places])
    assert len(found.crowd) == len(found.masks) == len(places)


def seen_columns_and_rows(size, strength, mirror, number):
    """Which columns and rows of the image are still seen: crowds are kept while a pixel of them is."""
    width, height = size
    columns = [(x, 0, 1, height) for x in range(width)]
    rows = [(0, y, width, 1) for y in range(height)]
    image, probes = drawn([*columns, *rows], size, masks=False, crowd=range(width + height))
    _, found = augmented_objects(image, probes, strength, mirror, number)
    kept = np.isin(100 + np.arange(width + height), found.ids)
    return kept[:width], kept[width:]


@settings(max_examples=150)
@given(scene=scenes(), strength=st.sampled_from((0.5, 1.0)), mirror=mirrors, number=numbers)
def test_an_object_is_dropped_where_less_than_a_quarter_of_it_is_seen_and_only_there(scene, strength, mirror, number):
    image, objects = scene
    columns, rows = seen_columns_and_rows(image.size, strength, mirror, number)
    _, found = augmented_objects(image, objects, strength, mirror, number)
    wanted = []
    for name, (left, top, width, height) in zip(objects.ids, objects.boxes.astype(int), strict=True):
        pixels = columns[left : left + width].sum() * rows[top : top + height].sum()
        if pixels >= max(1, LEAST_SEEN * width * height):
            wanted.append(name)
    assert list(found.ids) == wanted


@settings(max_examples=100)
@given(strength=strengths, mirror=mirrors, number=numbers, masks=st.booleans())
def test_the_box_and_the_mask_are_where_the_object_is_seen(strength, mirror, number, masks):
    image, objects = drawn([(12, 9, 17, 11)], masks=masks)
    seen, found = augmented_objects(image, objects, strength, mirror, number)
    pixels = np.asarray(seen).astype(int)
    red = pixels[..., 0] - pixels[..., 2] > 50
    if len(found):
        left, top, width, height = found.boxes[0].astype(int)
        inside = np.zeros_like(red)
        inside[top : top + height, left : left + width] = True
        assert np.array_equal(red, inside)
        assert found.masks[0] is None or np.array_equal(to_pixels(found.masks[0]), inside)
    else:
        assert red.sum() < LEAST_SEEN * 17 * 11


def test_a_crowd_is_kept_while_a_pixel_of_it_is_seen():
    image, objects = drawn([(2, 3, 10, 8), (2, 3, 10, 8)], masks=False, crowd=[1])
    alone = 0
    for number in range(100):
        columns, rows = seen_columns_and_rows(image.size, 1.0, "none", number)
        _, found = augmented_objects(image, objects, 1.0, "none", number)
        assert (101 in found.ids) == bool(columns[2:12].any() and rows[3:11].any())
        assert found.crowd.tolist() == [name == 101 for name in found.ids]
        alone += found.ids == (101,)
    assert alone > 0


def test_what_is_left_of_a_cut_mask_has_its_tight_box():
    image, _ = drawn([])
    below = np.tril(np.ones((40, 50), bool))  # cut at the left, a triangle loses height too
    objects = Objects(np.array([[0.0, 0, 40, 40]]), np.zeros(1, int), (from_pixels(below),), np.zeros(1, bool), (1,))
    smaller = 0
    for number in range(60):
        seen, found = augmented_objects(image, objects, 1.0, "none", number)
        if len(found):
            assert np.array_equal(found.boxes, areas_and_boxes(found.masks)[1])
            smaller += found.boxes[0, 1] > 0 and seen.height <= 40
    assert smaller > 0


def test_a_box_drawn_wider_than_its_mask_stays_so_until_it_is_cut():
    image, objects = drawn([(20, 15, 8, 8)])
    wider = np.array([[18.5, 14.0, 11.0, 10.5]])
    objects = Objects(wider, objects.classes, objects.masks, objects.crowd, objects.ids)
    for number in range(8):
        _, found = augmented_objects(image, objects, 0.0, "horizontal", number)
        assert found.boxes.tolist() in ([[18.5, 14.0, 11.0, 10.5]], [[20.5, 14.0, 11.0, 10.5]])


def test_strength_zero_without_mirror_is_the_image_and_its_objects():
    image, objects = drawn([(3, 4, 10, 12), (0, 0, 50, 40)])
    seen, found = augmented_objects(image, objects, 0.0, "none", 7)
    assert np.array_equal(np.asarray(seen), np.asarray(image)) and same(found, objects)


def test_mirrors_are_drawn_evenly_and_move_every_pixel_to_its_place():
    wide, objects = drawn([(3, 4, 10, 12)], seed=1)
    square = wide.crop((0, 0, 40, 40))
    pixels, turned = np.asarray(square), np.asarray(square).swapaxes(0, 1)
    ways = [(square, name, [pixels, pixels[:, ::-1]][:count]) for name, count in (("none", 1), ("horizontal", 2))]
    ways += [(square, "all", [a[::y, ::x] for a in (pixels, turned) for y in (1, -1) for x in (1, -1)])]
    # A wide image stays wide: as a high one, squeezed into a square, it would have shapes that none has.
    ways += [(wide, "all", [np.asarray(wide)[::y, ::x] for y in (1, -1) for x in (1, -1)])]
    for image, mirror, wanted in ways:
        counts = [0] * len(wanted)
        for number in range(400):
            seen = np.asarray(augmented_objects(image, objects, 0.0, mirror, number)[0])
            (place,) = [k for k, one in enumerate(wanted) if np.array_equal(one, seen)]
            counts[place] += 1
        expected = 400 / len(wanted)
        assert max(abs(count - expected) for count in counts) < 4 * expected**0.5, (mirror, counts)


def test_the_same_number_gives_the_same_and_another_another_whatever_was_drawn_before():
    image, objects = drawn([(3, 4, 10, 12), (20, 20, 9, 9)])
    # States that no other code would leave behind.
    torch.manual_seed(77), random.seed(78), np.random.seed(79)
    before = [torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()]
    first, kept = augmented_objects(image, objects, 0.7, "all", 2**64 - 1)
    after = [torch.get_rng_state(), random.getstate(), np.random.get_state()[1]]
    assert torch.equal(before[0], after[0]) and before[1] == after[1] and np.array_equal(before[2], after[2])
    torch.rand(3), np.random.rand(3)
    again, kept_again = augmented_objects(image, objects, 0.7, "all", 2**64 - 1)
    assert np.array_equal(np.asarray(first), np.asarray(again)) and same(kept, kept_again)
    other, _ = augmented_objects(image, objects, 0.7, "all", 5)
    assert not np.array_equal(np.asarray(first), np.asarray(other))


def test_what_is_given_is_not_changed():
    image, objects = drawn([(3, 4, 10, 12), (20, 20, 9, 9)])
    pixels, boxes = np.asarray(image).copy(), objects.boxes.copy()
    for number in range(20):
        augmented_objects(image, objects, 1.0, "all", number)
    assert np.array_equal(np.asarray(image), pixels) and np.array_equal(objects.boxes, boxes)


def test_what_comes_in_from_outside_has_the_colour_of_the_border():
    image = Image.new("RGB", (50, 40), (90, 120, 150))
    image.paste((255, 0, 0), (15, 15, 25, 25))
    _, objects = drawn([])
    wider = 0
    for number in range(30):
        pixels = np.asarray(augmented_objects(image, objects, 1.0, "none", number)[0]).reshape(-1, 3)
        wider += len(pixels) > 50 * 40
        assert len(np.unique(pixels, axis=0)) <= 2  # the border's colour and the square, both recoloured
    assert wider > 5


def test_a_stronger_change_is_larger_in_size_and_colour():
    image, objects = drawn([(3, 4, 10, 12)])
    weak, strong = [
        [augmented_objects(image, objects, strength, "none", number)[0] for number in range(60)]
        for strength in (0.2, 1.0)
    ]
    sizes = [np.std([np.log(one.width) for one in images]) for images in (weak, strong)]
    light = [np.std([np.asarray(one).mean() for one in images]) for images in (weak, strong)]
    assert sizes[1] > 3 * sizes[0] and light[1] > 2 * light[0]


def test_an_image_of_480_lines_with_20_boxes_takes_less_than_10_ms():
    rng = np.random.default_rng(0)
    boxes = np.c_[rng.integers(0, 540, 20), rng.integers(0, 380, 20), rng.integers(5, 100, (20, 2))]
    image, objects = drawn(boxes.tolist(), (640, 480), masks=False)
    seconds = []
    for number in range(40):
        start = time.thread_time()
        augmented_objects(image, objects, 1.0, "all", number)
        seconds.append(time.thread_time() - start)
    assert statistics.median(seconds) < 0.01
