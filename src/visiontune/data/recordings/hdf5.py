"""Sessions in HDF5 files: the named arrays as datasets, facts as datasets or as attributes of the root."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visiontune.data.recordings.arrays import NAMES, Session, session_from
from visiontune.errors import DataError, MachineError

# Files, groups and datasets are h5py's own, which has no types and may not be installed.
Item = Any


def read(path: Path) -> Session:
    """An .h5 or .hdf5 file. Arrays that lie in one uncompressed piece are memory-mapped, others are read."""
    with opened(path) as file:
        values: dict[str, Any] = {name: fact(file.attrs[name]) for name in NAMES if name in file.attrs}
        values |= {name: array_of(file[name], path) for name in NAMES if name in file and is_dataset(file[name])}
        others = [name for name in (*file.attrs, *file) if name not in NAMES]
    return session_from(values, path.resolve().stem, str(path), others)


def names(path: Path) -> list[str]:
    """What lies in the root of an HDF5 file. MachineError without h5py, DataError where the file is none."""
    with opened(path) as file:
        return list(file)


def opened(path: Path) -> Item:
    """An HDF5 file, open to read. MachineError without h5py, DataError where the file is none."""
    try:
        import h5py  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MachineError(
            "HDF5 and NWB files are read with h5py, which is not installed",
            where=str(path),
            fix="pip install 'visiontune[hdf5]'",
        ) from error
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"this is no HDF5 file: {error}", where=str(path), fix="copy it again") from error


def is_dataset(item: Item) -> bool:
    """Whether an item of an HDF5 group is an array and not a group."""
    import h5py  # pyright: ignore[reportMissingImports]

    return isinstance(item, h5py.Dataset)


def array_of(dataset: Item, path: Path) -> Any:
    """An array (memory-mapped where the file lets us), a number or a text."""
    if dataset.shape == () or dataset.dtype.kind not in "biuf":
        return fact(dataset.asstr()[()] if dataset.dtype.kind == "O" else dataset[()])
    offset = dataset.id.get_offset()
    # Booleans are enumerations in HDF5, and h5py knows the bytes of other machines: these are left to it.
    if offset is None or not dataset.size or dataset.dtype.kind == "b" or not dataset.dtype.isnative:
        try:
            return np.asarray(dataset[()])
        except OSError as error:
            raise DataError(
                f"the array {dataset.name} cannot be read: {error}", where=str(path), fix="copy the file again"
            ) from error
    mapped: NDArray[Any] = np.memmap(path, dataset.dtype, "r", offset, dataset.shape)
    return np.asarray(mapped)


def fact(value: Any) -> Any:
    """A value of a file as plain Python: a text, a number, or an array of them."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "SO":
            return np.array([v.decode("utf-8") if isinstance(v, bytes) else str(v) for v in value.reshape(-1)])
        return value.item() if value.ndim == 0 else value
    return value.item() if isinstance(value, np.generic) else value
