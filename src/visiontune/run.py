"""Run: the folder a run lives in. Whoever starts, watches or continues a run reads and writes only this folder."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

from visiontune.data.dataset_info import read_info
from visiontune.errors import DataError, RunError
from visiontune.files import write_json
from visiontune.lock import held, is_held
from visiontune.machine import is_first_process
from visiontune.progress import note
from visiontune.recipe import Recipe
from visiontune.recipe_files import load
from visiontune.recipe_sections import DatasetUse

PREPARED = ("data", "distilled")  # folders of datasets that were prepared for a run, or for the group that it is of
PLANNED = (  # written before the first step is taken
    *("base", "labels.json", "measures.json", "parts.json", "start.json", "features.json", "features", "tracking"),
    *("metrics.jsonl", "state.json", "receipts.json", "report.html", "control.json"),
)

Status = Literal["planned", "running", "interrupted", "paused", "finished", "failed"]


class Run:
    """A run folder.

    recipe.yaml      every choice of the run
    state.json       status, attempt, step, reason of a failure
    metrics.jsonl    one line a step or evaluation, append-only; a line carries its attempt, readers take the last
    receipts.json    what the run proves about itself
    checkpoints/     step-N/, whole or absent; best.json names the best one
    evaluations/     SPLIT/metrics.json and SPLIT/predictions.jsonl
    tracking/        what trackers (TensorBoard, W&B) keep here, and the ids of the run in them
    control.json     {"request": "pause"} asks the trainer to pause at the next step
    report.html      all of it for a person
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, status={self.status!r})"

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """An existing run; raises RunError if the folder holds none."""
        run = cls(path)
        if not run.recipe_path.is_file() and (run.path / "certificate.json").is_file():
            plain = not (run.path / "contract.json").is_file()
            if plain and any(run.path.glob("*.gguf")):
                raise RunError(
                    "contract.json is missing from this shipped folder.", where=str(path), fix="export the run again"
                )
            raise RunError(
                "This folder was exported from a run, and holds no run itself"
                + (": it is for PEFT and transformers, and visiontune does not ask it." if plain else "."),
                where=str(path),
                fix="give the run that it was exported from"
                + ("; or export that `--to gguf` or `--to onnx`, which `visiontune predict` asks" if plain else ""),
            )
        if not run.recipe_path.is_file():
            raise RunError(
                "This folder holds no run: recipe.yaml is missing.",
                where=str(path),
                fix="give the folder that `visiontune train --out` wrote",
            )
        return run

    @property
    def recipe_path(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def recipe(self) -> Recipe:
        """The recipe; what was prepared for the run is read where it stands in its folder, wherever that was moved."""
        recipe = load(self.recipe_path)
        uses = tuple(self._own(use) for use in recipe.data.datasets)
        if uses == recipe.data.datasets:
            return recipe
        return recipe.model_copy(update={"data": recipe.data.model_copy(update={"datasets": uses})})

    def _own(self, use: DatasetUse) -> DatasetUse:
        """A dataset of the run where its recipe says it is, or, where that is outside the run, the same one inside."""
        path, home = Path(use.path), self.path.resolve()
        grouped = (home.parent / "plan.json").is_file()  # members of a group share data
        homes = [home, home.parent] if grouped else [home]
        if any(path.is_relative_to(one) for one in homes):
            return use
        ends = [path.parts[place:] for place, part in enumerate(path.parts) if part in PREPARED]
        for own in (one.joinpath(*end) for one in homes for end in ends):
            if _content_hash(own) == use.content_hash:
                _say_once(f"dataset {own.name}: {own}, which is the one that the recipe names at {path}")
                return use.model_copy(update={"path": str(own)})
        return use

    @property
    def base_folder(self) -> Path:
        """Where a model that was made for this run (tiny/...) stands."""
        return self.path / "base"

    @property
    def checkpoints_folder(self) -> Path:
        return self.path / "checkpoints"

    @property
    def report_path(self) -> Path:
        return self.path / "report.html"

    @property
    def calibration_path(self) -> Path:
        return self.path / "calibration.json"

    @property
    def labels(self) -> list[str] | None:
        """The closed set of labels that the run was planned for; None where answers are free text."""
        return (self.read_json("labels.json") or {"labels": None})["labels"]

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the folder, or None where it does not stand yet."""
        path = self.path / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    # What the run is doing

    @property
    def began(self) -> bool:
        """Whether it took a step."""
        return bool(self.checkpoint_steps() or self.metrics())

    @property
    def plan_paths(self) -> list[Path]:
        """What a run that never took a step consists of, data that were prepared for it aside; its recipe is last."""
        fonts = sorted(self.path.glob("font-*.font"))
        paths = [*(self.path / name for name in PLANNED), *fonts, self.recipe_path]
        return [path for path in paths if path.exists()]

    def forget_plan(self) -> None:
        """Remove what a run that never took a step consists of, so that another can be planned in its folder."""
        for path in self.plan_paths:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    @property
    def state(self) -> dict[str, Any]:
        return self.read_json("state.json") or {"status": "planned", "attempt": 0, "step": 0}

    @property
    def status(self) -> Status:
        """What the run is doing. One that says it is running while nobody holds its folder was interrupted."""
        status: Status = self.state["status"]
        return "interrupted" if status == "running" and not is_held(self.path / "lock") else status

    def set_state(self, status: Status, **facts: Any) -> None:
        """Change the status, and keep or change the facts beside it."""
        kept = {key: value for key, value in self.state.items() if key != "reason"}
        write_json(self.path / "state.json", {**kept, "status": status, **facts})

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one trainer; raises RunError if another process holds it. A kill frees it."""
        fix = "wait for it, pause it (`visiontune pause`), or choose another --out"
        with held(self.path / "lock", "is using this run folder.", self.path, fix):
            yield

    # Control: a request from outside

    def ask_to_pause(self) -> None:
        """Ask the trainer of this run to checkpoint and stop at the next step."""
        write_json(self.path / "control.json", {"request": "pause"})

    def pause_asked(self) -> bool:
        """Whether a pause was asked for; raises RunError for any other request. One half written is none yet."""
        try:
            control = self.read_json("control.json")
        except (ValueError, FileNotFoundError):  # its writer is at it
            return False
        if control is None:
            return False
        if control != {"request": "pause"}:
            raise RunError(f"Unknown request {control}.", where="control.json", fix='write {"request": "pause"}')
        return True

    def clear_control(self) -> None:
        (self.path / "control.json").unlink(missing_ok=True)

    # Metrics

    def open_metrics(self) -> "MetricsLog":
        """The log to append to; a line torn by a kill is cut off first."""
        return MetricsLog(self.path / "metrics.jsonl")

    def metrics(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, for each (kind, step) the one of the last attempt, by step."""
        path = self.path / "metrics.jsonl"
        latest: dict[tuple[str, int], dict[str, Any]] = {}
        if path.is_file():
            for line in path.read_bytes().split(b"\n")[:-1]:  # what follows the last newline is torn
                entry = json.loads(line)
                latest[entry["kind"], entry["step"]] = entry
        return [e for _, e in sorted(latest.items(), key=lambda item: item[0][1]) if kind in (None, e["kind"])]

    @property
    def receipts(self) -> list[dict[str, Any]]:
        """The receipts, in order; empty before the first one is written."""
        return (self.read_json("receipts.json") or {"receipts": []})["receipts"]

    # Checkpoints, by name; what stands in them is training/checkpoint.py's

    def checkpoint_steps(self) -> list[int]:
        """The steps of the whole checkpoints, ascending."""
        folder = self.checkpoints_folder
        found = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        return sorted(int(step[1]) for step in map(re.compile(r"step-(\d+)").fullmatch, found) if step)

    def checkpoint_path(self, step: int) -> Path:
        return self.checkpoints_folder / f"step-{step}"

    @property
    def missing_steps(self) -> list[int]:
        """The checkpoints that a finished run needs and that do not stand: of the last one and the best one."""
        state, stand = self.state, self.checkpoint_steps()
        return sorted({state["step"], state.get("best_step", state["step"])} - set(stand))

    @property
    def best(self) -> dict[str, Any] | None:
        """{"step", "metric", "value"} of the best checkpoint so far."""
        return self.read_json("checkpoints/best.json")


def _content_hash(dataset: Path) -> str | None:
    """The hash of the rows of a prepared dataset; None where none stands."""
    try:
        return read_info(dataset).content_hash
    except DataError:
        return None


@cache
def _say_once(text: str) -> None:
    if is_first_process():
        note(text)


class MetricsLog:
    """An append-only file of JSON lines."""

    def __init__(self, path: Path) -> None:
        if path.is_file():
            data = path.read_bytes()
            if not data.endswith(b"\n"):
                with path.open("r+b") as file:
                    file.truncate(data.rfind(b"\n") + 1)
        self._file = path.open("a", encoding="utf-8")

    def write(self, entry: dict[str, Any]) -> None:
        """Append one line, visible to readers at once."""
        self._file.write(json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()
