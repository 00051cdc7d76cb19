"""How often each dataset is drawn: shares of the draws from a rule, or from weights that were given for some."""

from collections import Counter
from collections.abc import Sequence

from visiontune.data.dataset import Dataset
from visiontune.errors import RecipeError
from visiontune.progress import note

RULES = "uniform, proportional, subject, or temperature=T with T above 0 and at most 1"


def shares(rule: str, datasets: Sequence[Dataset]) -> list[float]:
    """The weight of each dataset, summing to one.

    uniform: all alike. proportional: by size (training rows, of recordings bins). temperature=T: by size to the power
    T. subject: each subject alike, and its sessions by size; a dataset that names no subject is one by itself. Raises
    RecipeError for another rule.
    """
    sizes = [_size(dataset) for dataset in datasets]
    name, _, value = rule.partition("=")
    if rule == "uniform":
        pulls = [1.0] * len(sizes)
    elif rule == "proportional":
        pulls = [float(size) for size in sizes]
    elif rule == "subject":
        subjects = [_subject(dataset, number) for number, dataset in enumerate(datasets)]
        totals: Counter[str] = Counter()
        for subject, size in zip(subjects, sizes, strict=True):
            totals[subject] += size
        pulls = [size / max(1, totals[subject]) for subject, size in zip(subjects, sizes, strict=True)]
    elif name == "temperature" and _is_share(value):
        pulls = [size ** float(value) for size in sizes]
    else:
        raise RecipeError(f"There is no mixture '{rule}'.", where="--mixture", fix=f"mixtures: {RULES}")
    # Where nothing trains, planning says so.
    return [pull / (sum(pulls) or 1.0) for pull in pulls]


def beside_unlabelled(
    weights: Sequence[float | None], datasets: Sequence[Dataset], limit: int | None
) -> list[float | None]:
    """The weights of all datasets of a student, of which the first, labelled ones have these `weights`, or none.

    What a teacher labelled comes after them and is drawn as often as its number of rows says, `limit` at most; the
    weights say how the labelled ones share the rest.
    """
    labelled = len(weights)
    given = [weight for weight in weights if weight is not None]
    if len(given) < labelled:
        return [None] * len(datasets)
    rows = [min(_size(dataset), limit or _size(dataset)) for dataset in datasets]
    drawn = sum(rows[:labelled])
    if len(datasets) > labelled:
        note(
            f"the weights are those of the labelled datasets; the {sum(rows[labelled:])} images that the teacher alone "
            f"labelled have {sum(rows[labelled:]) / sum(rows):.1%} of the draws, as their number says"
        )
    return [*(drawn * weight / sum(given) for weight in given), *map(float, rows[labelled:])]


def _is_share(text: str) -> bool:
    try:
        return 0 < float(text) <= 1
    except ValueError:
        return False


def _size(dataset: Dataset) -> int:
    recording = dataset.info.recording
    return dataset.info.splits["train"] if recording is None else recording.bins["train"]


def _subject(dataset: Dataset, number: int) -> str:
    recording = dataset.info.recording
    return f"/{number}" if recording is None or recording.subject is None else recording.subject
