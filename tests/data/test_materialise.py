"""Pages as image files: the pixels that training sees, in a form that other tools read."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

import visiontune
from tests.killed import Counted, count_changes_of_the_disk, killed
from visiontune.data import materialise
from visiontune.data.dataset import Dataset
from visiontune.data.materialise import file_stem, write_pages
from visiontune.data.pages import pages
from visiontune.data.prepare import prepare
from visiontune.data.sample import Document
from visiontune.data.split import SPLITS
from visiontune.errors import DataError

SMALL_PAGES = {"width": 256, "height": 128, "margins": (8, 8, 8, 8), "font_size": 12}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(materialise, "CHUNK_ROWS", 2)


@pytest.fixture
def articles(tmp_path: Path) -> Callable[..., Path]:
    """`articles(20)`: a table of so many different texts of one to four pages, some asked about."""

    def make(count: int) -> Path:
        rows = []
        for i in range(count):
            draw = random.Random(i)
            words = ("".join(draw.choices("aeioulmnrst", k=draw.randint(2, 9))) for _ in range(20 + 40 * (i % 4)))
            question = {"question": f"Which {i}?"} if i % 2 else {}
            rows.append({"id": f"Doc/{i}", "text": " ".join(words), "answer": f"Answer “{i}”", **question})
        path = tmp_path / "articles.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return make


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def drawn(dataset: Dataset) -> dict[tuple[str, str, int], np.ndarray]:
    """The pages as training draws them, by split, id and number."""
    spec, found = dataset.info.pages, {}
    assert spec is not None
    for split in SPLITS:
        for i in range(dataset.count(split)):
            sample = dataset.sample(split, i)
            assert isinstance(sample.seen, Document)
            for number, page in enumerate(pages(sample.seen.text, spec, dataset.fonts()), start=1):
                found[split, sample.id, number] = page
    return found


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_the_files_have_the_pixels_and_the_texts_of_the_dataset(
    articles: Callable[..., Path], tmp_path: Path, kind: materialise.ImageFormat
) -> None:
    dataset = prepare(articles(20), tmp_path / "out", pages=SMALL_PAGES, materialise=kind)
    expected = drawn(dataset)
    found = {}
    for split in SPLITS:
        for line in (tmp_path / f"out/pages/{split}/metadata.jsonl").read_text().splitlines():
            facts = json.loads(line)
            image = Image.open(tmp_path / "out/pages" / split / facts["file_name"])
            assert (image.format or "").lower() == kind
            assert image.mode == ("L" if kind == "png" else "RGB")
            found[split, facts["id"], facts["page"]] = np.asarray(image.convert("L"))
            sample = dataset.sample(split, dataset.index(split).ids.index(facts["id"]))
            assert (facts["prompt"], facts["answer"]) == (sample.target.prompt, sample.target.answer)
            assert facts["pages"] == sum(key[:2] == (split, facts["id"]) for key in expected)
    assert found.keys() == expected.keys() and len(found) > 30
    assert all(np.array_equal(found[key], page) for key, page in expected.items())


def test_datasets_reads_the_folder_as_images(articles: Callable[..., Path], tmp_path: Path) -> None:
    dataset = prepare(articles(20), tmp_path / "out", pages=SMALL_PAGES, materialise="png")
    expected = drawn(dataset)
    cache = str(tmp_path / "cache")
    loaded = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "out/pages"), cache_dir=cache)
    rows = [(split, row) for split in loaded for row in loaded[split]]
    assert len(rows) == len(expected)
    for split, row in rows:
        assert np.array_equal(np.asarray(row["image"]), expected[split, row["id"], row["page"]])


def test_pages_as_files_change_nothing_else(articles: Callable[..., Path], tmp_path: Path) -> None:
    plain = prepare(articles(9), tmp_path / "plain", pages=SMALL_PAGES)
    both = prepare(articles(9), tmp_path / "both", pages=SMALL_PAGES, materialise="png")
    own = {name: data for name, data in files(both.path).items() if not name.startswith("pages/")}
    assert own == files(plain.path)
    later = prepare(articles(9), tmp_path / "plain", materialise="png")
    assert later.info.content_hash == plain.info.content_hash and files(later.path) == files(both.path)
    assert files(prepare(articles(9), tmp_path / "plain").path) == files(both.path)  # they stay


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_no_file(articles: Callable[..., Path], tmp_path: Path, workers: int) -> None:
    dataset = prepare(articles(9), tmp_path / "out", pages=SMALL_PAGES)
    write_pages(dataset, "png", 1)
    expected = files(dataset.path / "pages")
    other = prepare(articles(9), tmp_path / "other", pages=SMALL_PAGES, materialise="png", workers=workers)
    assert files(other.path / "pages") == expected


def test_pages_that_are_there_are_not_drawn_again(
    articles: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = prepare(articles(9), tmp_path / "out", pages=SMALL_PAGES, materialise="png")
    before = files(dataset.path)
    with monkeypatch.context() as patch:
        patch.setattr(materialise, "pages", None)
        prepare(articles(9), tmp_path / "out", materialise="png")
    lost = next((dataset.path / "pages/train").glob("*.png"))
    lost.unlink()
    (dataset.path / "pages/test/stray.png").write_bytes(b"x")
    prepare(articles(9), tmp_path / "out", materialise="png")
    assert files(dataset.path) == before


def test_pages_of_another_state_of_the_dataset_do_not_stay(
    articles: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(articles(9), tmp_path / "out", pages=SMALL_PAGES, materialise="webp")
    extended = prepare(articles(14), tmp_path / "out", pages={"font_size": 14}, materialise="png")
    fresh = prepare(articles(14), tmp_path / "fresh", pages={**SMALL_PAGES, "font_size": 14}, materialise="png")
    pixels = [set(files(dataset.path / "pages").values()) for dataset in (extended, fresh)]
    assert len([name for name in files(extended.path / "pages") if name.endswith("png")]) == len(drawn(extended))
    assert not list(extended.path.rglob("*.webp")) and len(pixels[0] & pixels[1]) >= len(drawn(extended))
    prepare(articles(20), tmp_path / "out")
    assert not (tmp_path / "out/pages").exists()
    assert "did not show the dataset as it is now" in capsys.readouterr().err


def killed_preparing(moment: int, source: Path, out: Path, font_size: int = 12) -> bool:
    """Prepare in a child that dies by SIGKILL at its moment-th change of the disk; whether it did not get that far."""

    def work(counted: Counted) -> None:
        count_changes_of_the_disk(counted)
        Image.Image.save = counted(Image.Image.save)
        prepare(source, out, pages={**SMALL_PAGES, "font_size": font_size}, materialise="png", workers=1)

    return killed(moment, work)


def test_killed_again_and_again_it_ends_the_same(
    articles: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(materialise, "CHUNK_ROWS", 1)
    source = articles(7)
    expected = prepare(source, tmp_path / "expected", pages=SMALL_PAGES, materialise="png", workers=1)
    attempts = 1
    while not killed_preparing(30, source, tmp_path / "out"):
        attempts += 1
        assert attempts < 20
    assert attempts > 2
    assert files(tmp_path / "out") == files(expected.path)


def test_what_a_killed_preparation_drew_is_not_taken_for_other_pages(
    articles: Callable[..., Path], tmp_path: Path
) -> None:
    expected = prepare(articles(6), tmp_path / "expected", pages=SMALL_PAGES, materialise="png", workers=1)
    for moment in (30, 37, 44, 51):
        out = tmp_path / f"out {moment}"
        assert not killed_preparing(moment, articles(6), out, font_size=13)
        assert list(out.rglob("*.png"))
        prepare(articles(6), out, pages=SMALL_PAGES, materialise="png", workers=1)
        assert files(out / "pages") == files(expected.path / "pages")


def test_pages_that_others_were_drawn_over_are_drawn_again(
    articles: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = materialise._draw  # pyright: ignore[reportPrivateUsage]

    def stopped_behind(chunk: Any) -> Any:
        if chunk.start:
            raise KeyboardInterrupt
        return draw(chunk)

    def prepared(out: Path, font_size: int) -> Dataset:
        pages_of = {**SMALL_PAGES, "font_size": font_size}
        return prepare(articles(20), out, pages=pages_of, materialise="png", workers=1)

    expected = prepared(tmp_path / "expected", 12)
    with monkeypatch.context() as patch:
        patch.setattr(materialise, "_draw", stopped_behind)
        for font_size in (12, 13):
            with pytest.raises(KeyboardInterrupt):
                prepared(tmp_path / "out", font_size)
    assert files(prepared(tmp_path / "out", 12).path) == files(expected.path)


def test_names_of_files_are_safe_and_never_meet() -> None:
    ids = [
        "a",
        "A",
        "a.",
        ".a",
        "..",
        "a/b",
        "a_b",
        "a\\b",
        "a b",
        "é",
        "e\u0301",
        "x" * 100,
        "x" * 101,
        "x" * 300,
        "a~b",
    ]
    ids += ["laws.jsonl/17", "laws.jsonl_17", "con", "a\n", "", " ", "a-001", "ſ", "s", "ß", "ẞ"]
    names = [file_stem(id) for id in ids]
    assert len({name.casefold() for name in names}) == len(ids)
    assert all(len(name) < 120 and name.isascii() and not set(name) & set('/\\:*?"<>| \n') for name in names)
    assert not any(name.startswith(".") for name in names) and file_stem("a") == "a"
    assert all(file_stem(name) != name for name in names if "~" in name)  # so no plain id is called like another's hash


def test_images_and_unknown_formats_are_refused(
    classes: Callable[..., Path], articles: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="these are images"):
        visiontune.prepare(classes({"cat": 3}), tmp_path / "out", materialise="png")
    with pytest.raises(DataError, match="not written as 'gif'") as caught:
        visiontune.prepare(articles(3), tmp_path / "out", materialise="gif")  # pyright: ignore[reportArgumentType]
    assert caught.value.fix == "formats: png, webp" and not (tmp_path / "out").exists()
    wide = prepare(articles(3), tmp_path / "wide", pages={"width": 16384, "height": 64, "margins": (0, 0, 0, 0)})
    with pytest.raises(DataError, match="at most 16383 pixels"):
        write_pages(wide, "webp")
