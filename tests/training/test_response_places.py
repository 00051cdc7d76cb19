"""Units start reading where their spikes say that they look; those whose spikes say nothing start as before."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from visiontune.data.recordings.clips import ClipDataset
from visiontune.data.recordings.store import write_recording
from visiontune.models.cortex_network import Cortex, CortexConfig
from visiontune.models.cortex_readout import START_SPREAD
from visiontune.simulated_neurons import Simulated, simulate
from visiontune.training.response_places import place_readouts, response_map

UNITS = 24


@pytest.fixture(scope="module")
def simulated() -> Simulated:
    return simulate("one", seed=2, units=UNITS, seconds=120, repeats=(1, 4))


@pytest.fixture(scope="module")
def recorded(simulated: Simulated, tmp_path_factory: pytest.TempPathFactory) -> ClipDataset:
    return ClipDataset.open(write_recording(simulated.recording, tmp_path_factory.mktemp("one") / "one"))


def network(dataset: ClipDataset, readout: str = "gaussian", **shape: object) -> Cortex:
    recording = dataset.info.recording
    assert recording is not None
    return Cortex(CortexConfig.model_validate({
        "height": recording.height, "width": recording.width, "readout": readout, "units": recording.unit_keys,
        "stimulus_mean": recording.stimulus_mean, "stimulus_std": recording.stimulus_std, "sessions": [recording.name],
        "channels": [8], "kernels": [5], "temporal_kernels": [1], "strides": [2], "pools": [1],
    } | shape))  # fmt: skip


def true_places(simulated: Simulated) -> np.ndarray:
    """(units, 2): the middles of the cells' filters, down and across in [-1, 1]."""
    side = 24
    weight = simulated.cells.pool.T.reshape(UNITS, side, side) ** 4
    weight /= weight.sum(axis=(1, 2), keepdims=True)
    axis = (2 * np.arange(side) + 1) / side - 1
    return np.stack([weight.sum(axis=2) @ axis, weight.sum(axis=1) @ axis], axis=1)


@pytest.mark.parametrize("readout", ["gaussian", "factorised"])
def test_units_start_where_their_fields_are(simulated: Simulated, recorded: ClipDataset, readout: str) -> None:
    cortex = network(recorded, readout)
    placed = place_readouts(cortex, [recorded])
    assert placed > 0.75 * UNITS
    tables = {name: table.detach() for name, table in cortex.readout.tables().items()}
    if readout == "gaussian":
        evident = tables["width"][:, 0] < tables["width"].max() - 1e-6 if placed < UNITS else torch.ones(UNITS) > 0
        found = tables["place"]
    else:
        mask = tables["mask"].unflatten(1, cortex.config.feature_size)
        evident = mask.flatten(1).amax(dim=1) > 0.05
        rows, columns = cortex.readout.get_buffer("rows"), cortex.readout.get_buffer("columns")
        found = torch.stack([mask.sum(dim=2) @ rows, mask.sum(dim=1) @ columns], dim=1)
        assert mask[evident].sum(dim=(1, 2)) == pytest.approx(1, abs=1e-4)
    assert int(evident.sum()) == placed
    away = np.hypot(*(found.numpy() - true_places(simulated))[evident.numpy()].T) * 12  # pixels
    assert np.median(away) < 1.5 and np.quantile(away, 0.8) < 3


def test_units_whose_spikes_tell_of_no_place_start_as_before(simulated: Simulated, tmp_path: Path) -> None:
    counts = np.random.default_rng(0).permutation(simulated.recording.counts)
    told = replace(simulated.recording, name="told", counts=counts)
    recorded = ClipDataset.open(write_recording(told, tmp_path / "told"))
    cortex, untouched = network(recorded), network(recorded)
    assert place_readouts(cortex, [recorded]) == 0
    for name, table in cortex.readout.tables().items():
        assert torch.equal(table, untouched.readout.tables()[name])
    assert cortex.readout.spread().min() > START_SPREAD**2


def test_units_that_are_known_keep_their_places(recorded: ClipDataset) -> None:
    cortex, untouched = network(recorded), network(recorded)
    known = frozenset(cortex.config.units[:10])
    place_readouts(cortex, [recorded], known)
    same = (cortex.readout.tables()["place"] == untouched.readout.tables()["place"]).all(dim=1)
    assert same[:10].all() and not same[10:].all()


def test_each_session_places_its_own_units(simulated: Simulated, recorded: ClipDataset, tmp_path: Path) -> None:
    few = replace(
        simulated.recording, name="few", counts=simulated.recording.counts[:, :5], units=simulated.recording.units[:5]
    )
    other = ClipDataset.open(write_recording(few, tmp_path / "few"))
    units = [key for dataset in (other, recorded) if dataset.info.recording for key in dataset.info.recording.unit_keys]
    both = network(recorded, units=units, sessions=["few", "one"])
    alone = network(recorded)
    place_readouts(both, [recorded, other])
    place_readouts(alone, [recorded])
    places, own = both.readout.tables()["place"], alone.readout.tables()["place"]
    narrow = alone.readout.spread() < START_SPREAD**2
    assert torch.equal(places[5:][narrow], own[narrow])
    assert torch.allclose(places[:5][narrow[:5]], own[:5][narrow[:5]], atol=1e-4) and narrow[:5].any()


def test_no_more_clips_are_looked_at_than_are_trained_on(recorded: ClipDataset) -> None:
    assert place_readouts(network(recorded), [recorded], limit=1) < place_readouts(network(recorded), [recorded])


def test_the_places_follow_from_the_very_bins_that_a_limit_leaves(
    simulated: Simulated, recorded: ClipDataset, tmp_path: Path
) -> None:
    """What stands in the train split beyond the limit does not matter, and what stands within it does."""
    limit, clip, burn_in = 2, 16, 30
    cut = ClipDataset.open(recorded.path, clip, burn_in)
    within, beyond = np.zeros((2, len(simulated.recording.counts)), bool)
    for trial in cut.trials:
        beyond[trial.start : trial.stop] = trial.split == "train"
    beyond &= simulated.recording.valid[:, 0]
    for number in range(limit):
        within[cut.where("train", number).start :][:clip] = True
    expected = response_map(network(recorded), cut, limit)
    for name, bins in (("beyond", beyond & ~within), ("within", within)):
        counts = simulated.recording.counts.copy()
        counts[bins] = np.random.default_rng(0).permutation(counts[bins])  # of the same means
        path = write_recording(replace(simulated.recording, counts=counts), tmp_path / name)
        found = response_map(network(recorded), ClipDataset.open(path, clip, burn_in), limit)
        assert torch.equal(found, expected) == (name == "beyond")


def test_bins_that_are_not_valid_tell_nothing(simulated: Simulated, recorded: ClipDataset, tmp_path: Path) -> None:
    valid = simulated.recording.valid.copy()
    counts = simulated.recording.counts.copy()
    valid[::2] = False
    counts[::2] = 200  # what a lost bin holds is not looked at
    told = replace(simulated.recording, name="told", counts=counts, valid=valid)
    half = ClipDataset.open(write_recording(told, tmp_path / "told"))
    cortex = network(half)
    assert place_readouts(cortex, [half]) > 0.4 * UNITS


def test_a_core_without_filters_in_time_looks_at_the_frame_itself(recorded: ClipDataset) -> None:
    cortex = network(recorded, frontend="none", temporal_kernels=[1])
    assert cortex.memory == 0
    assert 0 <= place_readouts(cortex, [recorded]) <= UNITS
