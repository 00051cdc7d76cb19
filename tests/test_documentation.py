"""The documentation is true: its commands and code run, its tables are made from the code."""

import json
import re
import shlex
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.exports.onnx_models import shallow_config
from tests.written_recordings import write_npz
from visiontune.cli import main
from visiontune.data.dataset import Dataset
from visiontune.exports.certificate import CHECKS, LIMITS, RUN_CHECKS
from visiontune.models import rf_detr
from visiontune.models.load import TINY
from visiontune.recipe import field_names
from visiontune.recipe_files import reference
from visiontune.simulated_neurons import simulate
from visiontune.training import derived, plan, receptive_fields
from visiontune.training.receipts import NAMES

ROOT = Path(__file__).parent.parent


def blocks(language: str, page: str = "README.md") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)


def test_the_commands_and_the_code_of_the_readme_run(
    digits_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "TINY_STEPS", 60)  # enough for the accuracy that the README requires of three classes
    monkeypatch.setattr(derived, "often", lambda steps, times: -(-steps // 2))  # not eight or ten times a run
    monkeypatch.setattr(receptive_fields, "STEPS", 1)
    monkeypatch.setattr(rf_detr, "tiny_config", shallow_config)
    for label in "013":
        shutil.copytree(digits_folder / label, tmp_path / "photos" / label)
    _write_articles(tmp_path)
    _draw_objects(tmp_path)
    _simulate_sessions(tmp_path)
    commands = [shlex.split(line) for block in blocks("sh") for line in block.splitlines()]
    assert len(commands) >= 13
    for name, *arguments in commands:
        assert name == "visiontune"
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 0, arguments
    for code in blocks("python"):
        exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "runs/a/report.html").is_file() and (tmp_path / "merged/config.json").is_file()
    assert (tmp_path / "ship/certificate.html").is_file()
    with np.load(tmp_path / "rates.npz") as rates:
        assert rates["rates"].shape == (100, 5)
    assert (tmp_path / "detector/model.onnx").is_file() and (tmp_path / "runs/student/distilled").is_dir()
    ratios = json.loads((tmp_path / "runs/s/evaluations/test/ratios.json").read_text())
    assert len(ratios["points"]) + len(ratios["unreachable"]) == 3  # two asked for, and the run's own pages


def test_the_example_of_the_page_on_callbacks_runs(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(digits.path, tmp_path / "data")
    (code,) = blocks("python", "docs/callbacks.md")
    exec(compile(code, "docs/callbacks.md", "exec"), {"__name__": "docs"})
    assert capsys.readouterr().out.startswith("step 5: loss ")
    assert (tmp_path / "copies/e/step-10/trained.safetensors").is_file()


def _simulate_sessions(folder: Path) -> None:
    """Two sessions of neurons, another one, and 100 frames of the first as a movie."""
    (folder / "sessions").mkdir()
    for number, place in enumerate(("sessions/session-1", "sessions/session-2", "new-session")):
        made = simulate(Path(place).name, seed=number, units=5, seconds=40, size=(16, 16), repeats=(1, 4))
        write_npz(made, folder / f"{place}.npz")
        if number == 0:
            np.save(folder / "movie.npy", made.recording.stimulus[:100])


def _draw_objects(folder: Path) -> None:
    """16 annotated images, three more without annotations, and one to ask about.

    Objects stand closely, so that a teacher of three steps has some findings right: a student refuses one without.
    """
    (folder / "images").mkdir()
    (folder / "more").mkdir()
    images, annotations = [], []
    for number in range(16):
        corners = _draw_squares(folder / f"images/{number:04d}.png", number)
        images.append({"id": number, "file_name": f"{number:04d}.png", "width": 64, "height": 64})
        for left, top in corners:
            outline = [left, top, left + 13, top, left + 13, top + 13, left, top + 13]
            box = {"bbox": [left, top, 13, 13], "area": 169, "segmentation": [outline], "iscrowd": 0}
            annotations.append({"id": len(annotations), "image_id": number, "category_id": 1, **box})
    coco = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "square"}]}
    (folder / "annotations.json").write_text(json.dumps(coco))
    for number, name in enumerate(("street.png", "more/0.png", "more/1.png", "more/2.png")):
        _draw_squares(folder / name, 100 + number)


def _draw_squares(path: Path, seed: int) -> list[tuple[int, int]]:
    """An image of 64 x 64 pixels with a square of 13 in each cell of a grid of 16; returns their upper left corners."""
    generator = np.random.default_rng(seed)
    image = Image.fromarray(generator.integers(100, 140, (64, 64, 3), dtype=np.uint8))
    moved = generator.integers(0, 4, (4, 4, 2)).tolist()
    corners = [(16 * i + moved[i][j][0], 16 * j + moved[i][j][1]) for i in range(4) for j in range(4)]
    for left, top in corners:
        shade = tuple(generator.integers(0, 80, 3).tolist())
        ImageDraw.Draw(image).rectangle((left, top, left + 12, top + 12), fill=shade)
    image.save(path)
    return corners


def _write_articles(folder: Path) -> None:
    """30 paragraphs of the Universal Declaration of Human Rights, each with its first words as the summary."""
    text = (ROOT / "tests/data/udhr/en.txt").read_text(encoding="utf-8")
    paragraphs = [paragraph for paragraph in text.split("\n\n") if len(paragraph) > 80][:30]
    rows = [json.dumps({"text": one, "summary": " ".join(one.split()[:4])}) for one in paragraphs]
    (folder / "articles.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "article.txt").write_text(paragraphs[0])


def test_the_page_on_texts_names_fields_families_and_packing_as_they_are() -> None:
    page = (ROOT / "docs" / "text.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:batch|data|lora)\.[a-z_]+)", page))
    assert named and named <= set(field_names())
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| ")][1:]
    packs = {name: row[-2].strip() == "yes" for row in rows for name in re.findall("tiny/[a-z0-9-]+", row[2])}
    assert packs == {name: name != "tiny/gemma3" for name in TINY}  # what tests/models/test_packing.py proves


def test_the_recipe_page_lists_every_field_as_it_is() -> None:
    assert (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8").endswith(reference())


def test_the_receipts_page_names_every_receipt() -> None:
    page = (ROOT / "docs" / "receipts.md").read_text(encoding="utf-8")
    assert [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")][1:] == list(NAMES)


def test_the_certificate_page_names_every_check() -> None:
    page = (ROOT / "docs" / "certificate.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| ")]
    named = {row[1].strip(): [cell.strip() for cell in row[2:-1]] for row in rows}
    assert {name: named[name][0] for name in CHECKS | RUN_CHECKS} == CHECKS | RUN_CHECKS
    for quantisation, limits in LIMITS.items():
        assert [float(cell) for cell in named[quantisation]] == list(asdict(limits).values()), quantisation


def test_every_path_that_a_page_names_exists() -> None:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for path in re.findall(r"`((?:docs|bench|tests|src|examples)/[\w/.]+)`", page.read_text(encoding="utf-8")):
            assert (ROOT / path).exists(), f"{page.name} names {path}"
        for path in re.findall(
            r"`((?:data|models|training|exports|metrics)/\w+\.py)`", page.read_text(encoding="utf-8")
        ):
            assert (ROOT / "src/visiontune" / path).exists(), f"{page.name} names {path}"
