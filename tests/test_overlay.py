from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageColor

from tests.coco_scenes import mask_of, objects
from visiontune.data.objects import Objects
from visiontune.errors import DataError
from visiontune.overlay import BLACK, PALETTE, WHITE, beside, colour, draw, shown_name

CLASSES = ("cat", "a dog", "猫")
WIDTH, HEIGHT = 240, 160


def plain(shade: str = "grey", size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    return Image.new("RGB", size, ImageColor.getrgb(shade))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def places(image: Image.Image, shade: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the pixels of exactly this colour."""
    rows, columns = np.nonzero((pixels(image) == np.array(shade)).all(axis=2))
    return rows, columns


def changed(image: Image.Image, before: Image.Image) -> np.ndarray:
    return (pixels(image) != pixels(before)).any(axis=2)


def circle(radius: int = 30) -> Objects:
    rows, columns = np.indices((HEIGHT, WIDTH))
    inside = (rows - 80) ** 2 + (columns - 120) ** 2 <= radius**2
    return objects(
        [[120 - radius, 80 - radius, 2 * radius + 1, 2 * radius + 1]], [1], masks=[mask_of(inside.astype(np.uint8))]
    )


def holds_label(drawn: Image.Image, number: int, names: Sequence[str], scores: Sequence[float] | None = None) -> bool:
    """Whether the label of a class stands somewhere on an image, every pixel of it; held to one above a box alone."""
    alone = draw(plain(), objects([[60, 60, 100, 80]], [number], scores=scores), names).crop((0, 0, WIDTH, 58))
    rows, columns = places(alone, colour(number))
    label = pixels(alone)[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert label.shape[0] > 10 and label.shape[1] > 20
    windows = np.lib.stride_tricks.sliding_window_view(pixels(drawn).astype(np.uint8), label.shape)
    return bool((windows == label).all(axis=(3, 4, 5)).any())


def contrast(one: Sequence[int], other: Sequence[int]) -> float:
    """The contrast of two colours, by the definition of WCAG 2."""

    def luminance(shade: Sequence[int]) -> float:
        linear = [v / 12.92 if (v := c / 255) <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for c in shade]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_a_box_is_drawn_where_it_stands() -> None:
    drawn = draw(plain(), objects([[60, 40, 100, 80]], [0]), CLASSES)
    rows, columns = places(drawn, colour(0))
    assert rows[rows > 40].max() == 120 and (columns.min(), columns.max()) == (60, 160)
    assert drawn.getpixel((110, 80)) == plain().getpixel((0, 0)), "the inside of a box without a mask stays as it is"
    assert changed(drawn, plain())[60:110, 70:150].sum() == 0


@pytest.mark.parametrize("side", [120, 480])
def test_boxes_and_masks_grow_with_the_image(side: int) -> None:
    scale = side / WIDTH
    drawn = draw(plain(), circle(), CLASSES, side=side)
    assert drawn.size == (side, round(HEIGHT * scale))
    rows, columns = np.nonzero(changed(drawn, plain(size=drawn.size))[drawn.height // 2 :])
    rows += drawn.height // 2
    assert columns.max() == pytest.approx(151 * scale, abs=3) and rows.max() == pytest.approx(111 * scale, abs=3)
    assert drawn.getpixel((round(120 * scale), round(80 * scale))) != plain().getpixel((0, 0))


def test_lines_and_letters_grow_with_the_image() -> None:
    def ink(side: int) -> tuple[int, int]:
        drawn = draw(plain(), objects([[60, 60, 100, 80]], [0]), CLASSES, side=side)
        middle = round(100 * side / WIDTH)  # a row in which there are the left and the right side only
        line = changed(drawn, plain(size=drawn.size))[middle]
        label = changed(drawn, plain(size=drawn.size))[: round(55 * side / WIDTH)]
        return int(line.sum()), int(label.any(axis=1).sum())

    (thin, low), (thick, high) = ink(480), ink(1920)
    assert thick >= 3 * thin and high >= 3 * low


def test_a_class_has_the_same_colour_in_every_image_and_neighbours_have_others() -> None:
    for number in range(len(PALETTE)):
        drawn = draw(plain(), objects([[20, 60, 50, 40]], [number]), [f"c{i}" for i in range(20)])
        for other in range(len(PALETTE)):
            assert (len(places(drawn, colour(other))[0]) > 100) == (other == number)
    assert len(set(PALETTE)) == len(PALETTE) and colour(len(PALETTE)) == colour(0)


@pytest.mark.parametrize("shade", ["black", "white", *(f"rgb{one}" for one in PALETTE)])
def test_boxes_masks_and_labels_are_seen_on_any_background(shade: str) -> None:
    background = ImageColor.getrgb(shade)
    for number in range(len(PALETTE)):
        ink = WHITE if contrast(colour(number), WHITE) > contrast(colour(number), BLACK) else BLACK
        assert contrast(colour(number), ink) >= 4.5, "letters on their label, and the line beside its edge"
        assert max(contrast(colour(number), background), contrast(ink, background)) >= 2.1, "both cannot vanish"
        names = [f"c{i}" for i in range(len(PALETTE))]
        drawn = draw(plain(shade), objects([[60, 40, 100, 80]], [number]), names)
        assert len(places(drawn, ink)[0]) > 100 and len(places(drawn, colour(number))[0]) > 100
        drawn = draw(plain(shade), replace(circle(), classes=np.array([number])), names)
        assert len(places(drawn, ink)[0]) > 100


@pytest.mark.parametrize(
    "box",
    [
        [0, 0, 240, 160], [-50, -20, 120, 60], [200, 140, 100, 100], [236, 0, 4, 4], [0, 156, 3, 4], [110, 70, 0, 0],
        [239.6, 159.7, 5, 5], [-500, -500, 2000, 2000], [20, 20, -5, -5],
    ],
)  # fmt: skip
@pytest.mark.parametrize("score", [None, 0.873])
def test_a_label_stays_whole_inside_the_image_wherever_its_box_is(box: list[float], score: float | None) -> None:
    scores = None if score is None else [score]
    drawn = draw(plain(), objects([box], [1], scores=scores), CLASSES)
    assert holds_label(drawn, 1, CLASSES, scores)


def test_a_box_outside_the_image_is_not_drawn() -> None:
    for box in ([-50, 10, 20, 20], [300, 10, 20, 20], [10, -40, 20, 20], [10, 200, 20, 20]):
        assert draw(plain(), objects([box], [0]), CLASSES).tobytes() == plain().tobytes()


def test_what_scores_less_than_asked_for_is_left_out_and_true_objects_stay() -> None:
    boxes = [[10, 40, 50, 50], [90, 40, 50, 50], [170, 40, 50, 50]]
    drawn = draw(plain(), objects(boxes, [0, 1, 2], scores=[0.9, 0.5, 0.49]), CLASSES, least_score=0.5)
    assert [len(places(drawn, colour(c))[0]) > 0 for c in range(3)] == [True, True, False]
    drawn = draw(plain(), objects(boxes, [0, 1, 2]), CLASSES, least_score=0.5)
    assert all(len(places(drawn, colour(c))[0]) > 0 for c in range(3))


def test_the_score_stands_in_the_label() -> None:
    box = [[60, 60, 100, 80]]
    labels = [
        draw(plain(), objects(box, [0], scores=scores), CLASSES).crop((0, 0, WIDTH, 58)).tobytes()
        for scores in (None, [0.87], [0.8749], [0.12])
    ]
    assert labels[1] == labels[2] and len(set(labels)) == 3


def test_labels_cover_no_other_label() -> None:
    names = ["one", "two", "three", "four"]
    drawn = draw(plain(), objects([[80, 60, 60, 40]] * 4, [0, 1, 2, 3]), names)
    assert all(holds_label(drawn, number, names) for number in range(4))


def test_labels_hide_no_small_object() -> None:
    small = objects([[100, 100, 12, 12], [100, 84, 12, 12]], [0, 1])
    drawn = draw(plain(), small, ["cat", "dog"])
    for number, (left, top, *_) in enumerate(small.boxes.astype(int).tolist()):
        part = drawn.crop((left, top, left + 13, top + 13))
        assert len(places(part, colour(number))[0]) >= 40, "all four sides of each box are seen"


def test_a_mask_is_translucent_inside_and_has_a_contour() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    drawn = draw(noise, circle(), CLASSES)
    inside = np.s_[65:95, 105:135]
    before, after = pixels(noise)[inside], pixels(drawn)[inside]
    np.testing.assert_allclose(after, 0.7 * before + 0.3 * np.array(colour(1)), atol=0.51)
    assert drawn.getpixel((141, 59)) == colour(1) and drawn.getpixel((141, 58)) == BLACK, "the edge of the circle"
    for outside in (np.s_[112:150, 20:220], np.s_[55:70, 80:90]):
        assert (pixels(noise)[outside] == pixels(drawn)[outside]).all()


def test_an_empty_mask_and_one_as_large_as_the_image_are_drawn_too() -> None:
    for filled in (np.zeros((HEIGHT, WIDTH), np.uint8), np.ones((HEIGHT, WIDTH), np.uint8)):
        drawn = draw(plain(), objects([[60, 40, 100, 80]], [0], masks=[mask_of(filled)]), CLASSES)
        assert changed(drawn, plain())[80, 110] == bool(filled.any())


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(DataError, match="A mask is 240 x 160, its image 100 x 100 pixels"):
        draw(plain(size=(100, 100)), circle(), CLASSES)


def test_crowds_are_dashed_and_their_masks_striped() -> None:
    def shares(crowd: bool) -> tuple[float, float]:
        box = objects([[60, 40, 100, 80]], [1], crowd=[crowd])
        side = changed(draw(plain(), box, CLASSES), plain())[45:115, 60].mean()
        drawn = draw(plain(), replace(circle(), crowd=np.array([crowd])), CLASSES)
        return float(side), float(changed(drawn, plain())[65:95, 105:135].mean())

    assert shares(False) == (1, 1)
    assert all(0.3 < share < 0.7 for share in shares(True))


def test_names_that_cannot_be_drawn_are_written_as_their_number_and_long_ones_are_shortened() -> None:
    assert [shown_name(name, i) for i, name in enumerate(CLASSES)] == ["cat", "a dog", "class 3"]
    assert shown_name("red\nblood  cell", 0) == "red blood cell" and shown_name("قطة", 0) == "قطة"
    assert shown_name(" ", 0) == "class 1" and shown_name("\u202eevil", 1) == "class 2"
    assert shown_name("n" * 500, 0) == "n" * 40
    drawn = draw(plain(), objects([[60, 60, 100, 80]], [0], scores=[0.5]), ["n" * 500])
    rows, columns = places(drawn.crop((0, 0, WIDTH, 58)), colour(0))
    assert len(rows) > 500 and columns.max() < WIDTH


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (3, 200), (200, 3)])
def test_images_of_any_size_are_drawn_on(size: tuple[int, int]) -> None:
    found = objects([[0, 0, *size], [0, 0, 1, 1]], [0, 1], scores=[0.9, 0.8])
    assert draw(plain(size=size), found, CLASSES).size == size
    assert max(draw(plain(size=size), found, CLASSES, side=480).size) == 480


def test_the_image_itself_is_left_as_it_is() -> None:
    image = plain()
    before = image.tobytes()
    draw(image, circle(), CLASSES)
    assert image.tobytes() == before and draw(image, objects([], []), CLASSES).tobytes() == before


def test_two_images_stand_side_by_side_each_under_its_title() -> None:
    left, right = plain("red"), plain("blue", (100, 200))
    both = beside(left, right, ("truth", "a title that is far too long for so narrow an image"))
    strip = both.height - 200
    assert both.width > WIDTH + 100 and 10 < strip < 40
    assert both.crop((0, strip, WIDTH, strip + HEIGHT)).tobytes() == left.tobytes()
    assert both.crop((both.width - 100, strip, both.width, both.height)).tobytes() == right.tobytes()
    titles = np.any(np.all(pixels(both)[:strip] > 200, axis=2), axis=0)
    assert titles[: WIDTH // 2].any() and titles[-100:].any() and not titles[WIDTH // 2 : both.width - 100].any()
