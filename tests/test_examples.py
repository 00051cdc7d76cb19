"""Every script in examples/ runs, quickly here, and its recipe is valid and used."""

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import SAME_EVERYWHERE
from visiontune.cli.command_line import app, recipe_options
from visiontune.data.dataset import Dataset
from visiontune.demo_shapes import draw_source
from visiontune.recipe import check_names, fragment_names
from visiontune.recipe_files import read_fragment
from visiontune.run import Run

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
# Two steps on few samples; too few are held out for the receipt "image matters", which so short a run could not pass.
SMALL: dict[str, Any] = {"LIMIT": 48, "IMAGES": 48, "SECONDS": 40, "SIZE": (12, 12), "COMPARED": 2}
QUICK: dict[str, Any] = {
    "schedule.steps": 2,
    "evaluation.every": 2,
    "data.limit": 12,
    "batch.samples": 4,
    "batch.window": 8,
    **SAME_EVERYWHERE,
}


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_an_example_runs_from_its_own_data_to_its_last_line(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = loaded(path)
    for name, value in SMALL.items():
        if name in vars(script):
            monkeypatch.setattr(script, name, value)
    script.main(out=tmp_path, overrides=QUICK)
    runs = [Run(file.parent) for file in sorted(tmp_path.glob("*/recipe.yaml"))]
    said = capsys.readouterr().out.splitlines()
    assert runs and all(run.status == "finished" and run.report_path.is_file() for run in runs)
    assert str(tmp_path) in said[-1]
    for section, values in read_fragment(path.with_suffix(".yaml")).items():
        for name, value in values.items():
            if f"{section}.{name}" not in QUICK:
                assert [run.recipe.model_dump(mode="json")[section][name] for run in runs] == [value] * len(runs)


def test_an_example_learns_from_the_data_of_a_person(tmp_path: Path) -> None:
    drawn = draw_source(tmp_path / "mine", 24, size=(64, 64), classes=("cross",), seed=1)
    loaded(EXAMPLES / "masks.py").main(drawn, tmp_path / "out", overrides=QUICK)
    assert Run(tmp_path / "out/run").recipe.objects is not None
    assert Dataset.open(tmp_path / "out/data").index("train").classes == ("cross",)


def test_every_script_has_a_recipe_and_every_recipe_a_script() -> None:
    recipes = sorted(EXAMPLES.glob("*.yaml"))
    assert [path.stem for path in recipes] == [path.stem for path in SCRIPTS]
    for path in recipes:
        check_names(fragment_names(read_fragment(path)))
    others = {path.name for path in EXAMPLES.iterdir()} - {path.name for path in (*recipes, *SCRIPTS)}
    assert others - {"__pycache__"} == {"README.md"}


def test_a_script_is_short_starts_with_its_command_and_takes_the_data_of_a_person() -> None:
    for path in SCRIPTS:
        text = path.read_text(encoding="utf-8")
        assert f"\n    python examples/{path.name} [" in text.split('"""')[1]
        assert f"visiontune train {{}} --recipe examples/{path.stem}.yaml --out" in re.sub(
            r"(?<=train )[A-Z]+.*?(?= --recipe)", "{}", text.split('"""')[1]
        )
        assert text.endswith('\nif __name__ == "__main__":\n    main(*map(Path, sys.argv[1:3]))\n')
        assert len(text.splitlines()) <= 80


def test_the_commands_in_the_scripts_are_understood() -> None:
    for path in SCRIPTS:
        (command,) = re.findall(r"^.*?visiontune (train .*)$", path.read_text(encoding="utf-8"), re.M)
        rest, overrides = recipe_options(shlex.split(command))
        app.parse_args(rest, print_error=False, exit_on_error=False)
        assert not overrides


def test_the_page_lists_every_script_with_its_recipe() -> None:
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    rows = [re.findall(r"\]\((\w+\.\w+)\)", line)[:2] for line in page.splitlines() if line.startswith("| ")][1:]
    assert sorted(rows) == [[path.name, f"{path.stem}.yaml"] for path in SCRIPTS]
