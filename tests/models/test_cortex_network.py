"""Facts about the network that predicts responses: mixed batches, what it refuses, saves and takes over."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from visiontune.errors import ModelError
from visiontune.models.cortex_network import PARTS, Cortex, CortexConfig
from visiontune.models.cortex_transfer import with_units

SMALL: dict[str, Any] = {
    "height": 10, "width": 12, "stimulus_mean": 120.0, "stimulus_std": 50.0, "temporal_taps": 4, "channels": (4, 6),
    "kernels": (3, 3), "temporal_kernels": (1, 2), "strides": (1, 1), "pools": (2, 1), "sessions": ("a", "b", "c"),
    "units": ("a/0", "a/1", "b/0", "c/0", "c/1"),
}  # fmt: skip


def small(**changes: Any) -> CortexConfig:
    return CortexConfig.model_validate({**SMALL, **changes})


def batch(cortex: Cortex, bins: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Clips of all three sessions, each with two places for units; the second one's last is padding."""
    generator = torch.Generator().manual_seed(0)
    config, frames = cortex.config, bins + cortex.memory
    clips = torch.randint(0, 256, (3, frames, config.height, config.width), generator=generator).to(torch.uint8)
    behaviour = torch.randn(3, frames, config.behaviour, generator=generator) if config.behaviour else None
    return clips, torch.tensor([0, 1, 2]), torch.tensor([[0, 1], [2, 0], [3, 4]]), behaviour


FULL = [{"modulation": "film", "behaviour": 3}, {"modulation": "concat", "behaviour": 2}, {}]


