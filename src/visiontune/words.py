"""Words for people: a number with what it counts, a command that can be typed."""

import shlex
from pathlib import Path


def counted(number: float, thing: str, things: str | None = None, form: str = "") -> str:
    """`1 fault`, `2 faults`; `things` where the plural is not made with an s. `form` writes the number, as f-strings
    have it."""
    written = format(number, form)
    return f"{written} {thing if written == '1' else things or thing + 's'}"


def command(*parts: str | Path) -> str:
    """A command of visiontune for a shell: parts with blanks are quoted."""
    return shlex.join(["visiontune", *map(str, parts)])
