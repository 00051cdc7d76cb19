"""The commands of docs/data.md run as they stand there."""

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.planted_texts import sound, write
from visiontune.cli import main
from visiontune.data.dataset import Dataset
from visiontune.data.faults import LEFT_OUT

PAGE = (Path(__file__).parents[2] / "docs/data.md").read_text("utf-8")
ENGLISH = (Path(__file__).parent / "udhr/en.txt").read_text("utf-8")


def test_the_commands_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, first in (("articles", 0), ("laws", 4000)):
        rows = [{"text": ENGLISH[first + 99 * i : first + 99 * i + 800], "summary": f"{name} {i}"} for i in range(9)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    question = {"text": ENGLISH, "question": "Until when?", "answer": "until proved guilty"}
    Path("questions.jsonl").write_text(json.dumps(question) + "\n")
    chats = Path("chats")
    chats.mkdir()
    write(chats, sound(chats)).rename("chats.jsonl")
    for image in chats.iterdir():
        image.rename(image.name)
    chats.rmdir()
    commands = [
        shlex.split(line)
        for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.M | re.S)
        for line in block.splitlines()
    ]
    assert len(commands) == 9
    for name, *arguments in commands:
        assert name == "visiontune"
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 0, arguments
    assert len(Dataset.open(Path("chats"))) == 24 and Path("chats/messages/train.parquet").is_file()
    assert len(Dataset.open(Path("texts"))) == 18 and Dataset.open(Path("questions")).info.windows == 1


def test_the_page_names_only_faults_and_options_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    faults = set(re.findall(r"`((?:too|context)-[a-z-]+)`", PAGE))
    assert faults == {"too-many-pages", "context-window"} and "too-many-pages" in LEFT_OUT
    helps = ""
    for verb in ("prepare", "inspect"):
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        helps += capsys.readouterr().out
    assert [option for option in set(re.findall(r"`(--[a-z-]+)", PAGE)) if option not in helps] == []
