import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from visiontune.data.recordings.clips import ClipDataset
from visiontune.data.recordings.recording import Recording, Trial
from visiontune.data.recordings.store import write_recording
from visiontune.errors import DataError
from visiontune.models.cortex import CortexAdapter, clip_of
from visiontune.models.cortex_network import Cortex, CortexConfig
from visiontune.recipe import Recipe, parse
from visiontune.recipe_targets import CoreShape
from visiontune.run import Run
from visiontune.training.receptive_fields import Fields, best_units, receptive_fields, write_fields

SIDE, LAGS, BURN_IN, CLIP = 7, 3, 4, 32
MEAN, STD = 10.0, 2.0
QUIET = 0.3  # spikes a bin at mean brightness
CPU = torch.device("cpu")
CHOICES = {
    "clip": CLIP, "burn_in": BURN_IN, "rate": 20.0, "frontend": "none", "core": "conv", "channels": [2], "kernels": [5],
    "temporal_kernels": [LAGS], "strides": [1], "pools": [1], "norm": "none", "modulation": "none",
    "recurrence": "none", "readout": "linear", "output": "exp",
}  # fmt: skip


def kernel(seed: int, middle: tuple[int, int] = (3, 3)) -> np.ndarray:
    """A filter over (lags, height, width), of length one, that lies within 5 x 5 pixels: a spot that fades with lag."""
    down, across = np.meshgrid(np.arange(SIDE) - middle[0], np.arange(SIDE) - middle[1], indexing="ij")
    spot = np.exp(-(down**2 + across**2) / 2) * np.where(across > 0, -1.0, 1.0 + 0.3 * seed)
    spot *= (abs(down) <= 2) & (abs(across) <= 2)
    film = np.array([0.3, 1.0, -0.5])[:, None, None] * spot
    return film / np.sqrt((film**2).sum())


def drives(film: np.ndarray, stimulus: np.ndarray) -> np.ndarray:
    """The filter applied to what was shown up to each bin: (bins,); the first ones see frames of mean brightness."""
    seen = np.concatenate([np.zeros((LAGS - 1, SIDE, SIDE)), (stimulus - MEAN) / STD])
    shown = np.stack([seen[LAGS - 1 - lag :][: len(stimulus)] for lag in range(LAGS)], axis=1)
    return (shown * film).sum(axis=(1, 2, 3))


def recording(
    films: Sequence[np.ndarray], *, bins: int = 5200, name: str = "a", behaviour: int = 0, seed: int = 1
) -> Recording:
    """Linear-nonlinear units that see white noise, in trials of 400 bins for training and one more for validation."""
    random = np.random.default_rng(seed)
    stimulus = random.normal(MEAN, STD, (bins, SIDE, SIDE)).astype(np.float32)
    rates = np.stack([QUIET * np.exp(drives(film, stimulus)) for film in films], axis=1)
    trials = [Trial(f"t{i}", i, min(i + 400, bins), split="train") for i in range(0, bins, 400)]
    trials[-1] = replace(trials[-1], split="validation")
    return Recording(
        name=name,
        rate=50.0,
        stimulus=stimulus,
        counts=np.minimum(random.poisson(rates), 255).astype(np.uint8),
        valid=np.ones((bins, 1), bool),
        units=tuple(f"u{i}" for i in range(len(films))),
        trials=tuple(trials),
        behaviour=random.normal(0, 1, (bins, behaviour)).astype(np.float32) if behaviour else None,
    )


def stored(folder: Path, made: Recording) -> ClipDataset:
    return ClipDataset.open(write_recording(made, folder / made.name), CLIP, BURN_IN)


def recipe_of(datasets: Sequence[ClipDataset], **choices: Any) -> Recipe:
    uses = [{"path": str(dataset.path), "content_hash": dataset.info.content_hash} for dataset in datasets]
    value = {
        "model": {"name": "cortex"},
        "data": {"datasets": uses},
        "responses": {**CHOICES, **choices},
        "parts": {"core": "full", "readout": "full", "adapter": "full"},
        "lora": {"rank": 8, "alpha": 16.0, "dropout": 0.0},
        "optimizer": {"learning_rate": 3e-4, "weight_decay": 0.01},
        "schedule": {"steps": 10},
        "batch": {"samples": 4, "tokens": 64, "window": 32},
        "evaluation": {"every": 10, "samples": 6, "metric": "bits_per_spike"},
        "checkpoints": {"every": 10},
        "machine": {"device": "cpu", "precision": "fp32", "workers": 0, "threads": 1},
    }
    return parse(value, "test")


def config_of(datasets: Sequence[ClipDataset], **values: Any) -> CortexConfig:
    of_the_network = {name: value for name, value in CHOICES.items() if name in CoreShape.model_fields}
    fixed = {"height": SIDE, "width": SIDE, "stimulus_mean": MEAN, "stimulus_std": STD}
    fixed |= {"sessions": [one.recording.name for one in datasets], "units": [u for one in datasets for u in one.units]}
    return CortexConfig.model_validate({**fixed, **of_the_network, **values})


