"""Movies that units are asked about: arrays in .npy files, one frame a bin."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visiontune.errors import DataError

HOW = "save (frames, height, width), numbers, with numpy.save"
FRAMES_AT_ONCE = 1024


def movie_files(sources: Sequence[Path]) -> list[Path]:
    """The movies at these places: files, or the .npy files of folders. DataError where there is none, or where two have
    one name, by which what is predicted is kept."""
    files: list[Path] = []
    for source in sources:
        inside = sorted(source.glob("*.npy")) if source.is_dir() else [source]
        if not inside:
            raise DataError("There is no movie in this folder.", where=str(source), fix=HOW)
        files += inside
    named: dict[str, Path] = {}
    for file in files:
        if file.stem in named:
            fix = "rename one, or predict one by one with --out"
            raise DataError(f"Two movies are called {file.stem}.", where=f"{named[file.stem]}, {file}", fix=fix)
        named[file.stem] = file
    return files


def open_movie(path: Path, size: tuple[int, int]) -> NDArray[Any]:
    """A movie, (frames, height, width), memory-mapped. `size`: (height, width) of frames that the model sees.

    Raises DataError for what is no array of numbers, for frames of another size, and for values that are no finite
    number.
    """
    try:
        movie = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"This is no array: {error}", where=str(path), fix=HOW) from error
    if not isinstance(movie, np.ndarray):
        movie.close()
        raise DataError("This is an archive of arrays, and a movie is one array.", where=str(path), fix=HOW)
    if movie.ndim != 3 or movie.dtype.kind not in "uifb":
        raise DataError(f"The array has the shape {movie.shape}, of {movie.dtype}.", where=str(path), fix=HOW)
    if movie.shape[1:] != size:
        raise DataError(
            f"Frames of {movie.shape[1]} x {movie.shape[2]} pixels; the model sees {size[0]} x {size[1]}.",
            where=str(path),
            fix="cut or resize the frames to that size",
        )
    for start in range(0, len(movie), FRAMES_AT_ONCE) if movie.dtype.kind == "f" else ():
        broken = ~np.isfinite(movie[start : start + FRAMES_AT_ONCE]).all(axis=(1, 2))
        if broken.any():
            first = start + int(broken.argmax())
            raise DataError(
                f"Frame {first} holds values that are no finite number.",
                where=str(path),
                fix="mend the movie: what it shows in that frame is not known",
            )
    return movie
