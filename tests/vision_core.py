"""Small networks of VisionCore's layout, as an independent reference: its names of tensors, and what it computes with
them, in the plainest way. Clips are (batch, channels, time, height, width)."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class Normed(nn.Module):
    """A weight norm with a direction `v` and a length `g` for each filter; the weight itself is not used."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.v = nn.Parameter(torch.randn_like(weight))
        self.g = nn.Parameter(torch.rand(len(weight)) + 0.5)

    def forward(self, weight: Tensor) -> Tensor:
        return torch.stack([g * v / v.square().sum().sqrt() for g, v in zip(self.g, self.v, strict=True)])


class Windowed(nn.Module):
    """A kernel times Hann windows to a power, along axes of five entries or more."""

    mask: Tensor

    def __init__(self, weight: Tensor, power: float) -> None:
        super().__init__()
        sides = []
        for n in weight.shape[2:]:
            hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / (n - 1)) if n >= 5 else np.ones(n)
            sides.append(hann**power / (hann**power).max())
        mask = torch.from_numpy(np.einsum("t,h,w->thw", *sides)).float()
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


class Conv(nn.Module):
    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, int, int],
        *,
        stride: int = 1,
        padding: int = 0,
        bias: bool = False,
        normed: bool = False,
        power: float | None = None,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, kernel, (1, stride, stride), (0, padding, padding), bias=bias)
        if normed:
            parametrize.register_parametrization(self.conv, "weight", Normed(self.conv.weight.detach()))
        if power is not None:
            parametrize.register_parametrization(self.conv, "weight", Windowed(self.conv.weight.detach(), power))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class RMS(nn.Module):
    def __init__(self, channels: int, *, epsilon: float = 1e-5, learned: bool = True) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.gamma = nn.Parameter(torch.rand(channels) + 0.5) if learned else None
        self.beta = nn.Parameter(torch.zeros(channels)) if learned else None

    def forward(self, x: Tensor) -> Tensor:
        x = x / (x.square().mean(1, keepdim=True) + self.epsilon).sqrt()
        if self.gamma is None or self.beta is None:
            return x
        return x * self.gamma[:, None, None, None] + self.beta[:, None, None, None]


class GlobalNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.tensor([0.5]))
        self.gamma, self.beta = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x / (x.square().mean((2, 3, 4), keepdim=True).sqrt() + self.offset)
        return x * self.gamma[:, None, None, None] + self.beta[:, None, None, None]


class SplitReLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ongain = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.ongain.abs() * x.clamp_min(0), (-x).clamp_min(0)], dim=1)


class Block(nn.Module):
    """Convolution, norm, activation, pooling; in front of them the first frame repeated, where it is `causal`."""

    def __init__(self, conv: Conv, norm: nn.Module, act: nn.Module, pool: nn.Module, *, repeated: int = 0) -> None:
        super().__init__()
        self.repeated = repeated
        self.components = nn.ModuleDict({"conv": conv, "norm": norm, "act": act, "pool": pool})

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x[:, :, :1]] * self.repeated + [x], dim=2)
        for name in ("conv", "norm", "act", "pool"):
            x = self.components[name](x)
        return x