def by_hand(datasets: Sequence[ClipDataset], films: Sequence[np.ndarray]) -> CortexAdapter:
    """A network whose two channels are the filters of units, each read at the middle: it is the units' own model."""
    cortex = Cortex(config_of(datasets))
    with torch.no_grad():
        weight = cortex.get_parameter("core.blocks.0.weight")  # (out, in, time, height, width), the newest frame last
        weight.zero_()
        for channel, film in enumerate(films[:2]):
            weight[channel, 0] = torch.from_numpy(film[::-1, 1:6, 1:6].copy())
        cortex.get_parameter("core.blocks.0.bias").fill_(30.0)  # so that nothing is cut off at zero
        readout = cortex.get_parameter("readout.weight")
        readout.zero_()
        for unit in range(len(readout)):
            readout[unit, unit % 2, 3, 3] = 1.0
        cortex.get_parameter("readout.bias").fill_(np.log(QUIET) - 30.0)
    return CortexAdapter(cortex, recipe_of(datasets).responses or pytest.fail("no responses"))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))


FILMS = (kernel(0), kernel(1))


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> ClipDataset:
    return stored(tmp_path_factory.mktemp("sessions"), recording(FILMS))


@pytest.fixture(scope="module")
def fields(session: ClipDataset) -> Fields:
    return receptive_fields(by_hand([session], FILMS), [session], recipe_of([session]), CPU, session.units, 16)


@pytest.mark.parametrize("unit", [0, 1])
def test_the_gradient_field_of_a_linear_nonlinear_network_is_its_filter(fields: Fields, unit: int) -> None:
    assert fields.gradient.shape == (2, LAGS, SIDE, SIDE) and fields.gradient.dtype == np.float32
    assert cosine(fields.gradient[unit], FILMS[unit]) > 0.99


def test_the_spike_triggered_average_of_a_unit_in_white_noise_is_its_filter(fields: Fields) -> None:
    for unit, film in enumerate(FILMS):
        assert cosine(fields.average[unit], film) > 0.9
        # for white Gaussian noise and an exponential output it is the filter itself, not only its direction
        assert (fields.average[unit] * film).sum() == pytest.approx(1, abs=0.15)
    assert cosine(fields.average[0], FILMS[0]) > cosine(fields.average[0], FILMS[1])


def test_the_most_exciting_input_is_the_filter_at_the_contrast_of_training_frames(fields: Fields) -> None:
    for unit, film in enumerate(FILMS):
        assert cosine(fields.exciting[unit], film) > 0.99
        assert np.sqrt((fields.exciting[unit] ** 2).mean()) == pytest.approx(1, abs=1e-5)
    # a filter of length one by a film of that contrast: no film can excite more
    highest = np.log(QUIET) + np.sqrt(LAGS * SIDE * SIDE)
    assert np.log(fields.exciting_rates) == pytest.approx([highest] * 2, rel=0.02)
    assert (fields.exciting_rates > 10 * fields.mean_rates).all()


def test_mean_rates_and_spikes_are_those_of_the_training_bins_that_are_predicted(
    session: ClipDataset, fields: Fields
) -> None:
    counts, trials = np.load(session.path / "counts.npy"), [t for t in session.trials if t.split == "train"]
    training = np.concatenate([counts[trial.start : trial.stop] for trial in trials])
    predicted = np.concatenate([counts[trial.start + BURN_IN : trial.stop] for trial in trials])
    assert fields.mean_rates == pytest.approx(training.mean(axis=0))
    assert fields.spikes.tolist() == predicted.sum(axis=0).tolist()


def test_the_same_arguments_give_the_same_fields_whoever_else_is_asked_for(
    session: ClipDataset, fields: Fields
) -> None:
    adapter = by_hand([session], FILMS)
    again = receptive_fields(adapter, [session], recipe_of([session]), CPU, session.units, 16)
    alone = receptive_fields(adapter, [session], recipe_of([session]), CPU, [session.units[1]], 16)
    for name in ("average", "gradient", "exciting"):
        assert np.array_equal(getattr(again, name), getattr(fields, name))
        assert np.allclose(getattr(alone, name)[0], getattr(fields, name)[1], atol=1e-4)


