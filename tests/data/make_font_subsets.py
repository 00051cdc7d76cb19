"""Makes `fonts/`: the few glyphs of Noto that the ten languages of `udhr/` need, for the tests of pages.

    apt install fonts-noto-core fonts-noto-cjk && pip install fonttools
    python tests/data/make_font_subsets.py

Each subset keeps its script's shaping rules and lacks what only screens use (hinting). Noto is under the SIL Open Font
Licence (fonts/OFL.txt), which asks for other names only where one is reserved ("Source", not used here).
"""

from pathlib import Path

from fontTools.subset import Options, Subsetter
from fontTools.ttLib import TTCollection, TTFont

HERE = Path(__file__).parent
NOTO = Path("/usr/share/fonts/truetype/noto")
CJK = Path("/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc")
ASCII = "".join(map(chr, range(0x20, 0x7F)))
# Name of the subset: its source, the face in a collection, the languages, and further characters that tests use.
SUBSETS = {
    "1-NotoSans.ttf": (NOTO / "NotoSans-Regular.ttf", None, "de en es fr ru", ASCII + "«»“”‘’„–—…•\u00a0\u0301\u0308"),
    "2-NotoSansArabic.ttf": (NOTO / "NotoSansArabic-Regular.ttf", None, "ar", "٠١٢٣٤٥٦٧٨٩،؛؟ًٌٍَُِّْ"),
    "3-NotoSansDevanagari.ttf": (NOTO / "NotoSansDevanagari-Regular.ttf", None, "hi", "क्षत्रज्ञ\u200c\u200d"),
    "4-NotoSansCJKsc.otf": (CJK, "Noto Sans CJK SC", "zh ja ko", ""),
}


def opened(path: Path, face: str | None) -> TTFont:
    """A font file, or the named face of a collection."""
    if face is None:
        return TTFont(path)
    return next(font for font in TTCollection(path).fonts if font["name"].getDebugName(4).startswith(face))


def main() -> None:
    taken: set[int] = set()
    for name, (path, face, languages, more) in SUBSETS.items():
        font = opened(path, face)
        text = more + "".join((HERE / f"udhr/{language}.txt").read_text("utf-8") for language in languages.split())
        codes = {ord(c) for c in text} & set(font.getBestCmap())
        if face is not None:
            codes -= taken  # what an earlier font draws is never looked up here
        options = Options(hinting=False, notdef_outline=True, glyph_names=False, name_IDs=[0, 1, 2, 4, 13, 14])
        options.layout_features = [
            "ccmp",
            "locl",
            "liga",
            "clig",
            "rlig",
            "calt",
            "kern",
            "mark",
            "mkmk",
            "init",
            "medi",
        ]
        options.layout_features += [
            "fina",
            "isol",
            "nukt",
            "akhn",
            "rphf",
            "rkrf",
            "pref",
            "blwf",
            "half",
            "pstf",
            "vatu",
        ]
        options.layout_features += ["cjct", "pres", "abvs", "blws", "psts", "haln", "abvm", "blwm", "dist", "cswh"]
        options.drop_tables += ["DSIG", "vhea", "vmtx", "VORG", "BASE", "STAT", "MATH"]
        options.recalc_timestamp = False
        subsetter = Subsetter(options)
        subsetter.populate(unicodes=codes)
        subsetter.subset(font)
        target = HERE / "fonts" / name
        font.save(target, reorderTables=True)
        taken |= codes
        print(f"{name}: {len(codes)} characters, {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
