"""Sessions in NWB files, written here with h5py by the names of the schema."""

from pathlib import Path

import numpy as np
import pytest

from tests.made_recordings import film
from visiontune.data.recordings import nwb as reader
from visiontune.data.recordings.readers import read_session
from visiontune.errors import DataError


def nwb(path: Path, *, trials=True, intervals=False) -> Path:
    h5py = pytest.importorskip("h5py")
    path = path.with_suffix(".nwb")
    with h5py.File(path, "w") as file:
        file.attrs["nwb_version"] = "2.7.0"
        for name, start in {"movie": 10.0, "noise": 13.0}.items():
            group = file.create_group(f"stimulus/presentation/{name}")
            group.attrs["neurodata_type"] = "OpticalSeries"
            group["data"] = film(len(name), 20)
            if name == "movie":
                group["starting_time"] = start
                group["starting_time"].attrs["rate"] = 10.0
            else:
                group["timestamps"] = start + np.arange(20) / 10
        file["units/spike_times"] = np.array([10.05, 10.06, 11.99, 12.5, 13.0, 9.9, 14.95])
        file["units/spike_times_index"] = np.array([5, 7])
        file["units/id"] = np.array([7, 9])
        if intervals:
            file["units/obs_intervals"] = np.array([[0.0, 100.0], [13.0, 100.0]])
            file["units/obs_intervals_index"] = np.array([1, 2])
        if trials:
            file["intervals/trials/start_time"] = np.array([10.0, 11.0, 13.0, 30.0])
            file["intervals/trials/stop_time"] = np.array([11.0, 12.0, 15.0, 31.0])
            file["intervals/trials/id"] = np.array([0, 1, 2, 3])
            file["intervals/trials/condition"] = [b"a", b"a", b"", b""]
            file["intervals/trials/split"] = ["train", "", "test", ""]
        file["general/subject/subject_id"] = "mouse-1"
    return path


def test_spikes_of_an_nwb_file_are_counted_in_its_frames(tmp_path):
    session = read_session(nwb(tmp_path / "day1", intervals=True))
    found = session.recording
    assert (found.name, found.subject, found.units) == ("day1", "mouse-1", ("7", "9"))
    assert found.rate == pytest.approx(10)
    np.testing.assert_array_equal(found.stimulus, np.concatenate([film(5, 20), film(5, 20)]))
    expected = np.zeros((40, 2))
    expected[[0, 19, 20], 0], expected[0, 0], expected[39, 1] = 1, 2, 1  # 12.5 s lies between the stimuli
    np.testing.assert_array_equal(found.counts, expected)
    assert found.valid[:, 0].all() and not found.valid[:20, 1].any() and found.valid[20:39, 1].all()
    assert [(t.id, t.start, t.stop, t.kind, t.condition, t.split) for t in found.trials] == [
        ("trial-0", 0, 10, "movie", "a", "train"),
        ("trial-1", 10, 20, "movie", "a", None),
        ("trial-2", 20, 40, "noise", None, "test"),
    ]
    assert [fault.code for fault in session.faults] == ["empty-trials"]


def test_numbers_below_zero_and_nan_are_no_condition_of_an_nwb_file(tmp_path):
    path = nwb(tmp_path / "day1")
    import h5py

    with h5py.File(path, "a") as file:
        del file["intervals/trials/condition"]
        file["intervals/trials/condition"] = np.array([3.0, -1.0, np.nan, np.nan])
    assert [trial.condition for trial in read_session(path).recording.trials] == ["3", None, None]


@pytest.mark.parametrize("stop", [np.nan, np.inf, 10.0, 9.0])
def test_a_row_of_an_nwb_file_without_a_later_stop_is_no_trial(tmp_path, stop):
    path = nwb(tmp_path / "day1")
    import h5py

    with h5py.File(path, "a") as file:
        file["intervals/trials/stop_time"][0] = stop
    session = read_session(path)
    assert [(t.id, t.start, t.stop) for t in session.recording.trials] == [("trial-1", 10, 20), ("trial-2", 20, 40)]
    assert [(fault.code, fault.found.split()[0]) for fault in session.faults] == [
        ("empty-trials", "1"), ("untimed-trials", "1")
    ]  # fmt: skip


def test_without_a_trials_table_each_stretch_of_an_nwb_file_is_a_trial(tmp_path):
    found = read_session(nwb(tmp_path / "day1", trials=False)).recording
    assert [(t.start, t.stop, t.kind) for t in found.trials] == [(0, 20, "movie"), (20, 40, "noise")]


def test_stimuli_of_an_nwb_file_may_take_turns(tmp_path):
    path = nwb(tmp_path / "day1", trials=False)
    import h5py

    with h5py.File(path, "a") as file:
        times = file["stimulus/presentation/noise/timestamps"]
        times[:10], times[10:] = 5 + np.arange(10) / 10, 20 + np.arange(10) / 10
    found = read_session(path).recording
    assert [(t.start, t.stop, t.kind) for t in found.trials] == [
        (0, 10, "noise"), (10, 30, "movie"), (30, 40, "noise")
    ]  # fmt: skip
    np.testing.assert_array_equal(found.stimulus[30:], film(5, 20)[10:])
    with h5py.File(path, "a") as file:
        file["stimulus/presentation/noise/timestamps"][:] = 10.51 + np.arange(20) / 10
    with pytest.raises(DataError, match="two frames are shown"):
        read_session(path)


