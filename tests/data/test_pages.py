"""Text as pages: nothing of the source is lost, nothing leaves the margins, and the bytes are the same everywhere."""

import hashlib
import os
import pickle
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from visiontune.data.pages import (
    DEFAULT_FONT,
    Fonts,
    PageLayout,
    PageSpec,
    engine,
    lay_out,
    load_fonts,
    pages,
    render,
    shaping,
)
from visiontune.data.pages.breaking import line_breaks
from visiontune.data.pages.markdown import read_marks
from visiontune.data.pages.properties import code_points
from visiontune.data.pages.shaping import VISIBLE, character_kinds, forget_unused
from visiontune.errors import DataError

HERE = Path(__file__).parent
SUBSETS = sorted((HERE / "fonts").glob("*.[ot]tf"))
LANGUAGES = ("ar", "de", "en", "es", "fr", "hi", "ja", "ko", "ru", "zh")
# The first page of each language in the subset fonts. They change when a font, HarfBuzz or the layout does: look at the
# pages (`python bench/scripts.py FOLDER`), raise LAYOUT_VERSION, then write the new ones here.
GOLDEN = {
    "ar": "f2d26a4758b0775b",
    "de": "3f9a5747940036c6",
    "en": "48730831c85f5a92",
    "es": "15bafd23469e59cf",
    "fr": "d3177260835f6ceb",
    "hi": "f70da8af5ec5c228",
    "ja": "2772ebce950f38cb",
    "ko": "48bbcb4cdd9ac67f",
    "ru": "628692aab791f289",
    "zh": "4c06bfd61c53ecd9",
}

SNIPPETS = [
    "word ", "Straße", "العربية ", "שלום", "(123)", "१२३ क्षत्रिय", "漢字かな", "한국어", "\n", "\n\n", "\t", "  ",
    "\r\n", "\u2067abc\u2069", "e\u0301", "\u0301", "👨\u200d👩", "a\u00adb", "\x00", "\ud800", "\u202e", "# ", "- ",
    "```", "`x`", "W" * 40, "\u00a0", "\ufdfd",
]  # fmt: skip
texts = st.lists(st.sampled_from(SNIPPETS) | st.text(st.characters(exclude_categories=()), max_size=12), max_size=30)
texts = texts.map("".join)


@cache
def subsets() -> Fonts:
    return load_fonts(SUBSETS)


@cache
def default() -> Fonts:
    return load_fonts()


font_sets = st.sampled_from(["default", "subsets"]).map(lambda name: default() if name == "default" else subsets())


def udhr(language: str) -> str:
    return (HERE / f"udhr/{language}.txt").read_text("utf-8")


def small(fonts: Fonts, **changes: object) -> PageSpec:
    return PageSpec(**{"fonts": fonts.refs, "width": 240, "height": 200, "margins": (10, 20, 30, 40), **changes})


def digest(images: list[np.ndarray]) -> str:
    return hashlib.sha256(b"".join(image.tobytes() for image in images)).hexdigest()


def kind(character: str) -> int:
    return int(character_kinds()[ord(character)])


def consumed(text: str) -> np.ndarray:
    """Which characters are Markdown marks."""
    _, must = line_breaks(code_points(text))
    return read_marks(text, [0, *np.flatnonzero(must).tolist()]).consumed if text else np.zeros(0, dtype=bool)


def drawn(laid: list[PageLayout]) -> Counter[str]:
    return Counter(c for page in laid for line in page.lines for run in line.runs for c in run.text)


@settings(max_examples=150, deadline=None)
@given(texts, font_sets, st.booleans())
def test_every_character_is_on_some_page_in_order(text: str, fonts: Fonts, markdown: bool) -> None:
    laid = lay_out(text, small(fonts, markdown=markdown), fonts, missing_limit=1)
    assert "".join(text[line.start : line.end] for page in laid for line in page.lines) == text
    assert [page.start for page in laid[1:]] == [page.end for page in laid[:-1]]
    hidden = consumed(text) if markdown else np.zeros(len(text), dtype=bool)
    wanted = Counter(c for c, hide in zip(text, hidden, strict=True) if not hide and kind(c) == VISIBLE)
    assert Counter(c for c in drawn(laid).elements() if kind(c) == VISIBLE) == wanted
    assert sum(page.consumed for page in laid) == hidden.sum()
    assert all(line.width <= 180 for page in laid for line in page.lines)
    assert sum(page.missing.total() for page in laid) <= len(text)


