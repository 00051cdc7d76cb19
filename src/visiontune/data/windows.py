"""A window of a long document around the answer that stands in it: so many pages, cut at paragraphs or sentences."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import regex

from visiontune.data.pages import Fonts, PageLayout, PageSpec, lay_out

# A sentence ends with its stop, what closes behind it and a blank; the stops of Chinese and Japanese need no blank.
_ENDS = regex.compile(r"[.!?…؟۔।॥։]+[\p{Pe}\p{Pf}\"']*\s+|[。！？｡]+[\p{Pe}\p{Pf}]*\s*|\n[^\S\n]*\n\s*")
_LINES = regex.compile(r"\n\s*")
# In these scripts a word stands apart, and an answer inside a longer one is another word: 19 is not in 1945.
_SPACED = r"[\p{Latin}\p{Greek}\p{Cyrillic}\p{Nd}]"

Span = tuple[int, int]


def answer_span(text: str, answer: str) -> Span | None:
    """Where the answer first stands in the text, word for word; None where it does not."""
    wanted = answer.strip()
    if not wanted:
        return None
    before = rf"(?<!{_SPACED})" if regex.match(_SPACED, wanted[0]) else ""
    after = rf"(?!{_SPACED})" if regex.match(_SPACED, wanted[-1]) else ""
    found = regex.search(before + regex.escape(wanted) + after, text)
    return None if found is None else found.span()


def window(
    text: str, answer: Span, most: int, draw: float, laid_out: Sequence[PageLayout], spec: PageSpec, fonts: Fonts
) -> Span | None:
    """The part of a text of more than `most` pages that is shown: at most so many pages, with the answer in them.

    It starts and ends where paragraphs or sentences do; where those around the answer are too long, at the text's own
    lines, then at the lines of its pages. `draw` in [0, 1) says where among all places that it can have the answer
    comes to stand: at 0 as late in the window as it can, towards 1 as early. `laid_out` is the whole text on pages.
    None where the answer alone takes more pages.
    """

    def fits(start: int, end: int) -> bool:
        return len(lay_out(text[start:end], spec, fonts, missing_limit=1.0)) <= most

    cuts = (
        [0, *(match.end() for match in _ENDS.finditer(text)), len(text)],
        [0, *(match.end() for match in _LINES.finditer(text)), len(text)],
        [*(line.start for page in laid_out for line in page.lines), len(text)],
        [0, *answer, len(text)],
    )
    for places in cuts:
        first, last = bisect_right(places, answer[0]) - 1, bisect_left(places, answer[1])
        if fits(places[first], places[last]):
            break
    else:
        return None
    pages = [page.start for page in laid_out]

    def page_of(place: int) -> int:
        return bisect_right(pages, place) - 1

    # Alone, whole pages of the text take as many pages as they do in it: no start before the `lowest` here can do.
    lowest = bisect_left(places, pages[max(0, page_of(places[last] - 1) - most)], hi=first)
    lowest = bisect_left(range(first), True, lo=lowest, key=lambda i: fits(places[i], places[last]))
    # A window that starts later than it must to reach the text's end would be shorter for nothing.
    highest = max(lowest, bisect_left(places, pages[max(0, len(pages) - 1 - most)], hi=first))
    highest = bisect_left(range(first), True, lo=highest, key=lambda i: fits(places[i], len(text)))
    wanted = places[lowest] + draw * (places[highest] - places[lowest])
    start = places[bisect_left(places, wanted, lo=lowest, hi=highest)]

    after = page_of(start) + most + 1
    own = lay_out(text[start : pages[after] if after < len(pages) else len(text)], spec, fonts, missing_limit=1.0)
    furthest = bisect_right(places, start + own[min(most, len(own)) - 1].end) - 1
    end = next((i for i in range(furthest, last, -1) if fits(start, places[i])), last)
    return start, max(answer[1], len(text[: places[end]].rstrip()))
