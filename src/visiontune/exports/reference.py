"""What the trained model says about some validation samples: the reference that an export is held to."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from visiontune.data.dataset import Dataset
from visiontune.data.objects import Objects
from visiontune.data.sample import Document, Images, Sample
from visiontune.errors import CertificateError, DataError
from visiontune.files import written_whole

REFERENCE_NAME = "reference.jsonl"


@dataclass(frozen=True)
class Reference:
    """One input and what the trained model made of it.

    `image_sha256` is of what the sample shows (`seen_sha256`): for a device, of its image file. `pixels_sha256` is of
    the picture's bytes, (height, width, 3) uint8, as the model got it. `prompt_ids` are the text
    tokens of the prompt, images left out; `log_probabilities` and `margins` (natural logarithm, distance to the
    runner-up) belong to `tokens`, the greedy answer with its end token. `labels` holds the labels' log-probabilities.
    """

    id: str
    image_sha256: str
    pixels_sha256: str
    question: str
    prompt_ids: tuple[int, ...]
    image_tokens: int
    text: str
    tokens: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    margins: tuple[float, ...]
    labels: tuple[float, ...] | None
    truth: str


def chosen(datasets: Sequence[Dataset], count: int) -> list[tuple[int, int]]:
    """(dataset, row) of `count` validation samples spread evenly over all of them; all where there are fewer."""
    refs = [(d, i) for d, dataset in enumerate(datasets) for i in range(dataset.count("validation"))]
    if not refs:
        raise DataError("There is no validation sample to compare with.", fix="prepare a dataset with more rows")
    places = np.linspace(0, len(refs) - 1, min(count, len(refs))).round().astype(int)
    return [refs[place] for place in places]


def image_of(sample: Sample) -> bytes:
    """The bytes of the one image that a sample for a device has."""
    assert isinstance(sample.seen, Images)
    (file,) = sample.seen.files
    return file.data


def seen_sha256(sample: Sample) -> str:
    """The hash of what a sample shows: the files of its images, one behind the other, or the text of its document."""
    if isinstance(sample.seen, Document):
        return hashlib.sha256(sample.seen.text.encode("utf-8", "surrogatepass")).hexdigest()
    assert isinstance(sample.seen, Images)
    return hashlib.sha256(b"".join(file.data for file in sample.seen.files)).hexdigest()


def objects_of(sample: Sample) -> Objects:
    """What people drew in a sample's image."""
    assert isinstance(sample.target, Objects)
    return sample.target


def pixels_sha256(pixels: np.ndarray) -> str:
    """The hash of a picture's pixels, (height, width, 3) uint8 or whatever the model is given."""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def write_references(path: Path, found: Iterable[Reference], advance: Callable[[int], None]) -> list[Reference]:
    """Write one JSON line a reference, whole, and return them."""
    kept = []
    with written_whole(path) as aside, aside.open("w", encoding="utf-8") as file:
        for reference in found:
            file.write(json.dumps(asdict(reference), ensure_ascii=False) + "\n")
            kept.append(reference)
            advance(1)
    return kept


def read_lines(path: Path, count: int | None = None) -> list[dict[str, Any]]:
    """The JSON objects of a file of references; CertificateError where it is missing, not whole, or has other than
    `count` lines."""
    fix = "copy the folder again, or export the run again"
    if not path.is_file():
        raise CertificateError(f"{path.name} is missing.", where=str(path.parent), fix=fix)
    *lines, rest = path.read_bytes().split(b"\n")
    try:
        found = [json.loads(line) for line in lines]
    except ValueError as error:
        raise CertificateError(f"{path.name} is not whole: {error}", where=str(path), fix=fix) from error
    if rest or (count is not None and len(found) != count):
        wanted = f" of {count}" if count is not None else ""
        what = f"{path.name} is not whole: it ends after {len(found)}{wanted} references."
        raise CertificateError(what, where=str(path), fix=fix)
    return found


def read_references(path: Path, count: int | None = None) -> list[Reference]:
    """Read back what `write_references` wrote; raises as `read_lines`."""
    found = []
    for value in read_lines(path, count):
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
        found.append(Reference(**fields))
    return found