@settings(max_examples=100, deadline=None)
@given(texts, font_sets, st.booleans(), st.integers(4, 30))
def test_no_ink_leaves_the_margins(text: str, fonts: Fonts, markdown: bool, size: int) -> None:
    spec = small(fonts, markdown=markdown, font_size=size)
    for page in pages(text, spec, fonts, missing_limit=1):
        assert page.shape == (200, 240) and page.dtype == np.uint8
        page[10:-30, 40:-20] = 255
        assert (page == 255).all()


@settings(max_examples=60, deadline=None)
@given(texts, font_sets)
def test_lines_stand_under_each_other_and_nothing_overlaps(text: str, fonts: Fonts) -> None:
    """Ink is never cut: what the runs of a page hold is what the page shows."""
    for page in lay_out(text, small(fonts), fonts, missing_limit=1):
        bottoms = [line.y + line.ascent + line.descent for line in page.lines]
        assert all(line.y >= above for line, above in zip(page.lines[1:], bottoms, strict=False))
        assert max(bottoms, default=0) <= 170
        cells = [run.cell for line in page.lines for run in line.runs if run.cell is not None]
        assert (render(page) < 255).sum() == sum((cell < 255).sum() for cell in cells)


@settings(max_examples=60, deadline=None)
@given(st.lists(texts, min_size=2, max_size=4), font_sets)
def test_pages_do_not_depend_on_what_was_drawn_before(some: list[str], fonts: Fonts) -> None:
    spec = small(fonts)
    cold = []
    for text in some:
        fonts.kept.clear()
        cold.append(digest(pages(text, spec, fonts, missing_limit=1)))
    warm = [digest(pages(text, spec, fonts, missing_limit=1)) for text in reversed(some)]
    forget_unused(fonts, limit=0)
    later = [digest(pages(text, spec, fonts, missing_limit=1)) for text in some]
    assert cold == warm[::-1] == later


@settings(max_examples=40, deadline=None)
@given(texts.filter(bool), font_sets, st.integers(1, 6))
def test_more_of_the_same_text_takes_no_fewer_pages(text: str, fonts: Fonts, times: int) -> None:
    fewer, more = (len(lay_out(text * n, small(fonts), fonts, missing_limit=1)) for n in (times, times + 1))
    assert fewer <= more


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_page_of_each_language_is_the_one_that_was_looked_at(language: str) -> None:
    spec = PageSpec(fonts=subsets().refs)
    laid = lay_out(udhr(language), spec, subsets(), missing_limit=0)
    assert not any(page.missing for page in laid)
    if engine()["harfbuzz"] != "15.0.0":
        pytest.skip(f"the golden pages are of HarfBuzz 15.0.0, not {engine()['harfbuzz']}")
    assert digest([render(laid[0])])[:16] == GOLDEN[language]


def test_another_process_with_another_hash_seed_draws_the_same_bytes() -> None:
    spec = PageSpec(fonts=subsets().refs)
    here = digest([image for language in ("ar", "hi", "zh") for image in pages(udhr(language)[:2000], spec, subsets())])
    code = f"""
import sys; sys.path.insert(0, {str(HERE)!r})
from test_pages import *
for language in ("zh", "en", "hi", "ar"): pages(udhr(language)[500:3000], small(subsets(), font_size=17), subsets())
spec = PageSpec(fonts=subsets().refs)
print(digest([image for language in ("ar", "hi", "zh") for image in pages(udhr(language)[:2000], spec, subsets())]))
"""
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "77", "LC_ALL": "tr_TR.UTF-8"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == here


def test_the_fonts_keep_no_more_than_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shaping, "MEMORY", 1 << 20)
    fonts = load_fonts()
    for seed in range(30):
        words = np.random.default_rng(seed).integers(97, 123, (300, 9)).astype(np.uint8)
        lay_out(" ".join(bytes(word).decode() for word in words), small(fonts), fonts)
        forget_unused(fonts, 1 << 20)
        kept = sum(run.memory for one in fonts.kept.values() for run in [*one.runs.values(), *one.older.values()])
        assert kept <= 2 << 20


def test_right_to_left_lines_start_at_the_right() -> None:
    spec = small(subsets(), width=400)
    laid = lay_out("مرحبا بالعالم كيف حالك اليوم يا صديقي العزيز من هنا\nHello", spec, subsets())
    *arabic, latin = [line for page in laid for line in page.lines]
    assert len(arabic) > 1 and all(line.rtl and line.x + line.width == 380 for line in arabic)
    assert latin.x == 40 and not latin.rtl
    assert [run.text for run in arabic[0].runs if run.cell is not None][-1] == "مرحبا"