def indexed(path: Path, numbers, images: np.ndarray | None = None, *, in_order=True) -> Path:
    """The movie of an NWB file as numbers of images: of a series, or of a collection, in backward order."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "a") as file:
        movie = file["stimulus/presentation/movie"]
        movie.attrs["neurodata_type"] = "IndexSeries"
        if images is None:
            file.move("stimulus/presentation/movie/data", "stimulus/templates/scenes/data")
            movie["indexed_timeseries"] = h5py.SoftLink("/stimulus/templates/scenes")
        else:
            del movie["data"]
            group = file.create_group("stimulus/templates/scenes")
            for number, image in enumerate(images):
                group[f"image_{number}"] = image
            if in_order:
                order = [group[f"image_{number}"].ref for number in reversed(range(len(images)))]
                group.create_dataset("order_of_images", data=order, dtype=h5py.ref_dtype)
            movie["indexed_images"] = h5py.SoftLink("/stimulus/templates/scenes")
        movie["data"] = np.array(numbers)
    return path


@pytest.mark.parametrize("kind", ["series", "images"])
def test_an_index_series_shows_the_images_that_it_numbers(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(reader, "CHUNK", 7)  # three pieces
    numbers = np.arange(19, -1, -1)
    frames = film(5, 20)
    path = nwb(tmp_path / "day1", trials=False)
    indexed(path, numbers, None if kind == "series" else frames[::-1])
    session = read_session(path)
    assert session.recording.stimulus.dtype == np.uint8 and not session.faults
    np.testing.assert_array_equal(session.recording.stimulus[:20], frames[::-1])
    np.testing.assert_array_equal(session.recording.stimulus[20:], frames)


def test_blank_screens_of_an_index_series_are_left_out_and_counted(tmp_path):
    path = indexed(nwb(tmp_path / "day1", trials=False), [*range(5), -1, -1, *range(7, 20)])
    session = read_session(path)
    assert [(t.start, t.stop, t.kind) for t in session.recording.trials] == [
        (0, 5, "movie"), (5, 18, "movie"), (18, 38, "noise")
    ]  # fmt: skip
    np.testing.assert_array_equal(session.recording.stimulus[5:18], film(5, 20)[7:])
    (fault,) = session.faults
    assert fault.code == "blank-frames" and fault.found.startswith("2 of its 20 numbers")


def test_parts_of_a_trial_of_an_nwb_file_stand_at_their_places_in_its_stimulus(tmp_path):
    """Blank screens take places of the stimulus; a frame that stays too long delays the others and takes none."""
    import h5py

    path = indexed(nwb(tmp_path / "day1"), [*range(5), -1, -1, *range(7, 20)])
    with h5py.File(path, "a") as file:
        times = file["stimulus/presentation/noise/timestamps"]
        times[5:] = times[5:] + 0.2
    found = read_session(path).recording
    assert [(t.id, t.start, t.stop, t.offset) for t in found.trials] == [
        ("trial-0", 0, 5, 0), ("trial-0+1", 5, 8, 7), ("trial-1", 8, 18, 0), ("trial-2", 18, 23, 0),
        ("trial-2+1", 23, 36, 5),
    ]  # fmt: skip


def test_an_index_series_that_shows_no_grey_images_is_a_clear_error(tmp_path):
    grey, colours = film(5, 3), np.zeros((3, 4, 5, 3), np.uint8)
    for place, (numbers, images, in_order, said) in enumerate(
        [
            ([0, 1, 2, 3] * 5, grey, True, "5 of 20 numbers are 3 or more"),
            ([-1] * 20, grey, True, "no number of the series"),
            ([0] * 20, colours, True, r"not grey and of one size: \(4, 5, 3\)"),
            ([0] * 20, grey, False, "names none that are grey and in order"),
        ]
    ):
        path = indexed(nwb(tmp_path / str(place)), numbers, images, in_order=in_order)
        with pytest.raises(DataError, match=said) as error:
            read_session(path)
        assert str(error.value.where).endswith("stimulus/presentation/movie")


def test_an_nwb_file_without_frames_or_spikes_says_what_it_holds(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = nwb(tmp_path / "day1")
    with h5py.File(path, "a") as file:
        del file["units/spike_times"]
    with pytest.raises(DataError, match="no spike times"):
        read_session(path)
    with h5py.File(path, "a") as file:
        for name in ("movie", "noise"):
            del file[f"stimulus/presentation/{name}/data"]
    with pytest.raises(DataError, match=r"movie \(OpticalSeries\)"):
        read_session(path)
