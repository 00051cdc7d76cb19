"""A merged transformers folder on disk: its JSON files and its safetensors, read without torch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visiontune.errors import ModelError

_NUMPY_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file: `dtype` as the file writes it, `start` and `size` in bytes."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int

    def read(self) -> NDArray[np.float32]:
        """The values as float32, of `shape`. Raises ModelError for integers and eight-bit floats."""
        if self.dtype not in _NUMPY_TYPES:
            raise ModelError(
                f"The tensor '{self.name}' holds {self.dtype} values.",
                where=str(self.path),
                fix=f"save the model with weights of {', '.join(_NUMPY_TYPES)}",
            )
        stored = np.dtype(_NUMPY_TYPES[self.dtype])
        values = np.fromfile(self.path, stored, self.size // stored.itemsize, offset=self.start)
        if self.dtype == "BF16":  # the upper half of a float32; numpy has no such type
            values = (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float32, copy=False).reshape(self.shape)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ModelError where it is missing or is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise ModelError(f"There is no {path.name}.", where=str(path), fix="name a merged model folder") from None
    except ValueError as error:
        raise ModelError(f"{path.name} is no JSON: {error}.", where=str(path), fix="export the model again") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path.name} holds no object.", where=str(path), fix="export the model again")
    return value


def read_json_if_there(path: Path) -> dict[str, Any]:
    """A JSON object, empty where the file is missing."""
    return read_json(path) if path.is_file() else {}


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the folder by name, from one `model.safetensors` or from the parts that its index lists.

    Only headers are read. Raises ModelError for missing or cut files and for tensors that the index promises in vain.
    """
    index = folder / "model.safetensors.index.json"
    promised: dict[str, str] = read_json(index).get("weight_map", {}) if index.is_file() else {}
    parts = sorted(set(promised.values())) or ["model.safetensors"]
    tensors = {tensor.name: tensor for part in parts for tensor in _header(folder / part)}
    if missing := sorted(promised.keys() - tensors.keys()):
        raise ModelError(
            f"{len(missing)} tensors are not in the files that should hold them, the first is '{missing[0]}'.",
            where=str(index),
            fix="export or download the model again",
        )
    return tensors


def _header(path: Path) -> list[StoredTensor]:
    """A safetensors file starts with the length of a JSON header (8 bytes), the header, then the values."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        size = path.stat().st_size
    except FileNotFoundError:
        raise ModelError(
            f"There is no {path.name}.", where=str(path), fix="name a folder with a merged model in safetensors"
        ) from None
    except (ValueError, MemoryError, OverflowError):
        raise ModelError(f"{path.name} is no safetensors file.", where=str(path), fix="export it again") from None
    tensors = []
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = (8 + length + offset for offset in entry["data_offsets"])
            tensors.append(StoredTensor(path, name, entry["dtype"], tuple(entry["shape"]), start, end - start))
            if end > size:
                raise ModelError(
                    f"{path.name} is cut: '{name}' ends at byte {end}, the file at {size}.",
                    where=str(path),
                    fix="export or download the model again",
                )
    return tensors