def test_numbers_and_latin_words_keep_their_order_inside_arabic() -> None:
    (page,) = lay_out("سنة 1948 في New York هنا", small(subsets(), width=500), subsets())
    shown = [run.text for run in page.lines[0].runs if run.cell is not None]
    assert shown == ["هنا", "New", "York", "في", "1948", "سنة"]


def test_arabic_letters_join() -> None:
    joined, apart = (lay_out(text, small(subsets()), subsets())[0].lines[0] for text in ("سلام", "س ل ا م"))
    assert joined.width < apart.width - 3 * 5


def test_a_cluster_is_drawn_by_one_font() -> None:
    """A mark that only one of the fonts has stays with its letter, whatever their order."""
    (page,) = lay_out("e\u0301人e", small(subsets()), subsets())
    assert [run.text for run in page.lines[0].runs] == ["e\u0301", "人", "e"]
    fonts = load_fonts([SUBSETS[3], SUBSETS[0]])
    (page,) = lay_out("e\u0301人", small(fonts), fonts)
    assert [run.text for run in page.lines[0].runs] == ["e\u0301", "人"]
    assert not page.missing
    (page,) = lay_out("人\u0301", small(subsets()), subsets(), missing_limit=1)  # no font has both
    assert page.missing == Counter("\u0301")


@pytest.mark.parametrize("height", range(180, 206))
def test_a_line_that_does_not_fit_whole_goes_to_the_next_page(height: int) -> None:
    laid = lay_out("gÅ\n" * 20, small(default(), height=height), default())
    for page in laid[:-1]:
        bottom = page.lines[-1].y + page.lines[-1].ascent + page.lines[-1].descent
        assert height - 30 - 25 < bottom <= height - 30


def test_lines_never_end_inside_a_cluster() -> None:
    """The vowel of the Thai "nam" is a letter to the rules for lines, and part of its cluster."""
    laid = lay_out("น้ำ" * 40, small(default()), default(), missing_limit=1)
    lines = [line for page in laid for line in page.lines]
    assert len(lines) > 3 and all(line.start % 3 == 0 for line in lines)


def test_words_longer_than_a_line_are_cut_between_clusters() -> None:
    text = "e\u0301" * 200
    laid = lay_out(text, small(default()), default())
    lines = [line for page in laid for line in page.lines]
    assert len(lines) > 5 and all(line.start % 2 == 0 and line.width <= 180 for line in lines)
    assert min(line.width for line in lines[:-1]) > 160


def test_what_is_too_large_for_the_page_is_drawn_smaller_and_counted() -> None:
    (page,) = lay_out("a\u0301\u0302" + "\u0303" * 60, small(default()), default())
    assert page.shrunk == 1
    assert page.lines[0].ascent + page.lines[0].descent <= 160


def test_blanks_at_the_end_of_a_line_hang_and_leading_ones_stay() -> None:
    (page,) = lay_out("    x" + " " * 500 + "\ny", small(default()), default())
    first, second = page.lines
    assert first.end == 506 and first.runs[0].text == "    " and first.runs[-1].text == "x"
    assert second.start == 506


def test_a_tab_is_four_spaces_wide_and_controls_take_no_room() -> None:
    tab, spaces, control = (lay_out(text, small(default()), default())[0] for text in ("a\tb", "a    b", "a\x00\x1bb"))
    assert tab.lines[0].width == spaces.lines[0].width
    assert control.controls == 2 and control.lines[0].width <= tab.lines[0].width - 20


def test_surrogates_and_unknown_characters_are_boxes_or_marks_and_counted() -> None:
    (page,) = lay_out("a \ud800 漢 b", small(default()), default(), missing_limit=1)
    assert page.missing == Counter({"\ud800": 1, "漢": 1})
    box = next(run for run in page.lines[0].runs if run.text == "漢")
    assert box.cell is not None and (box.cell == 0).sum() > 20


def test_missing_glyphs_name_the_characters_the_script_and_the_package() -> None:
    with pytest.raises(DataError) as caught:
        lay_out(udhr("zh"), PageSpec(fonts=default().refs), default())
    assert "Han" in str(caught.value) and "fonts-noto-cjk" in str(caught.value) and "U+" in str(caught.value)
    with pytest.raises(DataError, match="Thai"):
        lay_out("สวัสดี", small(subsets()), subsets())


