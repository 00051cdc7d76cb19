"""Run lengths, polygons and their measures agree with pycocotools, and what anybody may write breaks nothing."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco_mask

from tests.planted_annotations import sound_annotations
from visiontune.data.annotations import coco
from visiontune.data.annotations.crossings import crossing
from visiontune.data.annotations.masks import (
    Rings,
    areas_and_boxes,
    from_pixels,
    runs_of_lists,
    runs_of_strings,
    to_pixels,
)
from visiontune.data.annotations.measures import Measures

PIXELS = arrays.arrays(np.bool_, st.tuples(st.integers(1, 40), st.integers(1, 40)))


@given(st.lists(PIXELS, min_size=1, max_size=6))
def test_decoded_strings_have_pycocotools_areas_and_fill_their_masks(masks):
    packed = [from_pixels(pixels) for pixels in masks]
    runs = runs_of_strings([mask.counts.decode() for mask in packed])
    assert runs.sound.all()
    assert runs.areas().tolist() == [int(pixels.sum()) for pixels in masks]
    assert runs.pixels().tolist() == [pixels.size for pixels in masks]


@given(st.lists(PIXELS, min_size=1, max_size=3))
def test_boxes_and_areas_are_those_of_pycocotools(masks):
    packed = [from_pixels(pixels) for pixels in masks]
    areas, boxes = areas_and_boxes(packed)
    for k, mask in enumerate(packed):
        one = {"size": [mask.height, mask.width], "counts": mask.counts}
        assert areas[k] == coco_mask.area(one)
        assert boxes[k].tolist() == coco_mask.toBbox(one).tolist()
        assert (to_pixels(mask) == masks[k]).all()


def test_areas_of_more_masks_than_one_call_of_pycocotools_takes():
    pixels = np.zeros((400, 400), bool)
    pixels[::2] = True
    areas, _ = areas_and_boxes([from_pixels(pixels)] * 5001)
    assert set(areas.tolist()) == {80_000.0}


@given(st.lists(st.text(max_size=12) | st.text(alphabet="0123456789abcXYZ`mno", max_size=60), max_size=6), PIXELS)
def test_any_text_is_decoded_or_told_and_harms_no_other(texts, pixels):
    good = from_pixels(pixels)
    runs = runs_of_strings([*texts, good.counts.decode()])
    assert runs.sound[-1] and runs.areas()[-1] == pixels.sum()
    assert len(runs.sound) == len(texts) + 1
    assert (runs.pixels()[runs.sound] >= 0).all()


@given(st.lists(st.lists(st.integers(-3, 9), max_size=6), max_size=5))
def test_plain_run_lengths_are_summed_as_they_stand(lists):
    runs = runs_of_lists(lists)
    assert runs.pixels().tolist() == [sum(counts) for counts in lists]
    assert runs.areas().tolist() == [sum(counts[1::2]) for counts in lists]
    assert runs.sound.tolist() == [min(counts, default=0) >= 0 for counts in lists]


def test_measures_of_whole_columns_are_those_of_the_single_masks():
    table = coco.to_table(sound_annotations(), "sound")
    measures = Measures(table)
    masked = np.flatnonzero(table.annotations.kinds != 0)
    assert measures.full[masked].all() and measures.full.sum() == len(masked)
    areas, boxes = measures.drawn(masked)
    assert np.abs(measures.areas[masked] - areas).max() < 0.05 * areas.max()
    assert np.abs(measures.boxes[masked] - boxes).max() <= 1.5
    rle = np.isin(masked, measures.rle_rows)
    assert (measures.areas[masked][rle] == areas[rle]).all()
    assert (measures.boxes[masked][rle] == boxes[rle]).all()


def _crosses(points):
    """Edge against edge, one pair at a time."""
    count = len(points)

    def side(a, b, c):
        return np.sign((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]))

    for i in range(count):
        for j in range(i + 1, count):
            a, b, c, d = points[i], points[(i + 1) % count], points[j], points[(j + 1) % count]
            if side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0:
                return True
    return False


POINTS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=3, max_size=8)


@given(st.lists(POINTS, min_size=1, max_size=5))
def test_polygons_cross_themselves_where_two_edges_cross(polygons):
    counts = [len(points) for points in polygons]
    starts = np.concatenate([[0], np.cumsum(counts)])
    flat = np.array([point for points in polygons for point in points], np.float64)
    rings = Rings(flat, starts, np.arange(len(counts)), np.zeros(len(counts), np.int64))
    assert crossing(rings).tolist() == [_crosses(points) for points in polygons]