@pytest.mark.parametrize("readout", ["gaussian", "factorised", "linear"])
@pytest.mark.parametrize("output", ["softplus", "exp"])
@pytest.mark.parametrize("more", FULL)
def test_in_a_mixed_batch_every_parameter_learns(readout: str, output: str, more: dict[str, Any]) -> None:
    recurrence = {"recurrence": "convgru", "recurrent_channels": 4} if output == "exp" else {}
    cortex = Cortex(small(readout=readout, output=output, **more, **recurrence), 1)
    with torch.no_grad():
        for weight in cortex.modulation.parameters():
            weight.add_(0.01)  # a zero layer sends no gradient to what stands before it
    clips, sessions, units, behaviour = batch(cortex)
    rates = cortex(clips, sessions, units, behaviour)
    assert rates.shape == (3, 5, 2) and (rates > 0).all()
    (rates - 3 * rates.log()).sum().backward()
    still = [name for name, weight in cortex.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert still == []
    rows = cortex.readout.bias.grad
    assert rows is not None and (rows != 0).all()
    assert cortex.adapter.table.grad is not None and (cortex.adapter.table.grad != 0).all()


@pytest.mark.parametrize("readout", ["gaussian", "factorised", "linear"])
def test_what_the_mask_leaves_out_has_no_gradient(readout: str) -> None:
    cortex = Cortex(small(readout=readout), 1)
    clips, sessions, _, _ = batch(cortex)
    units = torch.tensor([[1, 0], [2, 0], [3, 4]])  # row 0 only pads
    valid = torch.tensor([[True, False], [True, False], [True, True]])
    (cortex(clips, sessions, units) * valid[:, None]).sum().backward()
    for name, weight in cortex.readout.named_parameters():
        assert weight.grad is not None
        assert not weight.grad[0].any(), name
        assert all(weight.grad[unit].any() for unit in (1, 2, 3, 4)), name


def test_mixed_precision_gives_nearly_the_same_rates_and_gradients() -> None:
    cortex = Cortex(small(modulation="film", behaviour=3, recurrence="convgru", recurrent_channels=4), 1)
    clips, sessions, units, behaviour = batch(cortex)
    rates = cortex(clips, sessions, units, behaviour)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        coarse = cortex(clips, sessions, units, behaviour)
        coarse.float().sum().backward()
    assert torch.allclose(coarse.float(), rates, rtol=0.02)
    assert all(weight.grad is not None and torch.isfinite(weight.grad).all() for weight in cortex.parameters())


def test_units_of_a_sample_come_in_the_order_asked_for() -> None:
    cortex = Cortex(small(), 1)
    clips, sessions, _, _ = batch(cortex)
    features = cortex.features(clips, sessions)
    every = cortex.rates(features, torch.arange(5).expand(3, 5))
    some = cortex.rates(features, torch.tensor([[4, 0], [2, 2], [1, 3]]))
    assert torch.allclose(some[0], every[0][:, [4, 0]]) and torch.allclose(some[1], every[1][:, [2, 2]])
    assert not torch.allclose(every[0][:, 0], every[0][:, 1])


def test_frames_are_normalised_on_the_device() -> None:
    cortex = Cortex(small(), 0).double()
    clips, sessions, units, _ = batch(cortex)
    plain = Cortex(small(stimulus_mean=0.0, stimulus_std=1.0), 0).double()
    with torch.no_grad():
        normalised = cortex(clips, sessions, units)
        assert torch.equal(plain((clips.double() - 120) / 50, sessions, units), normalised)
        assert torch.equal(cortex(clips.double(), sessions, units), normalised)


@pytest.mark.parametrize("output", ["softplus", "exp"])
def test_units_start_at_their_mean_rate(output: str) -> None:
    cortex = Cortex(small(output=output), 0)
    rates = torch.tensor([1e-3, 0.05, 0.7, 4.0, 60.0])
    cortex.initialise_bias(rates)
    clips, sessions, _, _ = batch(cortex)
    units = torch.arange(5).expand(3, 5)
    features = cortex.features(clips, sessions)
    assert torch.allclose(cortex.rates(features * 0, units)[0, 0], rates, rtol=1e-5)
    drive = cortex.readout(features, units) - cortex.readout.bias
    assert 0 < drive.abs().max() < 0.2  # features weigh little at the start, but not nothing
    cortex.initialise_bias(torch.zeros(5))
    assert torch.isfinite(cortex.readout.bias).all()
    with pytest.raises(ModelError, match="5 units"):
        cortex.initialise_bias(torch.ones(4))
    with pytest.raises(ModelError, match="5 units"):
        cortex.initialise_bias(torch.full((5,), float("nan")))


def test_behaviour_is_never_left_out_or_unused_in_silence() -> None:
    plain, modulated = Cortex(small()), Cortex(small(modulation="film", behaviour=3))
    clips, sessions, _, behaviour = batch(modulated)
    assert behaviour is not None
    with pytest.raises(ModelError, match="none is given"):
        modulated.features(clips, sessions)
    with pytest.raises(ModelError, match="would not be used"):
        plain.features(clips, sessions, behaviour)
    with pytest.raises(ModelError, match="does not fit"):
        modulated.features(clips, sessions, behaviour[:, :-1])


def test_clips_that_do_not_fit_are_refused() -> None:
    cortex = Cortex(small())
    clips, sessions, _, _ = batch(cortex)
    with pytest.raises(ModelError, match="more than 4 frames"):
        cortex.features(clips[:, :4], sessions)
    with pytest.raises(ModelError, match="do not fit"):
        cortex.features(clips[..., :-1], sessions)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kernels": (3,)}, "one entry a block"),
        ({"kernels": (3, 4)}, "odd"),
        ({"channels": (4, 5)}, "multiple of 2"),
        ({"modulation": "film"}, "behaviour is above zero"),
        ({"behaviour": 2}, "behaviour is above zero"),
        ({"recurrence": "convgru"}, "recurrent_channels is above zero"),
        ({"recurrent_channels": 4}, "recurrent_channels is above zero"),
        ({"units": ("a/0", "a/0")}, "twice"),
        ({"stimulus_std": 0.0}, "greater than 0"),
        ({"kernel": 3}, "Extra inputs"),
    ],
)
def test_a_config_that_does_not_hold_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        small(**changes)


