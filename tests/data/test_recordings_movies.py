"""Movies that units are asked about: what is read, and what is refused before anything is computed."""

import numpy as np
import pytest

from visiontune.data.recordings.movies import movie_files, open_movie
from visiontune.errors import DataError

MOVIE = np.arange(20 * 4 * 6, dtype=np.uint8).reshape(20, 4, 6)


def saved(folder, name, array):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array, allow_pickle=False)
    return path


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.float32])
def test_a_movie_is_mapped_as_it_was_saved(tmp_path, kind):
    found = open_movie(saved(tmp_path, "a.npy", MOVIE.astype(kind)), (4, 6))
    assert found.dtype == kind and np.array_equal(found, MOVIE) and isinstance(found, np.memmap)


def broken(value, frame=1500):
    movie = np.zeros((1600, 4, 6), np.float32)
    movie[frame, 1, 1] = value
    return movie


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (broken(np.nan), "Frame 1500 holds values that are no finite number"),
        (broken(np.inf, 3), "Frame 3 holds"),
        (MOVIE.astype(complex), "complex128"),
        (MOVIE[0], r"shape \(4, 6\)"),
        (MOVIE[:, :3], "Frames of 3 x 6 pixels; the model sees 4 x 6"),
        (np.array("text"), "shape"),
    ],
)
def test_what_is_no_movie_is_refused_with_its_file(tmp_path, array, found):
    path = saved(tmp_path, "a.npy", array)
    with pytest.raises(DataError, match=found) as caught:
        open_movie(path, (4, 6))
    assert caught.value.where == str(path) and caught.value.fix


def test_archives_and_other_files_are_no_movies(tmp_path):
    np.savez(tmp_path / "a.npz", MOVIE)
    (tmp_path / "a.txt").write_text("movie")
    (tmp_path / "cut.npy").write_bytes(saved(tmp_path, "b.npy", MOVIE).read_bytes()[:200])
    for name, found in {"a.npz": "an archive of arrays", "a.txt": "This is no array", "cut.npy": "no array"}.items():
        with pytest.raises(DataError, match=found):
            open_movie(tmp_path / name, (4, 6))


def test_folders_give_their_movies_and_two_of_one_name_are_refused(tmp_path):
    paths = [saved(tmp_path, f"in/{name}.npy", MOVIE) for name in "ba"]
    other = saved(tmp_path, "other/a.npy", MOVIE)
    assert movie_files([tmp_path / "in"]) == sorted(paths) and movie_files([other]) == [other]
    with pytest.raises(DataError, match="Two movies are called a"):
        movie_files([tmp_path / "in", other])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no movie in this folder"):
        movie_files([tmp_path / "empty"])
