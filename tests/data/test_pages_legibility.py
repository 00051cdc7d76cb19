"""How large letters are after the model's resize, and the font size for a wanted compression."""

from functools import cache
from pathlib import Path

import pytest

from visiontune.data.pages import Fonts, PageSpec, lay_out, legibility, load_fonts, remedy, render, solve, x_heights
from visiontune.data.pages.legibility import x_height_at
from visiontune.errors import DataError

TEXT = (Path(__file__).parent / "udhr/en.txt").read_text("utf-8")


@cache
def fonts() -> Fonts:
    return load_fonts()


def spec(**changes: object) -> PageSpec:
    return PageSpec(**{"fonts": fonts().refs, **changes})


def tokens(text: str) -> int:
    return len(text) // 4


def test_x_height_is_that_of_a_drawn_x() -> None:
    page = render(lay_out("x", spec(font_size=64), fonts())[0])
    rows = (page < 128).any(axis=1).sum()
    assert legibility(spec(font_size=64), fonts(), 1024, TEXT).x_height == pytest.approx(rows, abs=1)


def test_the_models_resize_counts() -> None:
    full, half, by_function = (
        legibility(spec(), fonts(), to, TEXT, 256)
        for to in ((1024, 1024), 512, lambda width, height: (width // 2, height))
    )
    assert half.x_height == by_function.x_height == full.x_height / 2
    assert half.characters_per_page == full.characters_per_page
    assert full.characters_per_token == full.characters_per_page / 256


def test_characters_per_page_are_those_of_full_pages_whatever_the_sample() -> None:
    once, often = (
        legibility(spec(), fonts(), 1024, text).characters_per_page for text in (TEXT[300:900], TEXT[300:900] * 20)
    )
    assert once == pytest.approx(often, rel=0.05)


def test_solve_finds_the_largest_size_that_reaches_the_ratio() -> None:
    found = solve([TEXT], tokens, 273, 1.5, spec(), fonts(), 1024)
    assert found.ratio >= 1.5 and found.ratio == found.text_tokens / found.vision_tokens
    larger = lay_out(TEXT, spec(font_size=found.spec.font_size + 1), fonts())
    assert tokens(TEXT) / (len(larger) * 273) < 1.5
    assert sum(found.pages) * 273 == found.vision_tokens
    assert found.spec.width == 1024 and found.spec.fonts == fonts().refs


def test_the_largest_size_that_a_page_takes_is_tried_too() -> None:
    small = spec(width=200, height=120)
    largest = min(small.room) // 2
    assert solve([TEXT[:200]], tokens, 1, 0.1, small, fonts(), 1024).spec.font_size == largest
    # Legible at that size alone.
    side = 200 * 6 / x_height_at(small, fonts(), largest)
    assert solve([TEXT[:200]], tokens, 1, 0.1, small, fonts(), int(side) + 1).spec.font_size == largest


def test_solve_refuses_letters_that_run_together_and_says_what_would_do() -> None:
    with pytest.raises(DataError, match="run together") as caught:
        solve([TEXT], tokens, 273, 4, spec(), fonts(), 1024)
    allowed = float(str(caught.value).split("at most ")[1].split()[0])
    assert solve([TEXT], tokens, 273, allowed - 0.05, spec(), fonts(), 1024).x_height >= 6
    assert solve([TEXT], tokens, 273, 4, spec(), fonts(), 1024, least_x_height=3).ratio >= 4


def test_solve_refuses_a_ratio_that_no_size_reaches() -> None:
    with pytest.raises(DataError, match="smallest size"):
        solve(["short text"], tokens, 273, 2, spec(), fonts(), 1024)


def test_x_heights_are_told_of_the_sides_that_a_page_has() -> None:
    assert list(x_heights(spec(), fonts())) == [512, 640, 768, 1024]
    assert list(x_heights(spec(width=640, height=500), fonts())) == [512, 640]
    assert x_heights(spec(), fonts())[512] == x_heights(spec(), fonts())[1024] / 2


def test_a_small_page_is_not_more_legible_for_being_enlarged() -> None:
    small = spec(width=256, height=256, font_size=8)
    assert legibility(small, fonts(), 1024, TEXT).x_height == legibility(small, fonts(), 256, TEXT).x_height < 6


@pytest.mark.parametrize(("size", "side"), [(20, 512), (12, 640), (8, 1024)])
def test_the_remedy_is_the_least_that_makes_letters_legible(size: int, side: int) -> None:
    said = remedy(spec(font_size=size), fonts(), side)
    least = int(said.split("--font-size ")[1].split()[0])
    assert legibility(spec(font_size=least), fonts(), side, TEXT).x_height >= 6
    assert legibility(spec(font_size=least - 1), fonts(), side, TEXT).x_height < 6
    assert ("--page" in said) == (size > 10)  # letters that are too low as drawn ask for a larger font
    if "--page" in said:
        width, height = map(int, said.split("--page ")[1].rstrip(")").split("x"))
        assert legibility(spec(font_size=size, width=width, height=height), fonts(), side, TEXT).x_height >= 6