def test_bins_that_are_not_valid_and_units_without_spikes_do_no_harm(tmp_path: Path) -> None:
    made = recording(FILMS, bins=2000)
    counts, valid = np.array(made.counts), np.ones_like(made.counts, bool)
    lost = made.stimulus[:, 3, 3] > MEAN + STD
    counts[lost, 0], valid[lost, 0] = 200, False
    counts[:, 1] = 0
    dataset = stored(tmp_path, replace(made, counts=counts, valid=valid))
    fields = receptive_fields(by_hand([dataset], FILMS), [dataset], recipe_of([dataset]), CPU, dataset.units, 4)
    assert cosine(fields.average[0], FILMS[0]) > 0.6 and abs(fields.average[0]).max() < 1
    assert np.isnan(fields.average[1]).all() and fields.spikes[1] == 0
    assert np.isfinite(fields.gradient).all() and np.isfinite(fields.exciting).all()


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_with_behaviour_and_recurrence_the_gradient_is_that_of_the_prediction_itself(tmp_path: Path) -> None:
    made = replace(recording(FILMS, bins=1200, behaviour=2), behaviour_names=("running", "pupil"))
    dataset = stored(tmp_path, made)
    recurrent = {"modulation": "film", "recurrence": "convgru", "recurrent_channels": 2, "readout": "gaussian"}
    recipe = recipe_of([dataset], **recurrent)
    assert recipe.responses is not None
    cortex = Cortex(config_of([dataset], behaviour=2, **recurrent), 3).double()
    with torch.no_grad():
        for weight in cortex.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=weight.dtype))
    adapter = CortexAdapter(cortex, recipe.responses)
    fields = receptive_fields(adapter, [dataset], recipe, CPU, [dataset.units[1]], 1)
    sample = dataset.sample("train", 0)
    std = dataset.recording.stimulus_std
    for lag, row, column in ((0, 3, 3), (2, 1, 4)):
        rates = []
        for change in (0.01, -0.01):
            frames = np.array(clip_of(sample).frames)
            frames[BURN_IN - lag, row, column] += change * std
            changed = replace(sample, seen=replace(clip_of(sample), frames=frames))
            batch = adapter.encoder.collate([adapter.encoder.encode(changed)])
            with torch.no_grad():
                rates.append(float(adapter.rates(batch)[0, 0, 1]))
        slope = (rates[0] - rates[1]) / 0.02
        assert abs(slope) > 1e-4 and fields.gradient[0, lag, row, column] == pytest.approx(slope, rel=0.02)
    assert np.sqrt((fields.exciting**2).mean()) == pytest.approx(1, abs=1e-5)


def test_units_of_several_sessions_keep_the_order_in_which_they_are_asked_for(
    tmp_path: Path, session: ClipDataset
) -> None:
    other = stored(tmp_path, recording(FILMS, bins=1200, name="b", seed=2))
    datasets = [session, other]
    adapter, units = by_hand(datasets, FILMS), ["b/u1", "a/u0", "b/u0"]
    fields = receptive_fields(adapter, datasets, recipe_of(datasets), CPU, units, 2)
    assert fields.units == tuple(units)
    for row, film in enumerate((FILMS[1], FILMS[0], FILMS[0])):
        assert cosine(fields.gradient[row], film) > 0.99
    assert fields.mean_rates[1] == session.recording.mean_counts[0]


def test_a_unit_that_no_dataset_has_is_named(session: ClipDataset) -> None:
    with pytest.raises(DataError, match="b/u7"):
        receptive_fields(by_hand([session], FILMS), [session], recipe_of([session]), CPU, ["a/u0", "b/u7"], 2)


def test_the_best_units_come_from_all_sessions_in_turn(tmp_path: Path, session: ClipDataset) -> None:
    other = stored(tmp_path, recording([FILMS[0]] * 3, bins=1200, name="b", seed=2))
    bits = {"a/u0": 0.5, "a/u1": 0.9, "b/u0": None, "b/u1": 0.1, "b/u2": -0.3}
    scores = {"per_unit": [{"unit": unit, "bits_per_spike": {"value": value}} for unit, value in bits.items()]}
    assert best_units([session, other], scores) == ["a/u1", "b/u1", "a/u0", "b/u2", "b/u0"]
    assert best_units([session, other], scores, 3) == ["a/u1", "b/u1", "a/u0"]
    by_spikes = best_units([session, other], None, 2)
    assert [unit[0] for unit in by_spikes] in (["a", "b"], ["b", "a"])
    rates = dict(zip(session.units, session.recording.mean_counts, strict=True))
    assert max(rates, key=lambda unit: rates[unit]) in by_spikes


def test_fields_are_written_beside_the_evaluations(tmp_path: Path, session: ClipDataset, fields: Fields) -> None:
    run = Run(tmp_path / "run")
    path = write_fields(run, by_hand([session], FILMS), [session], recipe_of([session]), CPU, 7, clips=16)
    assert path == run.path / "evaluations" / "fields.npz"
    said = json.loads(path.with_suffix(".json").read_text())
    with np.load(path, allow_pickle=False) as file:
        units = file["units"].tolist()
        assert sorted(units) == sorted(session.units) == sorted(one["unit"] for one in said["units"])
        for name in ("average", "gradient", "exciting"):
            assert file[name].dtype == np.float32 and file[name].shape == (2, LAGS, SIDE, SIDE)
            row = units.index("a/u0")
            assert np.allclose(file[name][row], getattr(fields, name)[0], atol=1e-4)
    assert (said["step"], said["lags"], said["clips"]) == (7, LAGS, 16)
    for one in said["units"]:
        row = fields.units.index(one["unit"])
        assert one["mean_rate"] == pytest.approx(fields.mean_rates[row], abs=1e-5)
        assert one["exciting_rate"] == pytest.approx(fields.exciting_rates[row], rel=1e-3)
