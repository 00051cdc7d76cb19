"""Two runs held to each other on the samples that both answered, from what their evaluations wrote; no model is run."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from visiontune.data.sample import ObjectPrediction, Prediction
from visiontune.errors import DataError, RecipeError, RunError
from visiontune.metrics.paired import Paired, paired_objects, paired_responses, paired_texts
from visiontune.metrics.predicted_session import PredictedSession
from visiontune.run import Run
from visiontune.words import command

T = TypeVar("T", Prediction, ObjectPrediction)


@dataclass(frozen=True)
class RunComparison:
    """What two evaluations of one split say of the `n` samples (of recordings: bins) that stand in both.

    `only_first` and `only_second` name the samples that only one of them answered, which count in nothing; of
    recordings they name how many bins of which session. `left_out` has the classes of objects that only one run looked
    for, with the number of images: what was found of them there counts in nothing.
    """

    split: str
    n: int
    metrics: tuple[Paired, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    counted: str = "sample"
    left_out: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """{"split", "n", "metrics": {NAME: Paired.to_json}, "only_first", "only_second", "left_out"}."""
        return {
            "split": self.split,
            "n": self.n,
            "metrics": {one.name: one.to_json() for one in self.metrics},
            "only_first": list(self.only_first),
            "only_second": list(self.only_second),
            "left_out": dict(self.left_out),
        }


def compare_runs(first: Run, second: Run, split: str) -> RunComparison:
    """Hold two runs to each other. RunError where one was not evaluated, DataError where they share no sample or saw
    other truths, RecipeError where they learn different things."""
    recipes = first.recipe, second.recipe
    if recipes[0].target != recipes[1].target:
        raise RecipeError(
            f"One run learns {recipes[0].target}, the other {recipes[1].target}.",
            where=f"{first.path}, {second.path}",
            fix="compare runs with one kind of target",
        )
    if recipes[0].target == "responses":
        return _responses(_sessions(first, split), _sessions(second, split), split)
    # Several datasets may have an id in common. Where both runs saw the same ones, its samples come in the same order.
    alike = len({tuple(use.content_hash for use in recipe.data.datasets) for recipe in recipes}) == 1
    if recipes[0].target == "text":
        one, other, alone = _shared(*(_read(run, split, Prediction.from_json, alike) for run in (first, second)))
        same = first.labels is not None and set(first.labels) == set(second.labels or ())
        paired = paired_texts(one, other, first.labels if same else None)
        return RunComparison(split, len(one), tuple(paired), *alone)
    finds = [_classes(run, split) for run in (first, second)]
    classes = tuple(sorted({*finds[0], *finds[1]}))
    one, other = (
        _read(run, split, lambda value, own=own: _looked_for(value, own, classes), alike)
        for run, own in zip((first, second), finds, strict=True)
    )
    left_out: Counter[str] = Counter()
    for name in one.keys() & other.keys():
        _keep_to_both(one, other, name, left_out)
    if left_out and not one.keys() & other.keys():
        raise DataError(
            f"The two runs looked for no class in the same images: {', '.join(finds[0])}; {', '.join(finds[1])}.",
            where=f"{first.path}, {second.path}",
            fix="compare runs with a class in common",
        )
    found, others, alone = _shared(one, other)
    paired = tuple(paired_objects(found, others, classes))
    return RunComparison(split, len(found), paired, *alone, left_out=dict(sorted(left_out.items())))


def _evaluation(run: Run, split: str, name: str) -> Path:
    path = run.path / "evaluations" / split / name
    if not path.is_file():
        raise RunError(
            f"This run was not evaluated on the {split} split.",
            where=str(run.path),
            fix=command("evaluate", run.path, "--split", split),
        )
    return path


def _read(run: Run, split: str, from_json: Callable[[dict[str, Any]], T], alike: bool) -> dict[str, T]:
    """The predictions of a split by id. Of an id that several samples have, each is "ID (NUMBER)", which is that of the
    other run's only where both saw the datasets `alike`."""
    lines = _evaluation(run, split, "predictions.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    read = [from_json(json.loads(line)) for line in lines]
    times, found = Counter(one.id for one in read), dict[str, T]()
    met: Counter[str] = Counter()
    for one in read:
        met[one.id] += 1
        which = f"{met[one.id]}" if alike else f"{met[one.id]} of {run.path}"
        found[one.id if times[one.id] == 1 else f"{one.id} ({which})"] = one
    return found


def _classes(run: Run, split: str) -> tuple[str, ...]:
    """The classes of an evaluation of objects, as its scores list them, sorted."""
    value = json.loads(_evaluation(run, split, "metrics.json").read_text(encoding="utf-8"))
    if value["prompts"] == "ground-truth boxes":
        raise RecipeError(
            "This run draws masks in boxes that it is given; its masks are compared by their overlap.",
            where=str(run.path),
            fix=f"read mask_iou in {run.path}/evaluations/{split}/metrics.json",
        )
    return tuple(sorted(one["label"] for one in value["boxes"]["classes"]))


def _looked_for(value: dict[str, Any], own: Sequence[str], classes: tuple[str, ...]) -> ObjectPrediction:
    """A prediction of a run that finds its `own` classes, counted in those of both runs."""
    made = ObjectPrediction.from_json(value, classes)
    if made.truth is None or made.truth.looked_for is not None or len(own) == len(classes):
        return made
    return replace(made, truth=replace(made.truth, looked_for=np.array([name in own for name in classes])))


def _keep_to_both(
    one: dict[str, ObjectPrediction], other: dict[str, ObjectPrediction], name: str, left_out: Counter[str]
) -> None:
    """Keep of the image `name` what is of classes that both runs looked for there, and nothing where there are none;
    the rest is counted by its class."""
    truths = one[name].truth, other[name].truth
    asked = [np.ones(len(one[name].classes), np.bool_)] * 2
    asked = [a if t is None or t.looked_for is None else t.looked_for for a, t in zip(asked, truths, strict=True)]
    both = asked[0] & asked[1]
    left_out.update(one[name].classes[c] for c in np.flatnonzero(asked[0] != asked[1]).tolist())
    for mine, truth in zip((one, other), truths, strict=True):
        made = mine.pop(name)
        if both.any():
            kept = None if truth is None else replace(truth.of_classes(both), looked_for=both)
            mine[name] = replace(made, target=made.target.of_classes(both), truth=kept)


def _shared(
    first: Mapping[str, T], second: Mapping[str, T]
) -> tuple[list[T], list[T], tuple[tuple[str, ...], tuple[str, ...]]]:
    """The predictions of the samples that both hold, by id, and the ids that only one holds."""
    ids = sorted(first.keys() & second.keys())
    if not ids:
        raise DataError("The two evaluations share no sample.", fix="evaluate both runs on one dataset and split")
    for name in ids:
        if first[name].to_json()["truth"] != second[name].to_json()["truth"]:
            raise DataError(
                "The two runs were held to different truths of one sample.",
                where=name,
                fix="evaluate both on the same prepared dataset",
            )
    alone = (tuple(sorted(first.keys() - second.keys())), tuple(sorted(second.keys() - first.keys())))
    return [first[name] for name in ids], [second[name] for name in ids], alone


def _sessions(run: Run, split: str) -> dict[str, PredictedSession]:
    files = sorted(_evaluation(run, split, "metrics.json").parent.glob("*.npz"))
    found = {}
    for path in files:
        with np.load(path, allow_pickle=False) as arrays:
            values = {name: arrays[name] for name in ("valid", "trials", "conditions", "places")}
            values |= {name: arrays[name].astype(np.float64) for name in ("rates", "counts")}
            found[path.stem] = PredictedSession(path.stem, tuple(arrays["units"].tolist()), **values)
    return found


def _responses(
    first: Mapping[str, PredictedSession], second: Mapping[str, PredictedSession], split: str
) -> RunComparison:
    """Sessions that both hold, bin by bin; a bin counts where it is valid in both."""
    shared = [name for name in first if name in second and first[name].units == second[name].units]
    alone = [[f"session {name}" for name in mine if name not in shared] for mine in (first, second)]
    both: list[list[PredictedSession]] = [[], []]
    for name in shared:
        pair = first[name], second[name]
        places = [list(zip(one.trials.tolist(), one.places.tolist(), strict=True)) for one in pair]
        row_of = [{place: row for row, place in enumerate(mine)} for mine in places]
        kept = [place for place in places[0] if place in row_of[1]]
        for mine, rows in zip(alone, row_of, strict=True):
            mine += [f"{len(rows) - len(kept)} bins of session {name}"] if len(rows) > len(kept) else []
        cut = [_rows(one, [rows[place] for place in kept]) for one, rows in zip(pair, row_of, strict=True)]
        valid = cut[0].valid & cut[1].valid
        if not np.array_equal(cut[0].counts[valid], cut[1].counts[valid]):
            raise DataError(
                "The two runs were held to different responses.", where=name, fix="evaluate both on one dataset"
            )
        for mine, one in zip(both, cut, strict=True):
            mine.append(replace(one, valid=valid))
    n = sum(len(one.trials) for one in both[0])
    if n == 0:
        raise DataError("The two evaluations share no bin of a session with the same units.", fix="use one dataset")
    return RunComparison(split, n, tuple(paired_responses(*both)), tuple(alone[0]), tuple(alone[1]), "bin")


def _rows(session: PredictedSession, rows: Sequence[int]) -> PredictedSession:
    names = ("rates", "counts", "valid", "trials", "conditions", "places")
    return replace(session, **{name: getattr(session, name)[list(rows)] for name in names})
