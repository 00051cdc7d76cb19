"""Words for people."""

import shlex
from pathlib import Path

import pytest

from visiontune.words import command, counted


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (counted(0, "fault"), "0 faults"),
        (counted(1, "fault"), "1 fault"),
        (counted(2, "class", "classes"), "2 classes"),
        (counted(1, "row was", "rows were"), "1 row was"),
        (counted(1.0, "epoch", form="g"), "1 epoch"),
        (counted(0.5, "epoch", form="g"), "0.5 epochs"),
        (counted(1.0004, "epoch", form=".3g"), "1 epoch"),
        (counted(1234.4, "second", form=",.0f"), "1,234 seconds"),
    ],
)
def test_one_thing_is_one_thing(said: str, expected: str) -> None:
    assert said == expected


def test_a_printed_command_can_be_typed_whatever_the_path_is_called() -> None:
    path = Path("runs/it's t c")
    assert shlex.split(command("evaluate", path, "--split", "test")) == [
        *("visiontune", "evaluate", str(path), "--split", "test")
    ]
    assert command("resume", Path("runs/a")) == "visiontune resume runs/a", "plain paths stay plain"
