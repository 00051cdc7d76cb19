"""The wheel holds all that an installation needs, and starts from elsewhere."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (made,) = out.glob("*.whl")
    return made


def test_the_wheel_holds_code_template_licence_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "visiontune/templates/report.html" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert all(name.startswith(("visiontune/", "visiontune-")) for name in names)


def test_the_installed_wheel_helps_and_examines_the_machine(wheel: Path, tmp_path: Path) -> None:
    """A fresh environment that has the wheel itself and sees only the dependencies of this one."""
    venv.create(tmp_path / "env", with_pip=False)
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    here = Path(next(path for path in sys.path if path.endswith("site-packages")))
    # The dependencies, without the editable installation of this checkout (its .pth file is not read from there).
    (site / "dependencies.pth").write_text(f"{here}\n")
    python = tmp_path / "env" / "bin" / "python"

    def run(*arguments: str) -> str:
        command = [str(python), "-I", "-m", "visiontune", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout

    where = subprocess.run(
        [python, "-I", "-c", "import visiontune; print(visiontune.__file__)"], capture_output=True, text=True
    )
    assert str(tmp_path) in where.stdout
    assert "Commands" in run("--help")
    assert '"cores"' in run("doctor", "--json")
