"""Shapes drawn on photographs: is a detector learned, does a teacher help a student, is anything forgotten, and can
datasets that list other classes be learned together?

    python bench/shapes.py learn [--steps N]     tiny/rf-detr by its derived recipe: AP50 on the test split
    python bench/shapes.py distil [--steps N]    a student with 10 % of the labels, alone and with a teacher's beside
    python bench/shapes.py forget                six classes by tiny/mm-grounding-dino, three tuned further by LoRA
    python bench/shapes.py mix [--steps N]       one dataset lists discs, one the rest: so, and as if they were absent

The teacher of `distil` stands for a large model: it is trained on as many images of its own as there are unlabelled
ones, which no student sees. Both students take equally many steps.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import visiontune
from visiontune.demo_boxes import IMAGES, SIZE
from visiontune.demo_shapes import CLASSES, draw_source, photographs

TENTH = 60
SIX = 500


def prepared(folder: Path, count: int, seed: int, classes: tuple[str, ...]) -> tuple[Path, Path]:
    """A drawn source and its prepared dataset."""
    source = draw_source(
        folder / f"source-{seed}", count, size=SIZE, classes=classes, seed=seed, masks=False, grounds=photographs()
    )
    return source, visiontune.prepare(source, folder / f"data-{seed}").path


def ap(run: Path) -> dict[str, float]:
    """AP and AP50 of a run on its own test split."""
    scores: Any = visiontune.evaluate(run, split="test")
    return {name: round(scores.metric(name).value, 4) for name in ("box_ap", "box_ap50")}


def learn(folder: Path, steps: int | None) -> None:
    _, data = prepared(folder, IMAGES, 0, CLASSES[:3])
    started = time.monotonic()
    run: Any = visiontune.train(data, model="tiny/rf-detr", out=folder / "run", overrides=taking(steps))
    took = time.monotonic() - started
    print(f"{IMAGES} images, {run.recipe.schedule.steps} steps, {took:.0f} s: {ap(run.path)}")


def taking(steps: int | None) -> dict[str, int]:
    """Overrides for a run of so many steps; None: as many as the recipe derives."""
    return {} if steps is None else {"schedule.steps": steps}


def distil(folder: Path, steps: int | None) -> None:
    classes = CLASSES[:3]
    _, teachers = prepared(folder, IMAGES, 1, classes)
    _, labelled = prepared(folder, TENTH * 3 // 2, 2, classes)  # two thirds of them train, as `prepare` splits them
    more = draw_source(folder / "more", IMAGES, size=SIZE, classes=classes, seed=3, masks=False, grounds=photographs())
    teacher: Any = visiontune.train(teachers, model="tiny/rf-detr", out=folder / "teacher", overrides=taking(steps))
    each = taking(teacher.recipe.schedule.steps)
    _, judge = prepared(folder, IMAGES, 4, classes)
    alone = visiontune.train(labelled, model="tiny/rf-detr", out=folder / "alone", overrides=each)
    taught = visiontune.train(
        labelled, model="tiny/rf-detr", teacher=teacher.path, unlabelled=[more.parent / "images"],
        out=folder / "taught", overrides=each,
    )  # fmt: skip
    print(f"{TENTH * 3 // 2} labelled images, {IMAGES} unlabelled, {each['schedule.steps']} steps each")
    for name, run in (("teacher", teacher), ("student, 10 % of the labels alone", alone), ("student, taught", taught)):
        print(f"{name}: {judged(run, judge)}")


def judged(run: Any, data: Path) -> dict[str, float]:
    """AP and AP50 of a run on all images of a dataset that it never saw."""
    from visiontune.data.dataset import Dataset
    from visiontune.models.objects import finds_objects
    from visiontune.training.evaluate_objects import find_in_split, score_predictions
    from visiontune.training.model import load_trained
    from visiontune.training.ranks import Ranks

    ranks = Ranks("cpu")
    adapter = finds_objects(load_trained(run, run.recipe, ranks.device)[0])
    found = find_in_split(adapter, [Dataset.open(data)], "train", run.recipe, ranks)
    scores = score_predictions(found, "none", halves=0)
    return {name: round(scores.metric(name).value or 0.0, 4) for name in ("box_ap", "box_ap50")}


def forget(folder: Path) -> None:
    _, six = prepared(folder, SIX, 5, CLASSES)
    _, three = prepared(folder, SIX, 6, CLASSES[:3])
    base: Any = visiontune.train(six, model="tiny/mm-grounding-dino", out=folder / "base")
    print(f"six classes learned: {ap(base.path)}")
    merged = visiontune.export(base.path, to="merged", out=folder / "merged")["merged"]
    tuned: Any = visiontune.train(three, model=str(merged), out=folder / "tuned")
    print(f"three classes tuned further by LoRA, {tuned.recipe.schedule.steps} steps: {ap(tuned.path)}")
    visiontune.evaluate(tuned.path, split="test", known=six)
    (written,) = (tuned.path / "evaluations").glob(f"known-{six.name}-test-*.json")
    known = json.loads(written.read_text())["metrics"]
    others = [known[f"box_ap.{name}"] for name in CLASSES[3:]]
    for when in ("before", "after"):
        print(f"AP of the other three classes, {when}: {sum(one[when]['value'] for one in others) / len(others):.4f}")


def mix(folder: Path, steps: int | None) -> None:
    classes = CLASSES[:3]
    own = (classes[:1], classes[1:])
    _, judge = prepared(folder, IMAGES, 9, classes)
    sources = [prepared(folder, IMAGES // 2, seed, classes)[0] for seed in (7, 8)]
    ways = {"each with its own classes": own, "the others taught as absent": (classes, classes), "all labelled": None}
    for number, (way, lists) in enumerate(ways.items()):
        data = [
            visiontune.prepare(
                source if lists is None else listing(source, lists[place], own[place], folder / f"{number}-{place}"),
                folder / f"data-{number}-{place}",
            )
            for place, source in enumerate(sources)
        ]
        run: Any = visiontune.train(
            *(one.path for one in data), model="tiny/rf-detr", out=folder / f"run-{number}", overrides=taking(steps)
        )
        print(f"{way}: {run.recipe.schedule.steps} steps, {judged(run, judge)}", flush=True)


def listing(source: Path, listed: tuple[str, ...], drawn: tuple[str, ...], folder: Path) -> Path:
    """The same images with the categories `listed` and the objects of those `drawn`."""
    value = json.loads(source.read_text())
    number = {one["name"]: one["id"] for one in value["categories"]}
    value["categories"] = [{"id": number[name], "name": name} for name in listed]
    value["annotations"] = [o for o in value["annotations"] if o["category_id"] in {number[name] for name in drawn}]
    shutil.copytree(source.parent / "images", folder / "images")
    (folder / "annotations.json").write_text(json.dumps(value))
    return folder / "annotations.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("learn", "distil", "forget", "mix"))
    parser.add_argument("--steps", type=int, default=None, help="instead of those that the recipe derives")
    arguments = parser.parse_args()
    if arguments.what == "forget" and arguments.steps is not None:
        parser.error("--steps is not for forget")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.what == "forget":
            forget(Path(folder))
        else:
            {"learn": learn, "distil": distil, "mix": mix}[arguments.what](Path(folder), arguments.steps)


if __name__ == "__main__":
    main()
