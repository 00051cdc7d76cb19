"""Words for people: a number with what it counts, a command that can be typed."""

import re
import shlex
from pathlib import Path


def counted(number: float, thing: str, things: str | None = None, form: str = "") -> str:
    """`1 fault`, `2 faults`; `things` where the plural is not made with an s. `form` writes the number, as f-strings
    have it."""
    written = format(number, form)
    return f"{written} {thing if written == '1' else things or thing + 's'}"


def natural(label: str) -> tuple[list[tuple[int, str]], str]:
    """A key that sorts "2" before "10"."""
    parts = re.split(r"([0-9]+)", label)
    return [(int(part) if i % 2 else 0, "" if i % 2 else part) for i, part in enumerate(parts)], label


def command(*parts: str | Path) -> str:
    """A command of visiontune for a shell: parts with blanks are quoted."""
    return shlex.join(["visiontune", *map(str, parts)])
