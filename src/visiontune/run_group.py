"""RunGroup: several runs that one command made, each a whole run in a folder of its own, under one small plan file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visiontune.errors import RunError
from visiontune.files import write_json
from visiontune.run import Run

PLAN_NAME = "plan.json"


class RunGroup:
    """A folder with plan.json, {"runs": {ROLE: FOLDER}}, and those runs; a role is `detector` or `segmenter`."""

    def __init__(self, path: str | Path, runs: Mapping[str, Run]) -> None:
        self.path = Path(path)
        self.runs = dict(runs)

    def __repr__(self) -> str:
        return f"RunGroup({str(self.path)!r}, {', '.join(self.runs)})"

    @classmethod
    def stands_at(cls, path: str | Path) -> bool:
        """Whether the folder holds a group of runs."""
        return (Path(path) / PLAN_NAME).is_file()

    @classmethod
    def open(cls, path: str | Path) -> "RunGroup":
        """An existing group; raises RunError if the folder holds none, or one of its runs is missing."""
        plan = Run(path).read_json(PLAN_NAME)
        if plan is None:
            raise RunError(
                "This folder holds no plan of runs: plan.json is missing.", where=str(path), fix="give a run's folder"
            )
        return cls(path, {role: Run.open(Path(path) / folder) for role, folder in plan["runs"].items()})

    def save(self) -> None:
        """Write plan.json: from then on the folder is a group."""
        names = {role: str(run.path.relative_to(self.path)) for role, run in self.runs.items()}
        write_json(self.path / PLAN_NAME, {"runs": names})

    def to_json(self) -> dict[str, Any]:
        """{"path", "runs": {ROLE: its state}}."""
        return {
            "path": str(self.path),
            "runs": {role: {"path": str(r.path), **r.state} for role, r in self.runs.items()},
        }


def open_run(path: str | Path) -> Run | RunGroup:
    """The run, or the group of runs, in a folder; raises RunError if it holds none."""
    return RunGroup.open(path) if RunGroup.stands_at(path) else Run.open(path)
