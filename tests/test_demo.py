"""The demonstrations keep their promise."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from visiontune import demo, demo_pages, demo_responses
from visiontune.cli import main
from visiontune.demo_pages import manual_words, words_of, write_words
from visiontune.errors import RequirementError
from visiontune.run import Run
from visiontune.training import plan


def shown(name: str, out: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What `visiontune demo NAME` says, which must succeed."""
    with pytest.raises(SystemExit) as stopped:
        main(["demo", name, "--out", str(out), "--json"])
    assert stopped.value.code == 0
    return json.loads(capsys.readouterr().out)


def test_the_demo_reads_digits_and_proves_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Fewer steps, and on three of the digits, than `make demo` takes, which requires 0.96 of itself.
    write_all = demo.write_digits

    def write_three(folder: Path) -> None:
        write_all(folder)
        assert len(list(folder.glob("*/*.png"))) == 1797
        for scan in folder.glob("*/*.png"):
            if scan.parent.name not in "013" or scan.stem >= "1150":
                scan.unlink()
        for place in folder.iterdir():
            if not any(place.iterdir()):
                place.rmdir()

    monkeypatch.setattr(demo, "write_digits", write_three)
    monkeypatch.setattr(plan, "TINY_STEPS", 60)
    monkeypatch.setattr(demo, "REQUIRED", "accuracy>=0.7")
    result = shown("digits", tmp_path, capsys)
    assert result["accuracy"]["value"] >= 0.7
    assert set(result["receipts"].values()) <= {"passed", "not applicable"}
    assert len(result["receipts"]) == 7
    assert set(result["certificate"].values()) == {"passed"} and len(result["certificate"]) == 12
    assert len(list(Path(result["shipped"]).glob("*.gguf"))) == 2


def test_the_words_of_the_pages_demo_are_known_to_one_split_only(tmp_path: Path) -> None:
    words = manual_words()
    write_words(words, tmp_path / "words.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "words.jsonl").read_text().splitlines()]
    assert len({row["text"] for row in rows}) == len(rows) == len(words) + demo_pages.MADE_UP
    assert all(row["summary"] == row["text"] and re.fullmatch("[a-z]{3,6}", row["text"]) for row in rows)
    held_out = {split: {row["text"] for row in rows if row["split"] == split} for split in ("test", "validation")}
    assert {split: len(found) for split, found in held_out.items()} == {"test": 200, "validation": 64}
    assert held_out["test"] | held_out["validation"] < set(words)  # no made-up string among them
    write_words(words, tmp_path / "again.jsonl")
    write_words(words, tmp_path / "other.jsonl", seed=1)
    first, again, other = ((tmp_path / f"{name}.jsonl").read_bytes() for name in ("words", "again", "other"))
    assert first == again != other


def test_words_are_those_of_running_text_and_not_names_in_code() -> None:
    assert words_of(["The cat sat; a long-lived os.path and `code`, eval() or __init__."]) == ["and", "cat", "sat"]


def test_the_pages_demo_goes_from_words_to_answers_and_uses_what_stands_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So short a run learns nothing: `bench/read.py` measures what the demo reaches, and the demo requires it."""
    monkeypatch.setattr(demo_pages, "STEPS", 4)
    monkeypatch.setattr(demo_pages, "MADE_UP", 10)
    monkeypatch.setattr(demo_pages, "TEST_WORDS", 6)
    monkeypatch.setattr(demo_pages, "VALIDATION_WORDS", 2)
    monkeypatch.setattr(demo_pages, "REQUIRED", "exact_match>=0")
    quick = {"machine.threads": 1, "machine.workers": 0, "batch.samples": 8, "batch.window": 8}
    monkeypatch.setattr(demo_pages, "LEARNING", {**demo_pages.LEARNING, **quick})
    first, again = (shown("pages", tmp_path / "out", capsys) for _ in range(2))
    assert first["exact_match"]["n"] == 6 and len(first["predictions"]) == 5
    assert set(first["beside"]) == {"blank page", "exchanged pages"}
    assert Path(first["report"]).is_file()
    assert len(Run(tmp_path / "out/run").metrics("step")) == 4  # the second time nothing was trained
    assert again["predictions"] == first["predictions"]
    monkeypatch.setattr(demo_pages, "REQUIRED", "exact_match>=0.7")
    with pytest.raises(RequirementError):
        demo_pages.pages(tmp_path / "out")


def test_the_responses_demo_goes_from_simulated_sessions_to_a_new_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So short a run learns little: `bench/responses.py` measures what a core reaches."""
    short = {"SESSIONS": 2, "UNITS": 5, "NEW_UNITS": 3, "SECONDS": 40.0, "REPEATS": (1, 4)}
    for name, value in short.items():
        monkeypatch.setattr(demo_responses, name, value)
    quick = {"schedule.steps": 4, "evaluation.every": 4, "checkpoints.every": 4, "machine.workers": 0}
    monkeypatch.setattr(demo_responses, "CHOICES", {**demo_responses.CHOICES, **quick})
    first, again = (shown("responses", tmp_path / "out", capsys) for _ in range(2))
    core, new = first["core"], first["new session on the frozen core"]
    assert core["oracle"] > 0.2 and new["oracle"] > 0.2 and core["bits_per_spike"] < core["oracle"]
    assert Path(core["report"]).is_file() and Path(new["report"]).is_file()
    assert again["core"] == core  # the second time nothing was trained
