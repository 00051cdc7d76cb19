"""Cards of datasets, read as the hub reads them."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard

import visiontune
from visiontune.data.corpora import CORPORA
from visiontune.data.dataset import Dataset
from visiontune.data.pages import DEFAULT_FONT
from visiontune.data.prepare import prepare
from visiontune.data.sources import Source
from visiontune.exports.dataset_card import LANGUAGES, dataset_card

NOTO = Path(__file__).parents[1] / "data/fonts/1-NotoSans.ttf"


def texts(path: Path, count: int, **changes: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"id": f"{path.stem} {i}", "text": f"{path.stem} number {i}. " * 9, "summary": f"S {i}"} for i in range(count)
    ]
    path.write_text("".join(json.dumps(row | changes) + "\n" for row in rows))
    return path


def front(dataset: Dataset, known: dict[str, Any] | None = None) -> dict[str, Any]:
    return DatasetCard(dataset_card(dataset, "someone/texts", known or {})).data.to_dict()


def test_the_front_matter_names_files_and_size(tmp_path: Path) -> None:
    found = front(visiontune.prepare(texts(tmp_path / "a.jsonl", 3), tmp_path / "out"))
    files = [{"split": split, "path": f"{split}-*.parquet"} for split in ("train", "validation", "test")]
    assert found["configs"] == [{"config_name": "default", "data_files": files}]
    assert (found["size_categories"], found["license"]) == (["n<1K"], "unknown") and "language" not in found


@pytest.mark.parametrize(
    ("corpora", "expected"),
    [
        (["piaf"], {"license": "mit", "language": ["fr"]}),
        (["billsum", "squad-fr"], {"license": ["cc-by-4.0", "cc0-1.0"], "language": ["en", "fr"]}),
        (["xsum"], {"license": "other", "license_name": "see-the-sources", "language": ["en"]}),
    ],
)
def test_licence_and_language_are_those_of_known_corpora(
    tmp_path: Path, corpora: list[str], expected: dict[str, Any]
) -> None:
    sources = [
        Source(texts(tmp_path / name / "train.jsonl", 9 + i).parent, None, name) for i, name in enumerate(corpora)
    ]
    dataset = prepare(sources, tmp_path / "out")
    assert expected.items() <= front(dataset).items()
    assert all(f"| {CORPORA[name].licence} |" in dataset_card(dataset, "someone/texts", {}) for name in corpora)
    # A licence that the card on the hub names does not replace one that is known.
    assert front(dataset, {"license": "apache-2.0"})["license"] == expected["license"]


def test_a_folder_that_is_called_like_a_corpus_has_no_known_licence(tmp_path: Path) -> None:
    assert (
        front(visiontune.prepare(texts(tmp_path / "piaf/train.jsonl", 9).parent, tmp_path / "out"))["license"]
        == "unknown"
    )
    own = texts(tmp_path / "own.jsonl", 7)
    sources = [Source(tmp_path / "piaf", None, "piaf"), Source(own)]
    found = front(prepare(sources, tmp_path / "both"))
    assert found["license"] == "unknown" and "language" not in found


def test_every_language_of_the_table_of_corpora_has_a_code() -> None:
    assert {corpus.language for corpus in CORPORA.values()} == LANGUAGES.keys()


def test_fonts_that_are_published_are_named_with_their_terms(tmp_path: Path) -> None:
    source = texts(tmp_path / "a.jsonl", 4)
    dataset = visiontune.prepare(source, tmp_path / "out", fonts=[DEFAULT_FONT, NOTO])
    card = dataset_card(dataset, "someone/texts", {})
    (file,) = (path.name for path in (tmp_path / "out").glob("*.font"))
    assert "- DejaVuSans comes with visiontune." in card
    assert (
        f"- 1-NotoSans is published here as `{file}`. The file says: This Font Software is licensed under the SIL"
        in card
    )


def test_what_was_left_out_is_counted_by_reason(tmp_path: Path) -> None:
    source = texts(tmp_path / "a.jsonl", 4)
    with source.open("a") as file:
        file.write("no json\n" + json.dumps({"id": "x", "text": "\u4e00" * 9, "summary": "s"}) + "\n" + "neither\n")
    card = dataset_card(visiontune.prepare(source, tmp_path / "out"), "someone/texts", {})
    assert "Rows of the sources that were left out: 3. " in card
    assert "| broken-line | 2 |" in card and "| missing-glyphs | 1 |" in card


def test_the_card_says_the_pages_and_no_path_of_this_computer(tmp_path: Path) -> None:
    source = texts(tmp_path / "a.jsonl", 4)
    dataset = visiontune.prepare(source, tmp_path / "out", pages={"font_size": 31, "width": 640})
    card = dataset_card(dataset, "someone/texts", {})
    assert "pages of 640 x 1024 pixels" in card and "Font size 31 pixels" in card and str(tmp_path) not in card
    assert 'load_dataset("someone/texts")' in card
    assert sum(pq.read_metadata(dataset.path / name).num_rows for name in dataset.info.files) == 4
    assert "\n4 long texts, each with an answer" in card
