"""A clip computed at once equals each of its windows, and no sample of a batch changes another."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from visiontune.models.cortex_network import Cortex, CortexConfig


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def awake(config: CortexConfig, seed: int = 0) -> Cortex:
    """A network in float64 in which nothing is at its start: no zero, no identity."""
    cortex = Cortex(config, seed).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in cortex.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    return cortex


@st.composite
def configs(draw: st.DrawFn, recurrence: str = "none") -> CortexConfig:
    blocks = draw(st.integers(1, 3))

    def each(values: list[int]) -> tuple[int, ...]:
        return tuple(draw(st.lists(st.sampled_from(values), min_size=blocks, max_size=blocks)))

    modulation = draw(st.sampled_from(["none", "concat", "film"]))
    return CortexConfig.model_validate(
        {
            "height": draw(st.integers(5, 10)),
            "width": draw(st.integers(5, 10)),
            "stimulus_mean": 120.0,
            "stimulus_std": 50.0,
            "frontend": draw(st.sampled_from(["none", "learnable_temporal"])),
            "temporal_taps": draw(st.integers(1, 5)),
            "temporal_channels": draw(st.sampled_from([2, 4])),
            "core": draw(st.sampled_from(["resnet", "conv"])),
            "channels": each([2, 4, 6]),
            "kernels": each([1, 3, 5]),
            "temporal_kernels": each([1, 2, 3]),
            "strides": each([1, 2]),
            "pools": each([1, 2]),
            "activation": draw(st.sampled_from(["relu", "split_relu"])),
            "norm": draw(st.sampled_from(["rms", "none"])),
            "modulation": modulation,
            "behaviour": 0 if modulation == "none" else draw(st.integers(1, 3)),
            "recurrence": recurrence,
            "recurrent_channels": 4 if recurrence == "convgru" else 0,
            "readout": draw(st.sampled_from(["gaussian", "factorised", "linear"])),
            "sessions": ("a", "b"),
            "units": ("a/0", "a/1", "b/0"),
        }
    )


@settings(max_examples=40, deadline=None)
@given(config=configs(), bins=st.integers(1, 7), seed=st.integers(0, 1000))
def test_a_clip_computed_at_once_equals_each_of_its_windows_exactly(config: CortexConfig, bins: int, seed: int) -> None:
    cortex = awake(config, seed)
    frames = bins + cortex.memory
    pixels = torch.randint(0, 256, (1, frames, config.height, config.width), generator=torch.Generator().manual_seed(1))
    clip, session = pixels.to(torch.uint8), torch.tensor([1])
    behaviour = drawn(1, frames, config.behaviour) if config.behaviour else None
    with torch.no_grad():
        dense = cortex.features(clip, session, behaviour)
        assert (dense.shape[0], *dense.shape[2:]) == (1, bins, *config.feature_size)
        for start in range(bins):
            window = slice(start, start + cortex.memory + 1)
            seen = None if behaviour is None else behaviour[:, window]
            alone = cortex.features(clip[:, window].clone(), session, seen)
            assert (alone[:, :, 0] - dense[:, :, start]).abs().max() == 0.0


@settings(max_examples=20, deadline=None)
@given(config=configs(), extra=st.integers(1, 4))
def test_rates_of_windows_equal_those_of_the_clip(config: CortexConfig, extra: int) -> None:
    cortex = awake(config)
    bins = 3
    clip = drawn(1, bins + cortex.memory, config.height, config.width) * 50 + 120
    session, units = torch.tensor([0]), torch.tensor([[0, 2, 1]])
    behaviour = drawn(1, clip.shape[1], config.behaviour) if config.behaviour else None
    longer = torch.cat([drawn(1, extra, config.height, config.width, seed=3), clip], dim=1)
    more = None if behaviour is None else torch.cat([drawn(1, extra, config.behaviour, seed=4), behaviour], dim=1)
    with torch.no_grad():
        short, long = cortex(clip, session, units, behaviour), cortex(longer, session, units, more)
    assert short.shape == (1, bins, 3)
    assert torch.allclose(long[:, extra:], short, atol=0, rtol=1e-12)


@settings(max_examples=15, deadline=None)
@given(config=st.sampled_from(["none", "convgru"]).flatmap(configs))
def test_no_sample_of_a_batch_changes_another(config: CortexConfig) -> None:
    cortex = awake(config)
    frames = cortex.memory + 4
    clips = drawn(3, frames, config.height, config.width) * 50 + 120
    sessions, units = torch.tensor([0, 1, 0]), torch.tensor([[0, 1], [2, 0], [1, 1]])
    behaviour = drawn(3, frames, config.behaviour) if config.behaviour else None
    with torch.no_grad():
        together = cortex(clips, sessions, units, behaviour)
        for i in range(3):
            one = slice(i, i + 1)
            seen = None if behaviour is None else behaviour[one]
            alone = cortex(clips[one], sessions[one], units[one], seen)
            assert torch.allclose(alone, together[one], atol=1e-12, rtol=1e-12)


def test_the_recurrent_state_starts_at_the_first_frame_and_forgets() -> None:
    config = CortexConfig(
        height=6, width=6, stimulus_mean=0, stimulus_std=1, frontend="none", channels=(4,), kernels=(3,), strides=(1,),
        temporal_kernels=(1,), pools=(1,), recurrence="convgru", recurrent_channels=4, sessions=("a",), units=("a/0",),
    )  # fmt: skip
    cortex = Cortex(config, 0).double()
    clip, session = drawn(1, 40, 6, 6), torch.tensor([0])
    with torch.no_grad():
        whole = cortex.features(clip, session)
        cut = cortex.features(clip[:, :10], session)
        late = cortex.features(clip[:, 10:], session)
    assert torch.allclose(cut, whole[:, :, :10], atol=1e-12)  # what comes later changes nothing before
    gaps = (late - whole[:, :, 10:]).abs().amax((0, 1, 3, 4))
    assert gaps[0] > 1e-3 and gaps[-1] < 1e-3 * gaps[0]


@pytest.mark.parametrize("frontend", ["none", "learnable_temporal"])
def test_memory_counts_the_frames_that_valid_convolutions_lose(frontend: str) -> None:
    config = CortexConfig.model_validate(
        {
            "height": 8, "width": 8, "stimulus_mean": 0, "stimulus_std": 1, "frontend": frontend, "temporal_taps": 6,
            "channels": (2, 2), "kernels": (3, 3), "temporal_kernels": (3, 2), "strides": (1, 1), "pools": (1, 1),
            "sessions": ("a",), "units": ("a/0",),
        }
    )  # fmt: skip
    cortex = awake(config)
    assert cortex.memory == (3 if frontend == "none" else 8)
    clip = drawn(1, cortex.memory + 1, 8, 8).requires_grad_()
    cortex.features(clip, torch.tensor([0])).square().sum().backward()
    assert clip.grad is not None
    assert (clip.grad.abs().amax((0, 2, 3)) > 0).all()  # one frame fewer would not do