def test_what_is_saved_is_read_back_and_nothing_else_is_written(tmp_path: Path) -> None:
    cortex = Cortex(small(modulation="film", behaviour=2, recurrence="convgru", recurrent_channels=4), 3)
    cortex.save(tmp_path / "m")
    assert sorted(file.name for file in (tmp_path / "m").iterdir()) == ["config.json", "model.safetensors"]
    assert json.loads((tmp_path / "m/config.json").read_text())["model_type"] == "cortex"
    again = Cortex.load(tmp_path / "m")
    assert again.config == cortex.config
    clips, sessions, units, behaviour = batch(cortex)
    assert torch.equal(again(clips, sessions, units, behaviour), cortex(clips, sessions, units, behaviour))


def test_loading_names_the_tensors_that_do_not_fit(tmp_path: Path) -> None:
    Cortex(small()).save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["core.blocks.7.weight"] = tensors.pop("core.blocks.0.weight")
    tensors["readout.bias"] = torch.zeros(4)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError) as error:
        Cortex.load(tmp_path)
    for words in ("blocks.0.weight is missing", "blocks.7.weight is not expected", "readout.bias is (4,) and not (5,)"):
        assert words in str(error.value)
    with pytest.raises(ModelError, match="no network for responses"):
        Cortex.load(tmp_path / "nowhere")


def test_every_weight_stands_in_a_part_and_exists_from_the_start() -> None:
    """A recurrence whose weights are made at the first call is in no optimiser: here they are there at once."""
    cortex = Cortex(small(recurrence="convgru", recurrent_channels=4))
    names = [name for name, _ in cortex.named_parameters()]
    assert {name.split(".")[0] for name in names} == set(PARTS) - {"modulation"}
    assert sum(name.startswith("recurrence.") for name in names) == 4
    clips, sessions, units, _ = batch(cortex)
    cortex(clips, sessions, units)
    assert [name for name, _ in cortex.named_parameters()] == names


def test_weights_come_from_the_seed_alone() -> None:
    before = torch.get_rng_state()
    first, second, third = Cortex(small(), 5), Cortex(small(units=("x/1", "x/2")), 5), Cortex(small(), 6)
    assert torch.equal(torch.get_rng_state(), before)
    name = "core.blocks.1.weight"
    assert torch.equal(first.get_parameter(name), second.get_parameter(name))  # other units, the same core
    assert not torch.equal(first.get_parameter(name), third.get_parameter(name))


def test_new_units_get_the_trained_core_and_a_list_of_what_was_taken() -> None:
    source = Cortex(small(), 1)
    with torch.no_grad():
        source.adapter.table.add_(0.1)
    made, taken = with_units(source, ["b", "new"], ["new/0", "b/0", "new/1"], torch.full((3,), 0.5), seed=9)
    assert made.config.units == ("new/0", "b/0", "new/1")
    theirs, ours = source.state_dict(), made.state_dict()
    assert set(taken.taken) == {name for name in ours if name.split(".")[0] not in ("adapter", "readout")}
    assert all(torch.equal(theirs[name], ours[name]) for name in taken.taken)
    assert set(taken.mixed) == {name for name in ours if name.split(".")[0] in ("adapter", "readout")}
    assert (taken.new, taken.sessions, taken.units) == ((), ("b",), ("b/0",))
    for name in ours:
        if name.startswith("readout."):
            assert torch.equal(ours[name][1], theirs[name][2]), name
    assert torch.equal(ours["adapter.table"][0], theirs["adapter.table"][1])
    assert not ours["adapter.table"][1].any()
    fresh = Cortex(made.config, 9)
    fresh.initialise_bias(torch.full((3,), 0.5))
    for name in ("readout.weight", "readout.bias"):
        assert torch.equal(ours[name][0], fresh.state_dict()[name][0])

    _, none = with_units(source, ["new"], ["new/0"], torch.ones(1), seed=9)
    assert set(none.new) == set(taken.mixed) and none.mixed == ()
    names = source.config.sessions, source.config.units
    same, every = with_units(source, *names, torch.ones(len(names[1])), seed=9)
    assert set(every.taken) == set(theirs)
    assert all(torch.equal(theirs[name], tensor) for name, tensor in same.state_dict().items())
