"""What stands in GGUF files, against the contract and against the trained weights. No torch here."""

from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visiontune.errors import CertificateError
from visiontune.exports.certificate import SHOWN, Check
from visiontune.exports.gguf_layout import planned_files
from visiontune.exports.quantise import gguf_package
from visiontune.exports.shipment import Shipment

# Root mean square error of a tensor, divided by its own root mean square, that each type may have.
TOLERANCE = {
    "F32": 0.0, "F16": 1e-3, "BF16": 5e-3, "Q8_0": 0.015, "Q6_K": 0.05, "Q5_K": 0.08, "Q5_0": 0.1, "Q5_1": 0.1,
    "Q4_K": 0.15, "Q4_0": 0.2, "Q4_1": 0.2, "Q3_K": 0.3, "Q2_K": 0.5,
}  # fmt: skip


ANOTHER_SHAPE = 1e9  # the error of a tensor that cannot be compared


def key_of(reader: Any, name: str) -> Any:
    """The value of a key of a GGUFReader, or None."""
    field = reader.fields.get(name)
    return None if field is None else field.contents()


def _opened(path: Path) -> Any:
    """A GGUFReader of a file; CertificateError for one that is cut short or otherwise no whole GGUF file."""
    try:
        return gguf_package().GGUFReader(path)
    except (ValueError, LookupError, OverflowError) as error:  # what the reader runs into, wherever a file ends
        raise CertificateError(
            f"{path.name} is cut short or damaged.", where=str(path), fix="copy it again, or export the run again"
        ) from error


def check_layout(folder: Path, shipment: Shipment) -> Check:
    """Whether the projector's keys make llama.cpp lay out the contract's picture as one tile and the overview."""
    try:
        reader = _opened(folder / shipment.projector)
    except CertificateError as error:
        return Check("layout", "failed", error.found)
    size = shipment.device.image_size
    tile = key_of(reader, "clip.vision.image_size")
    longest = key_of(reader, "clip.vision.preproc_image_size")
    kind = key_of(reader, "clip.projector_type")
    numbers = {"image_size": tile, "preproc_image_size": longest, "projector_type": kind}
    if kind != "idefics3":
        return Check("layout", "failed", f"the projector is of type '{kind}', not 'idefics3'", numbers)
    if tile != size:
        return Check("layout", "failed", f"tiles of {tile} pixels, the contract's picture has {size}", numbers)
    if longest is None:
        return Check("layout", "failed", "preproc_image_size is absent: versions of llama.cpp differ in it", numbers)
    if longest != size:
        side = -(-longest // tile)
        found = f"preproc_image_size is {longest}: llama.cpp cuts the picture into {side**2 + 1} tiles, not 2"
        return Check("layout", "failed", found, numbers)
    return Check("layout", "passed", f"a tile and the overview of {size} pixels each", numbers)


def check_weights(folder: Path, shipment: Shipment, merged: Path, trained: AbstractSet[str]) -> Check:
    """Whether each tensor of the files is the one in `merged`, as exactly as its type can hold it.

    `trained` names the tensors of the merged folder that the run changed, so that the check can say what went wrong.
    """
    gguf = gguf_package()
    files = {"model": folder / shipment.text_model, "mmproj": folder / shipment.projector}
    try:
        stored = {(kind, tensor.name): tensor for kind, path in files.items() for tensor in _opened(path).tensors}
    except CertificateError as error:
        return Check("weights", "failed", error.found)
    wrong: list[tuple[str, bool, str]] = []  # name, whether the run trained it, what is wrong
    worst: dict[str, float] = {}
    count = 0
    planned = planned_files(merged, shipment.quantisation, shipment.device.image_size, None, shipment.name, None)
    for kind_of_file, wanted in ((file.kind, tensor) for file in planned for tensor in file.tensors):
        count += 1
        tensor = stored.pop((kind_of_file, wanted.name), None)
        if tensor is None:
            wrong.append((wanted.name, wanted.source in trained, "is missing"))
            continue
        kind = tensor.tensor_type.name
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(-1)
        true = wanted.read()
        error = _relative_error(values, true.reshape(-1)) if values.size == true.size else ANOTHER_SHAPE
        worst[kind] = max(worst.get(kind, 0.0), error)
        if not error <= TOLERANCE.get(kind, 0.5):
            turned = values.size == true.size and true.ndim == 2 and _same_rows(values.reshape(true.shape), true, kind)
            words = "has its rows in another order" if turned else f"is off by {error:.2g} of its size"
            wrong.append((wanted.name, wanted.source in trained, words))
    wrong += [(name, False, "is not of this model") for _, name in stored]
    numbers = {"tensors": count, "wrong": len(wrong), "largest_error_by_type": worst}
    if not wrong:
        shown = ", ".join(f"{kind} within {error:.2g}" for kind, error in sorted(worst.items()))
        return Check("weights", "passed", f"{count} tensors: {shown} of their size", numbers)
    return Check("weights", "failed", _diagnosis(wrong, count), numbers | {"first": [w[0] for w in wrong[:SHOWN]]})


def _diagnosis(wrong: list[tuple[str, bool, str]], count: int) -> str:
    shown = "; ".join(f"{name} {words}" for name, _, words in wrong[:SHOWN])
    of = f"{len(wrong)} of {count} tensors: {shown}"
    turned = [name for name, _, words in wrong if "rows" in words]
    if turned and len(turned) == len(wrong):
        return f"wrong permutation of rows in {of}"
    frozen = sum(not was_trained for _, was_trained, _ in wrong)
    if frozen == 0:
        return f"stale adapter: only tensors that this run trained differ, {of}"
    return f"other base weights: {frozen} tensors differ that this run never trained, {of}"


def _relative_error(values: NDArray[np.float32], true: NDArray[np.float32]) -> float:
    """Root mean square error divided by the true values' root mean square (of zeros: not divided)."""
    size = float(np.sqrt(np.mean(np.square(true, dtype=np.float64)))) or 1.0
    error = float(np.sqrt(np.mean(np.square(values.astype(np.float64) - true))))
    return error / size


def _same_rows(values: NDArray[np.float32], true: NDArray[np.float32], kind: str) -> bool:
    """Whether the rows are the same ones in another order: sorted, their lengths agree."""
    mine, its = (np.sort(np.linalg.norm(rows.astype(np.float64), axis=1)) for rows in (values, true))
    return _relative_error(mine.astype(np.float32), its.astype(np.float32)) <= max(TOLERANCE.get(kind, 0.5), 1e-6)
