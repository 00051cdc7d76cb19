"""Arrays too large for memory, put together piece by piece in an unnamed temporary file that goes with them."""

import tempfile
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


def assembled(parts: Iterable[NDArray[Any]], kind: DTypeLike, inner: tuple[int, ...]) -> NDArray[Any]:
    """The parts, (n, *inner) each, one after the other, as one read-only array of the dtype `kind` on disk.

    The file lies in the folder for temporary files and has no name: its space is free again when the array is gone.
    """
    kind = np.dtype(kind)
    length = 0
    # Written as a file and not through the map: on a full disk that is an error and not a signal.
    with tempfile.TemporaryFile() as file:
        for part in parts:
            if part.shape[1:] != inner:
                raise ValueError(f"a part of the shape {part.shape} among those of {inner}")
            file.write(np.ascontiguousarray(part, kind).tobytes())
            length += len(part)
        file.flush()
        if not length or not all(inner):
            return np.zeros((length, *inner), kind)
        return np.asarray(np.memmap(file, kind, "r", 0, (length, *inner)))