def test_few_missing_glyphs_are_counted_and_not_refused() -> None:
    laid = lay_out("x" * 1000 + " 漢", PageSpec(fonts=default().refs), default())
    assert sum((page.missing for page in laid), Counter()) == Counter("漢")


def test_an_empty_text_is_an_empty_page() -> None:
    (page,) = pages("", small(default()), default())
    assert (page == 255).all()


def test_letters_are_dark_antialiased_and_upright() -> None:
    (page,) = pages("L", small(default(), font_size=60), default())
    rows, columns = np.nonzero(page < 128)
    assert page.min() == 0 and len(np.unique(page)) > 4
    foot = columns[rows == rows.max()]
    stem = columns[rows == rows.min()]
    assert len(foot) > 2 * len(stem)  # the bar of an L is at its foot


def test_markdown_shows_what_marks_do_and_counts_them() -> None:
    text = "# Title\ntext `code` end\n- one two three four five six seven eight nine\n```\nx = 1\n```\n"
    fonts = load_fonts([DEFAULT_FONT, SUBSETS[0]])
    spec = small(fonts, height=600, markdown=True, code_font=1)
    (page,) = lay_out(text, spec, fonts)
    title, line, item, more, *_ = page.lines
    assert page.consumed == len("# ") + 2 + 3 + 3
    assert "".join(run.text for run in title.runs) == "Title" and title.ascent > line.ascent
    assert "`" not in "".join(run.text for run in line.runs)
    assert item.x == 40 and more.x > 40  # the second line of an item hangs under its text
    assert "".join(run.text for run in page.lines[-2].runs) == "x = 1"
    plain = lay_out(text, small(fonts, height=600), fonts)
    assert plain[0].consumed == 0 and "`" in "".join(run.text for run in plain[0].lines[1].runs)


def test_markdown_code_ends_at_as_many_backticks_and_headings_may_close() -> None:
    spec = small(default(), width=600, markdown=True)
    (page,) = lay_out("a ``b ` c`` d `e\n## Title ## \n#no heading #\n", spec, default())
    code, title, plain, *_ = ["".join(run.text for run in line.runs) for line in page.lines]
    assert (code, title, plain) == ("a b ` c d `e", "Title", "#no heading #")


@pytest.mark.parametrize(
    "change",
    [
        {"width": 241}, {"height": 201}, {"margins": (10, 20, 30, 41)}, {"font_size": 21}, {"line_spacing": 1.3},
        {"paragraph_spacing": 0.7}, {"tab_spaces": 8}, {"markdown": True}, {"code_font": 0},
    ],
)  # fmt: skip
def test_every_field_of_a_spec_changes_its_hash(change: dict[str, object]) -> None:
    assert small(default(), **change).hash != small(default()).hash


def test_a_hash_knows_fonts_by_their_contents(tmp_path: Path) -> None:
    (tmp_path / "Other.ttf").write_bytes(DEFAULT_FONT.read_bytes())
    renamed = load_fonts([tmp_path / "Other.ttf"])
    assert small(renamed).hash == small(default()).hash != small(subsets()).hash
    assert PageSpec.model_validate_json(small(default()).model_dump_json()) == small(default())
    lay_out("x", small(default()), renamed)
    with pytest.raises(DataError, match="not those of the page spec"):
        lay_out("x", small(default()), subsets())


def test_a_spec_without_room_is_refused() -> None:
    with pytest.raises(ValidationError, match="needs at least"):
        small(default(), margins=(0, 110, 0, 110))


def test_fonts_travel_to_other_processes() -> None:
    again = pickle.loads(pickle.dumps(subsets()))
    assert again.refs == subsets().refs
    spec = small(subsets())
    laid = lay_out(udhr("hi")[:500], spec, subsets())
    assert digest([render(page) for page in pickle.loads(pickle.dumps(laid))]) == digest(
        pages(udhr("hi")[:500], spec, again)
    )


def test_a_file_that_is_no_font_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.ttf").write_bytes(b"hello")
    with pytest.raises(DataError, match="no outlines"):
        load_fonts([tmp_path / "no.ttf"])
    with pytest.raises(DataError, match="cannot be read"):
        load_fonts([tmp_path / "absent.ttf"])


def test_pages_need_no_torch() -> None:
    code = "import sys, visiontune.data.pages; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
