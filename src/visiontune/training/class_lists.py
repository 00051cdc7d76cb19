"""The classes of several datasets together: what a run learns where they do not all have the same.

An image is taught and scored by the classes that its own dataset lists. Whether it shows an object of another class
nobody knows, so a detector is neither told that there is none, nor is a finding of that class held to be wrong.
"""

import re
from collections.abc import Sequence

from visiontune.data.dataset import Dataset
from visiontune.errors import DataError, RecipeError
from visiontune.progress import warn
from visiontune.words import counted

ALIKE = re.compile(r"[\s_\-.]+")


def classes_of(datasets: Sequence[Dataset]) -> tuple[str, ...]:
    """The classes of datasets of objects: those of the first in its order, then what each further one adds. Raises
    DataError where the target is another, where a dataset lists none, and where nothing can be learned."""
    found: dict[str, None] = {}
    objects = 0
    for dataset in datasets:
        summary = dataset.info.objects
        if summary is None:
            raise DataError(
                "Objects and texts cannot be learned together.",
                where=str(dataset.path),
                fix="train on one kind of target at a time",
            )
        found |= dict.fromkeys(summary.classes)
        objects += summary.count
    if not objects:
        raise DataError("There is no object to learn from.", fix="prepare a dataset with at least one box or mask")
    if silent := [dataset for dataset in datasets if not dataset.listed]:
        raise DataError(
            "The dataset lists no class, so that nobody knows what its images do not show.",
            where=str(silent[0].path),
            fix="name the classes that were looked for in its annotations (COCO: `categories`)",
        )
    if not sum(dataset.count("train") for dataset in datasets):
        raise DataError("There is no training image.", fix="prepare a dataset with at least one row in `train`")
    return tuple(found)


def refuse_other_classes(asked: Sequence[str], datasets: Sequence[Dataset]) -> None:
    """Raise RecipeError where the classes that a recipe names are not those of the datasets, each once. Their order is
    the recipe's own: it says which number stands for which class."""
    known = classes_of(datasets)
    if sorted(asked) == sorted(known):
        return
    differences = {
        "the data do not have": dict.fromkeys(name for name in asked if name not in known),
        "the data have too": dict.fromkeys(name for name in known if name not in asked),
        "stand there twice": dict.fromkeys(name for name in asked if asked.count(name) > 1),
    }
    said = "; ".join(f"{what}: {', '.join(names)}" for what, names in differences.items() if names)
    raise RecipeError(
        f"objects.classes are not the classes of the data: {said}.",
        where=", ".join(str(dataset.path) for dataset in datasets),
        fix="leave the field out: the data say what the classes are; rename them in the data",
    )


def said_of(datasets: Sequence[Dataset]) -> str | None:
    """How the classes of the datasets differ, for the recipe; None where all have the same."""
    classes = classes_of(datasets)
    shared = [name for name in classes if all(name in dataset.listed for dataset in datasets)]
    if len(shared) == len(classes):
        return None
    return (
        f"those of {len(datasets)} datasets together, {len(shared)} in all of them: an image is taught and scored by "
        "the classes of its own"
    )


def warn_of_class_lists(datasets: Sequence[Dataset]) -> None:
    """Say which classes which dataset lacks, and which names of two datasets may mean one class."""
    classes, said = classes_of(datasets), said_of(datasets)
    if said is None:
        return
    for dataset in datasets:
        if lacking := [name for name in classes if name not in dataset.listed]:
            shown = ", ".join(lacking[:5]) + (", ..." if len(lacking) > 5 else "")
            warn(
                f"{dataset.path} does not list {counted(len(lacking), 'class', 'classes')} of the others: {shown}. Its "
                "images neither teach that there is none nor count what is found of them"
            )
    alike: dict[str, list[str]] = {}
    for name in classes:
        alike.setdefault(ALIKE.sub(" ", name.casefold()).strip(), []).append(name)
    for names in alike.values():
        if len(names) > 1:
            warn(f"these are learned as different classes: {', '.join(names)}. Rename them in the data if they are one")
