"""The card of a dataset on the hub: what dataset.json says, for people and for the hub's own tools."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import jinja2
import yaml

from visiontune.data.corpora import CORPORA
from visiontune.data.dataset import Dataset, font_path
from visiontune.data.dataset_info import DatasetInfo
from visiontune.data.pages import Font, FontRef
from visiontune.exports.card import LABELS_SHOWN, UNKNOWN, plain

KEPT = ("license", "license_name", "license_link", "language")
COPYRIGHT, LICENCE = 0, 13  # entries of a font's table of names (OpenType specification, `name`)

# The hub's names of sizes, with the number of samples below which each holds.
SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
    (1_000_000_000, "100M<n<1B"),
    (10_000_000_000, "1B<n<10B"),
)

# ISO 639 codes of the languages that the table of corpora names; Pidgin is that of West Africa.
LANGUAGES = {
    "Amharic": "am", "Arabic": "ar", "Azerbaijani": "az", "Bengali": "bn", "Burmese": "my", "Chinese Simplified": "zh",
    "Chinese Traditional": "zh", "English": "en", "French": "fr", "German": "de", "Gujarati": "gu", "Hausa": "ha",
    "Hindi": "hi", "Igbo": "ig", "Indonesian": "id", "Japanese": "ja", "Kirundi": "rn", "Korean": "ko", "Kyrgyz": "ky",
    "Marathi": "mr", "Nepali": "ne", "Oromo": "om", "Pashto": "ps", "Persian": "fa", "Pidgin": "pcm",
    "Portuguese": "pt", "Punjabi": "pa", "Russian": "ru", "Scottish Gaelic": "gd", "Serbian Cyrillic": "sr",
    "Serbian Latin": "sr", "Sinhala": "si", "Somali": "so", "Spanish": "es", "Swahili": "sw", "Tamil": "ta",
    "Telugu": "te", "Thai": "th", "Tigrinya": "ti", "Turkish": "tr", "Ukrainian": "uk", "Urdu": "ur", "Uzbek": "uz",
    "Vietnamese": "vi", "Welsh": "cy", "Yoruba": "yo",
}  # fmt: skip


def dataset_card(dataset: Dataset, repository: str, known: dict[str, Any]) -> str:
    """The text of README.md; of what the card there says already (`known`), licence and language where not known here.

    `repository` is the name by which others load it.
    """
    info = dataset.info
    own = {**licence(info), **language(info)}
    kept = {key: known[key] for key in KEPT if key in known}
    if own["license"] != UNKNOWN:
        kept = {key: value for key, value in kept.items() if not key.startswith("license")}
    front = {
        **own,
        **kept,
        "size_categories": [next((name for below, name in SIZES if len(dataset) < below), "10B<n<100B")],
        "tags": ["visiontune"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": s, "path": f"{s}-*.parquet"} for s, count in info.splits.items() if count],
            }
        ],
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("visiontune"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown, not HTML
    )
    environment.filters["plain"] = plain
    left_out = Counter(row.code for row in info.left_out)
    examples = {row.code: row.found for row in reversed(info.left_out)}
    published = published_fonts(dataset)
    facts = {
        "front": yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip(),
        "repository": repository,
        "folder": repository.rpartition("/")[2],
        "info": info,
        "labels": _labels(info),
        "sources": [(name, rows, _source_licence(info, name)) for name, rows in info.provenance.sources.items()],
        "licence": front["license"],
        "left_out": [(code, count, examples[code]) for code, count in left_out.most_common()],
        "fonts": [(font.name, path.name, font_terms(path, font)) for font, path in _own_fonts(dataset)],
        "package_fonts": [font.name for font in (info.pages.fonts if info.pages else ()) if font not in published],
    }
    return environment.get_template("dataset_card.md").render(facts)


def licence(info: DatasetInfo) -> dict[str, Any]:
    """The front matter's lines about the licence: those of the known corpora, where all sources are such."""
    corpora = [CORPORA[name] for name in info.provenance.corpora]
    if not corpora or set(info.provenance.sources) != set(info.provenance.corpora):
        return {"license": UNKNOWN}
    found = sorted({corpus.licence for corpus in corpora})
    if all(re.fullmatch(r"[A-Za-z0-9.-]+", one) for one in found):
        names = [one.lower() for one in found]
        return {"license": names[0] if len(names) == 1 else names}
    return {
        "license": "other",
        "license_name": "see-the-sources",
        "license_link": f"https://huggingface.co/datasets/{corpora[0].hub}",
    }


def language(info: DatasetInfo) -> dict[str, Any]:
    """The front matter's line about the languages, where all sources are known corpora."""
    if not info.provenance.corpora or set(info.provenance.sources) != set(info.provenance.corpora):
        return {}
    return {"language": sorted({LANGUAGES[CORPORA[name].language] for name in info.provenance.corpora})}


def published_fonts(dataset: Dataset) -> list[FontRef]:
    """The fonts that lie in the dataset's folder and travel with it: all but the package's own."""
    return [font for font, _ in _own_fonts(dataset)]


def font_terms(path: Path, font: FontRef) -> str:
    """The first line of what a font file says of its licence, else of its copyright; "" where it says neither."""
    face: Any = Font(path, font.face).face
    said = next((text for entry in (LICENCE, COPYRIGHT) if (text := face.get_name(entry))), "")
    return said.strip().partition("\n")[0]


def _own_fonts(dataset: Dataset) -> list[tuple[FontRef, Path]]:
    fonts = dataset.info.pages.fonts if dataset.info.pages else ()
    paths = [(font, font_path(dataset.path, font)) for font in fonts]
    return [(font, path) for font, path in paths if path.parent == dataset.path]


def _labels(info: DatasetInfo) -> list[tuple[str, int]]:
    return sorted((info.labels or {}).items(), key=lambda label: -label[1])[:LABELS_SHOWN]


def _source_licence(info: DatasetInfo, name: str) -> str:
    return CORPORA[name].licence if name in info.provenance.corpora else "not known here"
