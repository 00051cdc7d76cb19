"""How many pages a second one core lays out and draws, from texts that it has never seen.

No page is drawn twice: slices of English technical prose, each read once, and pages of words drawn at random from a
text (seeded). Ours starts with nothing in memory: loading the fonts and drawing each word for the first time count.
Beside it, in the same run: Pillow drawing the same texts wrapped at 100 characters, and the same with each page encoded
as PNG.

    python bench/pages.py [rfcs.jsonl]      (one JSON object a line with its prose in "text"; else tests/data/udhr)
"""

import io
import json
import platform
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from visiontune.data.pages import DEFAULT_FONT, PageSpec, load_fonts, pages

HERE = Path(__file__).parents[1]
UDHR = HERE / "tests/data/udhr"
FONTS = HERE / "tests/data/fonts"
CHARACTERS = 3000
LATIN_PAGES = 1500
SCRIPT_PAGES = 300
PILLOW_PAGES = 60
# At these sizes a page of 1024 x 1024 holds 3,000 characters of English.
SIZE = {"font_size": 17, "line_spacing": 1.2, "margins": (16, 16, 16, 16)}
SCRIPTS = {
    "Arabic (ar)": ("ar", 3000),
    "Devanagari (hi)": ("hi", 3000),
    "Han (zh)": ("zh", 1500),
    "Kana and Han (ja)": ("ja", 1500),
    "Hangul (ko)": ("ko", 1500),
    "Cyrillic (ru)": ("ru", 3000),
}


def slices(prose: str, count: int) -> list[str]:
    """`count` texts of 3,000 characters, no two of them the same part of the prose."""
    return [prose[i * CHARACTERS : (i + 1) * CHARACTERS] for i in range(min(count, len(prose) // CHARACTERS))]


def shuffled(prose: str, count: int, characters: int, seed: int) -> list[str]:
    """`count` texts of words drawn from the prose, each as often as it stands there."""
    generator = np.random.default_rng(seed)
    words = prose.split() if " " in prose[:200] else [prose[i : i + 12] for i in range(0, len(prose), 12)]
    texts = []
    for _ in range(count):
        drawn = [words[i] for i in generator.integers(len(words), size=characters)]
        joined = " ".join(drawn) if " " in prose[:200] else "".join(drawn)
        texts.append(joined[:characters])
    return texts


def unheard(count: int, seed: int) -> list[str]:
    """`count` texts of made-up words, hardly one of them twice: the worst case, in which each word is drawn anew."""
    generator = np.random.default_rng(seed)
    texts = []
    for _ in range(count):
        letters = generator.integers(ord("a"), ord("z") + 1, CHARACTERS, dtype=np.uint8)
        letters[generator.random(CHARACTERS) < 0.16] = ord(" ")
        texts.append(letters.tobytes().decode("ascii"))
    return texts


def timed(draw: Callable[[], int]) -> tuple[int, float, float]:
    """(pages, pages a second of processor time, pages a second by the clock)."""
    wall, cpu = time.perf_counter(), time.process_time()
    count = draw()
    return count, count / (time.process_time() - cpu), count / (time.perf_counter() - wall)


def ours(texts: list[str], paths: list[Path]) -> int:
    """Draw all texts, from loading the fonts on; a prose that quotes other scripts shows them as boxes."""
    fonts = load_fonts(paths)
    spec = PageSpec(fonts=fonts.refs, **SIZE)
    return sum(len(pages(text, spec, fonts, missing_limit=1)) for text in texts)


def pillow(texts: list[str], png: bool) -> int:
    """Draw all texts as scripts usually do: wrap by characters, one `text` call a line."""
    font = ImageFont.truetype(str(DEFAULT_FONT), 17)
    for text in texts:
        image = Image.new("L", (1024, 1024), 255)
        draw = ImageDraw.Draw(image)
        y = 16
        for line in (part for one in text.splitlines() for part in (textwrap.wrap(one, 100) or [""])):
            draw.text((16, y), line, font=font, fill=0)
            y += 20
        if png:
            image.save(io.BytesIO(), "PNG")
        else:
            np.asarray(image)
    return len(texts)


def main() -> None:
    if len(sys.argv) > 1:
        source = Path(sys.argv[1])
        prose = "\n".join(json.loads(line)["text"] for line in source.read_text("utf-8").splitlines())
    else:
        source = UDHR
        prose = "\n".join((UDHR / f"{language}.txt").read_text("utf-8") for language in ("en", "de", "fr", "es"))
    natural, mixed = slices(prose, LATIN_PAGES), shuffled(prose, LATIN_PAGES, CHARACTERS, seed=1)
    print(f"{platform.platform()}, Python {platform.python_version()}; one thread; Latin texts from {source.name}")
    print(f"1024 x 1024, {CHARACTERS} characters, DejaVu Sans 17 px; every text is drawn once, from a cold start\n")
    print("| what | texts | pages | characters a page | pages/s (processor) | pages/s (clock) |")
    print("|---|---|---|---|---|---|")
    rows: list[tuple[str, list[str], Callable[[list[str]], int]]] = [
        ("Latin, prose read once", natural, lambda texts: ours(texts, [])),
        ("Latin, words shuffled", mixed, lambda texts: ours(texts, [])),
        ("Latin, words shuffled, the first 20 only", mixed[:20], lambda texts: ours(texts, [])),
        ("Latin, made-up words, none twice", unheard(SCRIPT_PAGES, seed=3), lambda texts: ours(texts, [])),
    ]
    scripts = sorted(FONTS.glob("*.[ot]tf"))
    for name, (language, characters) in SCRIPTS.items():
        texts = shuffled((UDHR / f"{language}.txt").read_text("utf-8"), SCRIPT_PAGES, characters, seed=2)
        rows.append((name, texts, lambda texts: ours(texts, scripts)))
    rows += [
        ("Pillow, Latin", natural[:PILLOW_PAGES], lambda texts: pillow(texts, png=False)),
        ("Pillow and PNG, Latin", natural[:PILLOW_PAGES], lambda texts: pillow(texts, png=True)),
    ]
    for name, texts, draw in rows:
        count, processor, clock = timed(lambda draw=draw, texts=texts: draw(texts))
        characters = sum(map(len, texts)) / count
        print(f"| {name} | {len(texts)} | {count} | {characters:,.0f} | {processor:,.0f} | {clock:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
