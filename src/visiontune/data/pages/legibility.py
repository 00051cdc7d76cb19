"""How large letters are after a model's own resize, and which font size gives a wanted compression."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from visiontune.data.pages.fonts import Fonts
from visiontune.data.pages.layout import lay_out
from visiontune.data.pages.spec import PageSpec
from visiontune.errors import DataError

# An "e" is three strokes and two gaps, each of which needs a row of pixels, and one row is lost where they fall between
# rows.
LEGIBLE_X_HEIGHT = 6.0
SMALLEST, LARGEST = 4, 96  # font sizes in pixels among which `solve` chooses
SIDES = (512, 640, 768, 1024, 1280)  # longer sides in pixels that published models resize a page to

Resize = tuple[int, int] | int | Callable[[int, int], tuple[int, int]]


@dataclass(frozen=True)
class Legibility:
    """What a model sees of pages: `x_height` and `font_size` in pixels after its resize by `scale`.

    `characters_per_page` is the mean over the full pages of a sample; `characters_per_token` follows from the vision
    tokens of a page, None where those are not given.
    """

    x_height: float
    font_size: float
    scale: float
    characters_per_page: float
    characters_per_token: float | None


@dataclass(frozen=True)
class Solution:
    """The spec that reaches a wanted compression, and what it gives: text tokens / vision tokens = `ratio`."""

    spec: PageSpec
    ratio: float
    x_height: float
    pages: tuple[int, ...]
    text_tokens: int
    vision_tokens: int


def resize_scale(spec: PageSpec, resize_to: Resize) -> float:
    """The factor by which a page shrinks to fit a (width, height) or a longest side, or what a function makes of it.

    At most 1: letters do not become more legible when a small page is enlarged.
    """
    if callable(resize_to):
        width, height = resize_to(spec.width, spec.height)
    elif isinstance(resize_to, tuple):
        width, height = resize_to
    else:
        width = height = resize_to
    return min(1.0, width / spec.width, height / spec.height)


def x_height(spec: PageSpec, fonts: Fonts) -> float:
    """The height in pixels of an "x" on the page, unresized; half the font size if no font has the letter."""
    for font in fonts.fonts:
        if font.covered[ord("x")]:
            sized = font.sized(spec.font_size)
            glyph = sized.get_nominal_glyph(ord("x"))
            extents = None if glyph is None else sized.get_glyph_extents(glyph)
            if extents is not None:
                return abs(extents.height) / 64
    return spec.font_size / 2


def legibility(
    spec: PageSpec, fonts: Fonts, resize_to: Resize, sample: str, tokens_per_page: int | None = None
) -> Legibility:
    """How legible pages of a spec are to a model that resizes them, measured on a sample of the text (any length).

    `resize_to` is what the model does to a page: the (width, height) or longest side that it fits the page into, or a
    function from one size to the other. Raises DataError as `lay_out` does, and for an empty sample.
    """
    if not sample.strip():
        raise DataError("Legibility is measured on a sample of the text, and it is empty.")
    # A sample that does not fill a page is repeated, or the empty rest of its last page would count.
    text = sample
    while len(laid := lay_out(text, spec, fonts, missing_limit=1)) < 4:
        text = text + "\n" + text
    full = laid[:-1]
    per_page = (full[-1].end - full[0].start) / len(full)
    scale = resize_scale(spec, resize_to)
    return Legibility(
        x_height=x_height(spec, fonts) * scale,
        font_size=spec.font_size * scale,
        scale=scale,
        characters_per_page=per_page,
        characters_per_token=None if tokens_per_page is None else per_page / tokens_per_page,
    )


def solve(
    texts: Sequence[str],
    count_tokens: Callable[[str], int],
    tokens_per_page: int,
    ratio: float,
    spec: PageSpec,
    fonts: Fonts,
    resize_to: Resize,
    *,
    least_x_height: float = LEGIBLE_X_HEIGHT,
    missing_limit: float = 1.0,
) -> Solution:
    """The largest font size at which `texts` take `ratio` times fewer vision tokens than text tokens.

    `count_tokens` is the tokeniser's count of one text, `tokens_per_page` what the model's encoder makes of a page; the
    rest of the layout stays as in `spec`. Raises DataError if no size reaches the ratio, or only one whose letters are
    lower than `least_x_height` pixels after the model's resize.
    """
    text_tokens = sum(count_tokens(text) for text in texts)
    if not text_tokens or ratio <= 0 or tokens_per_page < 1:
        raise DataError(
            f"A ratio of {ratio} of {text_tokens} text tokens and {tokens_per_page} a page has no solution."
        )
    scale = resize_scale(spec, resize_to)

    def at(size: int) -> Solution:
        sized = PageSpec(**{**spec.model_dump(), "font_size": size})
        counts = tuple(len(lay_out(text, sized, fonts, missing_limit=missing_limit)) for text in texts)
        vision = sum(counts) * tokens_per_page
        return Solution(sized, text_tokens / vision, x_height(sized, fonts) * scale, counts, text_tokens, vision)

    low, high = SMALLEST, min(LARGEST, min(spec.room) // 2) + 1  # `high` itself is not tried
    best = at(low)
    if best.ratio < ratio:
        raise DataError(
            f"At {low} px, the smallest size, the texts reach a ratio of {best.ratio:.1f}, not {ratio:g}: "
            f"{text_tokens} text tokens on {sum(best.pages)} pages of {tokens_per_page} vision tokens.",
            fix="use longer texts, larger pages, or a model with fewer vision tokens a page",
        )
    while high - low > 1:  # fewer pages at a smaller size
        middle = (low + high) // 2
        tried = at(middle)
        if tried.ratio >= ratio:
            low, best = middle, tried
        else:
            high = middle
    if best.x_height < least_x_height:
        readable = next(
            (
                size
                for size in range(best.spec.font_size, LARGEST)
                if x_height_at(spec, fonts, size) * scale >= least_x_height
            ),
            LARGEST,
        )
        reached = at(min(readable, min(spec.room) // 2)).ratio
        raise DataError(
            f"A ratio of {ratio:g} needs letters of {best.x_height:.1f} px x-height after the model's resize "
            f"(font size {best.spec.font_size}), and below {least_x_height:g} px they run together.",
            fix=f"ask for a ratio of at most {reached:.1f} (font size {readable})",
        )
    return best


def x_height_at(spec: PageSpec, fonts: Fonts, size: int) -> float:
    """`x_height` of the spec at another font size."""
    return x_height(spec.model_copy(update={"font_size": size}), fonts)


def x_heights(spec: PageSpec, fonts: Fonts) -> dict[int, float]:
    """The x-height in pixels after the page's longer side is resized to each of SIDES that is not larger than it."""
    drawn = x_height(spec, fonts)
    return {side: drawn * resize_scale(spec, side) for side in SIDES if side <= max(spec.width, spec.height)}


def remedy(spec: PageSpec, fonts: Fonts, resize_to: Resize) -> str:
    """What to type so that letters are legible after a resize of the page, for one where they are not."""
    scale = resize_scale(spec, resize_to)
    sizes = range(spec.font_size + 1, min(spec.room) // 2 + 1)
    found = next((size for size in sizes if x_height_at(spec, fonts, size) * scale >= LEGIBLE_X_HEIGHT), None)
    larger = [] if found is None else [f"use --font-size {found} or larger"]
    # On a smaller page the same letters shrink less; where they are too low as drawn, no page helps.
    share = x_height(spec, fonts) * scale / LEGIBLE_X_HEIGHT
    width, height = int(spec.width * share), int(spec.height * share)
    if x_height(spec, fonts) >= LEGIBLE_X_HEIGHT:
        larger.append(f"use smaller pages (--page {width}x{height})")
    return ", or ".join(larger) or "use larger pages and a larger font"
