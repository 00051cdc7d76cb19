"""The folder in which an export goes on until it is whole, and by which an interrupted one is continued."""

import json
import shutil
from pathlib import Path
from typing import Any

from visiontune.files import sync_file, sync_folder, write_json
from visiontune.progress import note

STATE = "unfinished.json"


class Unfinished:
    """A folder aside, `.NAME.exporting`, with the stages that are done and what they found.

    `key` says what is being made: a folder left by another export is thrown away, one with the same key is continued.
    """

    def __init__(self, out: Path, key: dict[str, Any]) -> None:
        self.folder = out.with_name(f".{out.name}.exporting")
        self._state: dict[str, Any] = {"key": key, "stages": {}}
        state = _read(self.folder / STATE)
        if state is not None and state["key"] == key:
            self._state = state
            note(f"going on with the export that was interrupted: {', '.join(state['stages']) or 'nothing'} stands")
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        write_json(self.folder / STATE, self._state)

    def done(self, stage: str) -> bool:
        """Whether a stage is done."""
        return stage in self._state["stages"]

    def result(self, stage: str) -> Any:
        """What a stage found."""
        return self._state["stages"][stage]

    def finish(self, stage: str, result: Any) -> None:
        """Mark a stage as done; what it wrote stands from here on."""
        self._state["stages"][stage] = result
        write_json(self.folder / STATE, self._state)

    def leave_as(self, final: Path) -> None:
        """Give the folder its name, in place of an earlier export there."""
        (self.folder / STATE).unlink()
        for entry in sorted(self.folder.rglob("*")):
            if entry.is_file():
                sync_file(entry)
            else:
                sync_folder(entry)
        old = final.with_name(f".{final.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if final.exists():
            final.rename(old)
        self.folder.rename(final)
        sync_folder(final.parent)
        shutil.rmtree(old, ignore_errors=True)


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