class Residual(nn.Module):
    def __init__(self, main_block: Block, shortcut: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.main_block, self.shortcut, self.post_add_activation = main_block, shortcut, after

    def forward(self, x: Tensor) -> Tensor:
        made = self.main_block(x)
        return self.post_add_activation(made + self.shortcut(x)[:, :, -made.shape[2] :])


class Layers(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Frontend(nn.Module):
    def __init__(self, channels: int, taps: int, power: float | None = None) -> None:
        super().__init__()
        self.temporal_conv = Conv(1, channels, (taps, 1, 1), power=power)

    def forward(self, x: Tensor) -> Tensor:
        return self.temporal_conv(x)


class Cell(nn.Module):
    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.conv_x = nn.Conv2d(inputs, 3 * channels, 3, padding=1)
        self.conv_h = nn.Conv2d(channels, 3 * channels, 3, padding=1, bias=False)


class Recurrent(nn.Module):
    """Its reset gate is computed and not used. Returns the state of every frame, where VisionCore returns the last."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.cell = Cell(inputs, channels)
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), self.channels, *x.shape[-2:])
        states = []
        for frame in x.unbind(2):
            update, _, candidate = (self.cell.conv_x(frame) + self.cell.conv_h(state)).split(self.channels, dim=1)
            update = update.sigmoid()
            state = (1 - update) * state + update * candidate.tanh()
            states.append(state)
        return torch.stack(states, dim=2)


class GatedCell(nn.Module):
    """The later cell, whose reset gate acts before the convolution; here for its names alone."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        for name in ("update_gate", "reset_gate", "out_gate"):
            setattr(self, name, nn.Conv2d(inputs + channels, channels, 3, padding=1))


class Gated(nn.Module):
    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.cells = nn.ModuleList([GatedCell(inputs, channels)])


class Adapter(nn.Module):
    """Names alone."""

    def __init__(self) -> None:
        super().__init__()
        self.log_sigma, self.log_scale = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(2))


class Readout(nn.Module):
    """Names alone."""

    def __init__(self, channels: int, units: int) -> None:
        super().__init__()
        self.features = nn.Conv2d(channels, units, 1, bias=False)
        self.mean, self.std = nn.Parameter(torch.zeros(units, 2)), nn.Parameter(torch.ones(units, 2))
        self.theta, self.bias = nn.Parameter(torch.zeros(units)), nn.Parameter(torch.zeros(units))


class VisionCore(nn.Module):
    def __init__(
        self, frontend: nn.Module, convnet: nn.Module, recurrent: nn.Module, channels: int, *, adapters: int = 0
    ) -> None:
        super().__init__()
        self.adapters = nn.ModuleList([Adapter() for _ in range(adapters)])
        self.frontend, self.convnet, self.recurrent = frontend, convnet, recurrent
        self.readouts = nn.ModuleList([Readout(channels, 3)])

    def forward(self, frames: Tensor) -> Tensor:
        """Features of frames, (batch, time, height, width) uint8, shown as its data code shows them."""
        return self.recurrent(self.convnet(self.frontend((frames[:, None].float() - 127) / 255)))


def save(path: Path, network: nn.Module, config: dict[str, Any], prefix: str = "model.") -> Path:
    """A file as Lightning writes it."""
    torch.save(
        {
            "epoch": 3,
            "global_step": 1536,
            "pytorch-lightning_version": "2.5.5",
            "state_dict": {f"{prefix}{name}": tensor for name, tensor in network.state_dict().items()},
            "loops": {"fit_loop": {"state_dict": {}}},
            "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.57)}},
            "optimizer_states": [],
            "hparams_name": "kwargs",
            "hyper_parameters": {"lr": 1e-3, "max_ds": 30, "model_config_dict": config},
        },
        path,
    )
    return path


def whole() -> tuple[VisionCore, dict[str, Any]]:
    """A configuration that our core computes wholly: frames padded with zeros, the norm without a shift, the shortcut
    added before the activation, the earlier recurrent cell."""
    torch.manual_seed(0)
    stem = Block(Conv(4, 6, (1, 5, 5), stride=2, padding=2, normed=True, power=1.0), RMS(6), nn.ReLU(), nn.Identity())
    second = Block(
        Conv(6, 8, (3, 3, 3), padding=1, power=1.0), RMS(8, epsilon=1e-4, learned=False), nn.Identity(), nn.Identity()
    )
    third = Block(Conv(8, 8, (1, 3, 3), padding=1, normed=True), RMS(8), nn.Identity(), nn.Identity())
    convnet = Layers(
        stem,
        Residual(second, nn.Conv3d(6, 8, 1, bias=False), nn.ReLU()),
        Residual(third, nn.Identity(), nn.ReLU()),
    )
    network = VisionCore(Frontend(4, 6, power=0.25), convnet, Recurrent(8, 4), 4)
    plain: dict[str, Any] = {"causal": False, "order": ["conv", "norm", "act"], "norm_type": "rms", "act_type": "none"}
    zeros = {"type": "standard", "padding": [0, 1, 1], "padding_mode": "zeros"}
    window = {"aa_signal": True, "aa_window": "hann", "aa_window_kwargs": {"power": 1.0}}
    normed = {"use_weight_norm": True, "keep_unit_norm": False}
    stem_conv = {**zeros, "kernel_size": [1, 5, 5], "stride": [1, 2, 2], "padding": [0, 2, 2], **window, **normed}
    config = {
        "model_type": "v1multi",
        "initial_input_channels": 1,
        "adapter": {"type": "none"},
        "frontend": {
            "type": "learnable_temporal",
            "params": {
                "kernel_size": 6,
                "num_channels": 4,
                **window,
                "aa_window_kwargs": {"power": 0.25},
                "bias": False,
            },
        },
        "convnet": {
            "type": "resnet",
            "params": {
                "channels": [8, 8],
                "resnet_post_add_activation": "relu",
                "stem_config": {**plain, "out_channels": 6, "conv_params": stem_conv, "act_type": "relu"},
                "block_configs": [
                    {
                        **plain,
                        "conv_params": {**zeros, "kernel_size": [3, 3, 3], **window},
                        "norm_params": {"eps": 1e-4, "affine": False},
                    },
                    {**plain, "conv_params": {**zeros, "kernel_size": [1, 3, 3], **normed}},
                ],
            },
        },
        "modulator": {"type": "none", "params": {}},
        "recurrent": {"type": "convgru", "params": {"hidden_dim": 4, "kernel_size": 3}},
        "readout": {"type": "gaussian", "params": {"bias": True}},
        "output_activation": "softplus",
    }
    return network, config


def published() -> tuple[VisionCore, dict[str, Any]]:
    """The configuration learned_resnet_none_convgru_gaussian of the public repository, with fewer channels."""
    torch.manual_seed(1)
    shifted = RMS(4)
    with torch.no_grad():
        assert shifted.beta is not None
        shifted.beta.fill_(0.25)
    stem = Block(Conv(4, 4, (1, 7, 7), normed=True, power=1.0), shifted, SplitReLU(), nn.Identity())
    first = Block(
        Conv(8, 6, (3, 9, 9), normed=True, power=1.0), GlobalNorm(6), SplitReLU(), nn.MaxPool3d(2), repeated=2
    )
    last = Block(Conv(12, 8, (3, 5, 5), normed=True, power=1.0), GlobalNorm(8), SplitReLU(), nn.Identity(), repeated=2)
    convnet = Layers(
        stem,
        Residual(first, nn.Conv3d(8, 12, 1, 2, bias=False), nn.Identity()),
        Residual(last, nn.Conv3d(12, 16, 1, bias=False), nn.Identity()),
    )
    network = VisionCore(Frontend(4, 16, power=0.25), convnet, Gated(16, 6), 6, adapters=2)
    window = {"type": "standard", "aa_signal": True, "use_weight_norm": True, "padding": [0, 0, 0]}
    config = {
        "model_type": "v1multi",
        "initial_input_channels": 1,
        "adapter": {"type": "adapter", "params": {"init_sigma": 1.0, "grid_size": 51, "transform": "scale"}},
        "frontend": {
            "type": "learnable_temporal",
            "params": {
                "kernel_size": 16, "num_channels": 4, "split_MP": False, "aa_signal": True, "aa_window": "hann",
                "aa_window_kwargs": {"power": 0.25}, "causal": True, "bias": False,
            },
        },
        "convnet": {
            "type": "resnet",
            "params": {
                "channels": [6, 8],
                "stem_config": {
                    "out_channels": 4, "conv_params": {**window, "kernel_size": [1, 7, 7], "stride": 1},
                    "norm_type": "rms", "act_type": "splitrelu", "pool_params": None,
                    "order": ["pad", "conv", "norm", "act"],
                },
                "block_configs": [
                    {
                        "conv_params": {**window, "kernel_size": [3, 9, 9]},
                        "norm_type": "grn", "act_type": "splitrelu",
                        "pool_params": {"type": "max", "kernel_size": 2, "stride": 2},
                    },
                    {
                        "conv_params": {**window, "kernel_size": [3, 5, 5]},
                        "norm_type": "grn", "act_type": "splitrelu",
                        "pool_params": None,
                    },
                ],
            },
        },
        "modulator": {"type": "none", "params": {}},
        "recurrent": {"type": "convgru", "params": {"n_layers": 1, "hidden_dim": 6, "kernel_size": 3}},
        "readout": {"type": "gaussian", "params": {"n_units": 8, "bias": True}},
        "output_activation": "softplus",
    }  # fmt: skip
    return network, config


def plain_convolutions(*, pooled: bool = False) -> tuple[VisionCore, dict[str, Any]]:
    """Two convolutions of VisionCore's usual kind, which do not pad space; windowed, and both signs are kept."""
    torch.manual_seed(2)
    pool = nn.AvgPool3d((1, 2, 2)) if pooled else nn.Identity()
    blocks = [Block(Conv(n, 4, (1, 5, 5), power=0.5), RMS(4, learned=False), SplitReLU(), pool) for n in (1, 8)]
    network = VisionCore(nn.Identity(), Layers(*blocks), nn.Identity(), 8)
    block = {
        "conv_params": {"kernel_size": [1, 5, 5], "aa_signal": True, "aa_window_kwargs": {"power": 0.5}},
        "norm_type": "rms",
        "norm_params": {"affine": False},
        "act_type": "splitrelu",
        "pool_params": {"type": "avg", "kernel_size": [1, 2, 2]} if pooled else None,
    }
    config = {
        "frontend": {"type": "none"},
        "convnet": {"type": "cnn", "params": {"channels": [4, 4], "block_config": block}},
        "recurrent": {"type": "none"},
        "output_activation": "none",
    }
    return network, config


def clip(frames: int = 14, size: int = 20) -> Tensor:
    """Two clips of noise: (2, frames, size, size + 2) uint8."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (2, frames, size, size + 2), dtype=torch.uint8, generator=generator)
