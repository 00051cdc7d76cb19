"""The demonstration keeps its promise."""

import json
from pathlib import Path

import pytest

from visiontune.cli import main


def test_the_demo_reads_digits_and_proves_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "--out", str(tmp_path), "--json"])
    result = json.loads(capsys.readouterr().out)
    assert stopped.value.code == 0
    assert result["accuracy"]["value"] >= 0.96
    assert set(result["receipts"].values()) <= {"passed", "not applicable"}
    assert len(result["receipts"]) == 7
    assert set(result["certificate"].values()) == {"passed"} and len(result["certificate"]) == 12
    assert len(list(Path(result["shipped"]).glob("*.gguf"))) == 2
