"""Facts about the parts of the network that predicts responses, and about the penalties on its weights."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from visiontune.models.cortex_core import Block, LocalNorm
from visiontune.models.cortex_frontend import SessionAdapter, TemporalFrontend, gaussian_derivatives
from visiontune.models.cortex_modulation import Concatenation, ConvGRU, Film
from visiontune.models.cortex_network import Cortex, CortexConfig
from visiontune.models.cortex_penalties import PENALTIES
from visiontune.models.cortex_readout import FactorisedReadout, GaussianReadout, LinearReadout, Readout


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def started(part: Any, seed: int = 0) -> Any:
    part.start(torch.Generator().manual_seed(seed))
    return part


@pytest.mark.parametrize(("height", "width"), [(7, 9), (8, 6), (5, 8)])
def test_the_session_adapter_starts_as_the_exact_identity_and_can_leave_it(height: int, width: int) -> None:
    adapter = started(SessionAdapter(3, height, width))
    frames = drawn(2, 4, height, width)
    seen = adapter(frames, torch.tensor([2, 0]))
    assert torch.equal(seen, frames)
    (seen * drawn(2, 4, height, width, seed=1)).sum().backward()
    assert (adapter.table.grad[[0, 2]] != 0).all() and not adapter.table.grad[1].any()


def test_the_session_adapter_shifts_scales_and_brightens() -> None:
    adapter = started(SessionAdapter(2, 8, 10))
    frames = drawn(1, 3, 8, 10)
    with torch.no_grad():
        adapter.table[1, 2], adapter.table[1, 3] = 2 * 2 / 8, -1 * 2 / 10  # reads two pixels below, one to the left
        adapter.table[1, 4], adapter.table[1, 5] = 0.5, -1
        moved = adapter(frames, torch.tensor([1]))
        assert torch.allclose(moved[0, :, :6, 1:], frames[0, :, 2:, :-1] * 1.5 - 1, atol=1e-5)
        assert torch.allclose(moved[0, :, 7, 1:], frames[0, :, 7, :-1] * 1.5 - 1, atol=1e-5)  # the edge is repeated
        adapter.table[0, :2] = math.log(0.5)
        ramp = torch.arange(10.0).expand(1, 1, 8, 10)
        inside = adapter(ramp, torch.tensor([0]))[0, 0, 4]
    assert torch.allclose(inside, 4.5 + 0.5 * (torch.arange(10.0) - 4.5), atol=1e-5)


def test_filters_in_time_are_causal_and_start_as_gaussian_derivatives() -> None:
    frontend = started(TemporalFrontend(4, 12))
    frames = torch.zeros(1, 30, 3, 3)
    frames[0, 15, 1, 1] = 1
    response = frontend(frames)[0, :, 1, 1]  # one for each frame from frame 11 on
    assert not response[:4].any() and not response[16:].any()
    assert torch.allclose(response[4:16], frontend.weight.T.flip(0), atol=1e-6)
    rows = gaussian_derivatives(8, 24)
    assert torch.allclose(rows.norm(dim=1), torch.ones(8).double())
    for order in range(1, 4):  # none is the one below, and each is its slope: crossings of zero go up by one
        shown = rows[order][rows[order].abs() > 1e-3]
        assert int((shown.sign().diff() != 0).sum()) == order
    assert rows[:4].argmax(dim=1)[0] == 24 - 1 - 10  # the newest frame last, the peak 2.5 widths of 4 frames back
    assert torch.linalg.matrix_rank(rows) == 8
    assert torch.isfinite(gaussian_derivatives(4, 1)).all() and gaussian_derivatives(4, 1).abs().min() == 1


def test_the_norm_keeps_contrast_and_sees_no_other_place_or_time() -> None:
    norm = started(LocalNorm(4))
    x = drawn(1, 3, 2, 2, 4)
    changed = x.clone()
    changed[0, 1, 0, 0] *= 5
    with torch.no_grad():
        difference = norm(changed) != norm(x)
        assert difference[0, 1, 0, 0].all() and difference.sum() == 4
        assert norm(0.1 * x).norm() < 0.2 * norm(x).norm()
        assert torch.allclose(norm(1e4 * x).square().mean(-1), torch.ones(1, 3, 2, 2), atol=1e-4)


def test_a_block_is_the_plain_convolution_in_three_dimensions() -> None:
    for activation, pool in (("relu", 1), ("split_relu", 2)):
        options: Any = {"kernel": 3, "temporal": 3, "stride": 2, "pool": pool, "norm": False, "activation": activation}
        block = started(Block(2, 4, residual=True, **options))
        x = drawn(2, 6, 7, 8, 2)
        planes = x.permute(0, 4, 1, 2, 3)
        with torch.no_grad():
            block.bias.copy_(drawn(4, seed=3))
            plain = functional.conv3d(planes, block.weight, block.bias, stride=(1, 2, 2), padding=(0, 1, 1))
            plain = plain + functional.conv3d(planes[:, :, 2:, ::2, ::2], block.shortcut[:, :, None, None, None])
            plain = torch.cat([plain.relu(), (-plain).relu()], 1) if activation == "split_relu" else plain.relu()
            if pool == 2:
                plain = functional.avg_pool3d(plain, (1, 2, 2), ceil_mode=True)
            assert torch.allclose(block(x).permute(0, 4, 1, 2, 3), plain, atol=1e-5)


def test_film_starts_as_the_exact_identity_and_learns() -> None:
    film = started(Film(6, 3))
    x, behaviour = drawn(2, 4, 3, 3, 6), 10 * drawn(2, 4, 3)
    changed = film(x, behaviour)
    assert torch.equal(changed, x)
    (changed * drawn(2, 4, 3, 3, 6, seed=1)).sum().backward()
    assert film.weight.grad.any() and film.bias.grad.all()
    with torch.no_grad():
        film.weight.add_(drawn(12, 32, seed=2))
        scale = (film(x, behaviour) - film(0 * x, behaviour)) / x
        assert torch.allclose(scale, scale[:, :, :1, :1].expand_as(scale), atol=1e-3)  # one for each bin and channel
        assert scale[0, 0, 0, 0, 0] != scale[0, 1, 0, 0, 0]


def test_concatenated_behaviour_is_a_convolution_of_both_and_starts_near_the_features() -> None:
    mixed = started(Concatenation(4, 3))
    x, behaviour = drawn(2, 5, 3, 3, 4).relu(), drawn(2, 5, 3)
    with torch.no_grad():
        assert torch.allclose(mixed(x, behaviour), x, atol=0.1) and not torch.equal(mixed(x, behaviour), x)
        mixed.weight.add_(drawn(4, 4, seed=1))
        both = torch.cat([x, behaviour[:, :, None, None].expand(2, 5, 3, 3, 3)], -1)
        plain = functional.linear(both, torch.cat([mixed.weight, mixed.behaviour_weight], 1), mixed.bias).relu()
        assert torch.allclose(mixed(x, behaviour), plain, atol=1e-5)


def test_the_recurrent_unit_is_that_of_torch_at_every_pixel() -> None:
    """With kernels that are zero but in their middle, each pixel is a plain GRU of its own."""
    recurrence = started(ConvGRU(4, 6))
    with torch.no_grad():
        for weight in (recurrence.input_weight, recurrence.state_weight):
            middle = weight[:, :, 1, 1].clone()
            weight.zero_()
            weight[:, :, 1, 1] = middle
        recurrence.bias.copy_(drawn(18, seed=4))
        recurrence.state_bias.copy_(drawn(6, seed=5))
        plain = torch.nn.GRU(4, 6, batch_first=True)
        order = torch.cat([torch.arange(6, 12), torch.arange(6), torch.arange(12, 18)])  # torch: reset, update, new
        plain.weight_ih_l0.copy_(recurrence.input_weight[order, :, 1, 1])
        plain.weight_hh_l0.copy_(recurrence.state_weight[order, :, 1, 1])
        plain.bias_ih_l0.copy_(recurrence.bias[order])
        plain.bias_hh_l0.copy_(torch.cat([torch.zeros(12), recurrence.state_bias]))
        x = drawn(2, 7, 2, 2, 4)
        states = recurrence(x)
        for i in range(2):
            for j in range(2):
                assert torch.allclose(plain(x[:, :, i, j])[0], states[:, :, i, j], atol=1e-5)


READOUTS: list[type[Readout]] = [GaussianReadout, FactorisedReadout, LinearReadout]


def test_pooling_first_is_the_dense_convolution_and_then_the_mask() -> None:
    readout = started(GaussianReadout(5, 6, 7, 9))
    with torch.no_grad():
        readout.place.copy_(0.5 * drawn(5, 2, seed=1))
        readout.weight.copy_(drawn(5, 6, seed=2))
        features, units = drawn(2, 6, 4, 7, 9), torch.tensor([[0, 3, 4], [1, 1, 2]])
        masks = readout.masks(readout.place, readout.width)
        assert torch.allclose(masks.sum((1, 2)), torch.ones(5), atol=1e-6)
        every = functional.conv3d(features, readout.weight[:, :, None, None, None])  # (batch, units, time, ...)
        dense = (every * masks[:, None]).sum((3, 4))
        expected = torch.stack([dense[i, units[i]].T for i in range(2)])
        assert torch.allclose(readout(features, units), expected, atol=1e-6)


def test_the_other_readouts_are_sums_over_places_and_channels() -> None:
    features, units = drawn(2, 6, 4, 3, 5), torch.tensor([[0, 2], [1, 1]])
    with torch.no_grad():
        linear = started(LinearReadout(3, 6, 3, 5))
        expected = torch.einsum("bcthw,bnchw->btn", features, linear.weight[units])
        assert torch.allclose(linear(features, units), expected, atol=1e-5)
        factorised = started(FactorisedReadout(3, 6, 3, 5))
        full = factorised.weight[:, :, None, None] * factorised.mask.unflatten(1, (1, 3, 5))
        expected = torch.einsum("bcthw,bnchw->btn", features, full[units])
        assert torch.allclose(factorised(features, units), expected, atol=1e-5)


def test_a_gaussian_lies_where_its_place_says_and_never_under_half_a_pixel() -> None:
    readout = started(GaussianReadout(1, 2, 8, 12))
    with torch.no_grad():
        readout.width.fill_(-30)
        deviation = readout.deviations(readout.width)[0]
        assert torch.allclose(deviation, torch.tensor([1 / 8, 1 / 12]))  # the picture is two wide, a pixel 2 / 8
        readout.place.copy_(torch.tensor([[2 * 2.5 / 8 - 1, 2 * 10.5 / 12 - 1]]))  # the middle of pixel (2, 10)
        assert readout.masks(readout.place, readout.width)[0].flatten().argmax() == 2 * 12 + 10
        readout.width.fill_(30)
        even = readout.masks(readout.place, readout.width)
        assert torch.allclose(even, torch.full_like(even, 1 / 96), rtol=0.02)


def test_a_place_outside_counts_as_the_edge_and_learns_the_way_back() -> None:
    readout = started(GaussianReadout(2, 1, 8, 8))
    with torch.no_grad():
        readout.place.copy_(torch.tensor([[1.7, 0.0], [1.0, 0.0]]))
        readout.weight.fill_(1)
    masks = readout.masks(readout.place, readout.width)
    assert torch.equal(masks[0], masks[1])
    masks[0, 0].sum().backward(retain_graph=True)  # less at the top: a step would lead further out
    assert readout.place.grad is not None and readout.place.grad[0, 0] == 0
    (-masks[0, 0].sum()).backward()  # more at the top: a step against the gradient leads back in
    assert readout.place.grad[0, 0] > 0


def network(**changes: Any) -> Cortex:
    values = {
        "height": 10, "width": 10, "stimulus_mean": 0.0, "stimulus_std": 1.0, "temporal_taps": 6, "channels": (2, 4),
        "kernels": (5, 3), "temporal_kernels": (1, 1), "strides": (1, 1), "pools": (1, 1), "sessions": ("a",),
        "units": ("a/0", "a/1"), **changes,
    }  # fmt: skip
    return Cortex(CortexConfig.model_validate(values), 0)


PENALISED = [
    ("readout_l1", "gaussian"), ("readout_l1", "factorised"), ("readout_l1", "linear"), ("core_l2", "gaussian"),
    ("smoothness", "gaussian"), ("locality", "gaussian"), ("locality", "factorised"), ("locality", "linear"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "readout"), PENALISED)
def test_a_penalty_falls_when_it_is_minimised(name: str, readout: str) -> None:
    cortex = network(readout=readout)
    first = PENALTIES[name](cortex)
    assert first.shape == () and first > 0
    optimizer = torch.optim.Adam(cortex.parameters(), lr=0.003)
    for _ in range(20):
        optimizer.zero_grad()
        PENALTIES[name](cortex).backward()
        optimizer.step()
    assert PENALTIES[name](cortex) < 0.99 * first


def test_smooth_kernels_are_flat_or_ramps() -> None:
    cortex = network()
    rows, columns = torch.meshgrid(torch.arange(5.0), torch.arange(5.0), indexing="ij")
    with torch.no_grad():
        cortex.core.first_kernels.copy_(3 * rows - 2 * columns + 1)
        cortex.frontend.weight.copy_(torch.arange(6.0) * 2 - 1)
        assert PENALTIES["smoothness"](cortex) == 0
        cortex.frontend.weight[0, 3] += 1
        assert PENALTIES["smoothness"](cortex) == 1 + 4 + 1
        cortex.frontend.weight[0, 3] -= 1
        cortex.core.first_kernels[0, 0, 0, 2, 2] += 1
        assert PENALTIES["smoothness"](cortex) == 16 + 4


def test_what_reads_one_place_is_local_and_what_weighs_nothing_is_sparse() -> None:
    for readout in ("factorised", "linear"):
        cortex = network(readout=readout)
        with torch.no_grad():
            for table in cortex.readout.tables().values():
                table.zero_()
            cortex.readout.tables()["mask" if readout == "factorised" else "weight"].flatten(1)[:, 17] = -2
            assert PENALTIES["locality"](cortex) < 1e-6
            assert PENALTIES["readout_l1"](cortex) == (0 if readout == "factorised" else 2)
    cortex = network()
    with torch.no_grad():
        cortex.readout.width.fill_(-30)  # type: ignore[union-attr]
        assert torch.isclose(PENALTIES["locality"](cortex), torch.tensor(2 * 0.1**2))


def test_readouts_scaled_against_each_other_are_penalised_alike() -> None:
    cortex = network(readout="factorised")
    before = PENALTIES["readout_l1"](cortex)
    with torch.no_grad():
        cortex.readout.tables()["mask"].mul_(4)
        cortex.readout.tables()["weight"].div_(4)
    assert torch.isclose(PENALTIES["readout_l1"](cortex), before)
