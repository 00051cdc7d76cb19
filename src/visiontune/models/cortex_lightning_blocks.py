"""Convolutional blocks of VisionCore's configurations, held against ours: what each computes, and whether ours does.

Facts about its layout are of its public repository in 2026. Kernels are (out, in, time, height, width).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.signal import windows

from visiontune.errors import ModelError

ORDER = ("pad", "conv", "norm", "act", "dropout", "pool")
OUR_EPSILON = 1e-6  # beside the squared floor of our norm


class DiffersError(Exception):
    """Theirs computes something else than ours: the message says what."""


@dataclass(frozen=True)
class Block:
    """One block. `theirs`: how the names of its tensors start; `components`: those of its parts. `pool`: pixels a side,
    one without. `padding`: pixels around a frame; `pads_as_ours`: they are zeros, and space keeps its size."""

    theirs: str
    components: str
    config: dict[str, Any]
    residual: bool
    first: bool
    activation: str
    final_activation: str
    shortcut_norm: str
    inputs: int
    outputs: int
    frames: int
    side: int

    @property
    def at(self) -> str:
        """Where its convolution stands."""
        return f"{self.components}conv.conv"

    @property
    def conv(self) -> dict[str, Any]:
        return self.config.get("conv_params") or {}

    @property
    def norm(self) -> str:
        return _name(self.config.get("norm_type", "batch"))

    @property
    def order(self) -> tuple[str, ...]:
        return tuple(self.config.get("order") or ORDER)

    @property
    def stride(self) -> tuple[int, int, int]:
        return _triple(self.conv.get("stride", 1))

    @property
    def _pool(self) -> dict[str, Any]:
        params = self.config.get("pool_params")
        held = params if isinstance(params, dict) and "pool" in self.order else {}
        return held if _name(held.get("type")) != "none" else {}

    @property
    def pool(self) -> int:
        default = self._pool.get("kernel_size", 2) if self._pool else 1
        return _triple(self._pool.get("stride", default))[-1]

    @property
    def repeats(self) -> bool:
        """Whether it repeats the first frame of a clip in front of it, so that no frame is lost."""
        return self.frames > 1 and bool(self.config.get("causal", True)) and "pad" in self.order

    @property
    def _padding(self) -> tuple[int, int, bool]:
        """Pixels that it pads: in time at both ends, in space, and whether they are zeros."""
        time, pixels, _ = _triple(self.conv.get("padding", 0))
        if self.frames > 1 and self.config.get("causal", True):
            return 0, pixels if self.repeats and self.side > 1 else 0, False
        if "pad" in self.order:
            return 0, 0, False
        return time, pixels, self.conv.get("padding_mode", "replicate") == "zeros"

    @property
    def padding(self) -> int:
        return self._padding[1]

    @property
    def pads_as_ours(self) -> bool:
        return self.side == 1 or (self._padding[2] and self.padding == self.side // 2)

    def check(self, theirs: Mapping[str, Tensor], *, last: bool) -> None:
        """Raise DiffersError where the block does another thing than ours would with the same weights."""
        steps = [step for step in self.order if step not in ("pad", "dropout")]
        act, pool = _name(self.config.get("act_type", "relu")), self._pool
        kernel, stride = (_triple(pool.get(name, pool.get("kernel_size", 2))) for name in ("kernel_size", "stride"))
        square = kernel == stride == (1, self.pool, self.pool) and not any(_triple(pool.get("padding", 0)))
        ongain = theirs.get(f"{self.components}act.ongain")
        for differs, said in (
            (steps[:3] != ["conv", "norm", "act"] or steps[3:] not in ([], ["pool"]), f"its order is {steps}"),
            (self.residual and self.first, "its first block has a shortcut, ours none"),
            (self.residual and act != "none", f"it applies {act} before its shortcut is added, ours after"),
            (self.residual and bool(pool), "it pools before its shortcut is added, ours after"),
            (self.activation not in ("relu", "splitrelu"), f"its activation is {self.activation}"),
            (self.residual and self.activation == "splitrelu", "it splits signs after its shortcut is added"),
            (ongain is not None and bool((ongain != 1).any()), "it weights what is above zero (ongain)"),
            (bool(pool) and _name(pool.get("type")) != "avg", f"it pools by {_name(pool.get('type'))}, ours by means"),
            (bool(pool) and not square, "it pools in time too, or in windows that overlap"),
            (self.stride[0] != 1, "it strides in time"),
            (self.stride[1] != self.stride[2], "it strides differently down and across"),
            (self._padding[0] != 0, "it pads time at both ends"),
            (_triple(self.conv.get("padding", 0))[1] != _triple(self.conv.get("padding", 0))[2], "it pads unevenly"),
            (_triple(self.conv.get("dilation", 1)) != (1, 1, 1), "its kernels are dilated"),
            (self.conv.get("groups", 1) != 1, "its kernels are in groups"),
            (last and self.final_activation != "none", f"{self.final_activation} follows upon the last block"),
        ):
            if differs:
                raise DiffersError(said)

    def shortcut(self, theirs: Mapping[str, Tensor]) -> str | None:
        """The tensor that its shortcut projects with, (out, in, 1, 1, 1); None where it hands on what it sees."""
        found = [name for name in theirs if name.startswith(f"{self.theirs}shortcut.")]
        projects = self.inputs != self.outputs
        if not projects and not found:
            return None
        one = len(found) == 1 and theirs[found[0]].shape == (self.outputs, self.inputs, 1, 1, 1)
        if not projects or not one or self.shortcut_norm != "none":
            raise DiffersError("its shortcut is no projection of channels alone")
        return found[0]

    def rms(self, theirs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, list[str]]:
        """Gain and floor of our norm that make it theirs, and the tensors that they are made of."""
        params = self.config.get("norm_params") or {}
        if self.norm != "rms" or params.get("target_dim", 1) not in (1, [1], (1,)):
            raise DiffersError(f"its norm is {self.norm}, ours is over the channels of each pixel (rms)")
        epsilon = float(params.get("eps", 1e-5))
        if epsilon < OUR_EPSILON:
            raise DiffersError(f"its norm adds {epsilon:g}, ours {OUR_EPSILON:g} or more")
        gain, shift = (theirs.get(f"{self.components}norm.{name}") for name in ("gamma", "beta"))
        if shift is not None and bool(shift.any()):
            raise DiffersError(f"it shifts by up to {float(shift.abs().max()):.3g} after its norm, ours does not")
        learned = [f"{self.components}norm.{name}" for name in ("gamma", "beta")]
        floor = torch.tensor(math.sqrt(epsilon - OUR_EPSILON))
        return torch.ones(self.outputs) if gain is None else gain, floor, [n for n in learned if n in theirs]


def blocks_of(core: str, params: dict[str, Any], theirs: Mapping[str, Tensor], path: Path) -> list[Block]:
    """The blocks of a `resnet` or `conv`. Raises ModelError where they, or a kernel's shape, cannot be told."""
    count = len(params.get("channels") or ())
    given = params.get("block_configs") or [params.get("block_config")] * count
    configs: list[dict[str, Any]] = [config for config in given if isinstance(config, dict)]
    if not count or not len(configs) == len(given) == count:
        raise ModelError(
            "convnet.params has no block_configs for its channels.", where=str(path), fix="put its configuration there"
        )
    stem: list[dict[str, Any]] = [params["stem_config"]] if core == "resnet" and params.get("stem_config") else []
    blocks = []
    for place, config in enumerate([*stem, *configs]):
        residual = core == "resnet" and place >= len(stem)
        whole = f"convnet.layers.{place}."
        components = f"{whole}main_block.components." if residual else f"{whole}components."
        kind = _name((config.get("conv_params") or {}).get("type", "standard"))
        if kind != "standard":
            raise ModelError(f"conv_params.type {kind} has no counterpart in our core.", where=str(path))
        outputs, inputs, frames, down, across = raw_kernel(theirs, f"{components}conv.conv", path).shape
        if down != across or down % 2 == 0:
            raise ModelError(f"Kernels of {down} x {across} pixels ({whole}) have no counterpart.", where=str(path))
        act = _name(config.get("act_type", "relu"))
        after = _name(params.get("resnet_post_add_activation"))
        blocks.append(
            Block(
                theirs=whole,
                components=components,
                config=config,
                residual=residual,
                first=place == 0,
                activation=after if residual and act == "none" else act,
                final_activation=_name(params.get("final_activation")),
                shortcut_norm=_name(params.get("resnet_shortcut_norm_type")),
                inputs=inputs,
                outputs=outputs,
                frames=frames,
                side=down,
            )
        )
    return blocks


def raw_kernel(theirs: Mapping[str, Tensor], at: str, path: Path) -> Tensor:
    """The kernel of a convolution before norm and window; ModelError where there is none of five dimensions."""
    held = f"{at}.parametrizations.weight."
    for name in (f"{held}0.v", f"{held}original1", f"{at}.weight_v", f"{held}original", f"{at}.weight"):
        if name in theirs and theirs[name].ndim == 5:
            return theirs[name]
    raise ModelError(
        f"The checkpoint has no kernel {at}.weight of five dimensions.", where=str(path), fix="train a new core"
    )


def effective_kernel(
    theirs: Mapping[str, Tensor], at: str, params: Mapping[str, Any], path: Path
) -> tuple[Tensor, list[str]]:
    """The kernel that a convolution computes with, and the tensors that it is made of: a weight norm (Salimans and
    Kingma 2016), then a window, as far as there are such. Raises DiffersError for a window that cannot be told."""
    held = f"{at}.parametrizations.weight."
    pairs = [
        (f"{held}0.g", f"{held}0.v"),
        (f"{held}original0", f"{held}original1"),
        (f"{at}.weight_g", f"{at}.weight_v"),
    ]
    names = next(([g, v] for g, v in pairs if g in theirs and v in theirs), [])
    kernel = raw_kernel(theirs, at, path)
    if names:
        lengths = theirs[names[0]].flatten()
        if len(lengths) != len(kernel):
            raise DiffersError("its weight norm is not of each filter")
        kernel = kernel * (lengths / torch.linalg.vector_norm(kernel.flatten(1), dim=1)).reshape(-1, 1, 1, 1, 1)
    else:
        names = [name for name in (f"{held}original", f"{at}.weight") if name in theirs][:1]
    if params.get("aa_freq") or params.get("aa_time"):
        raise DiffersError("its kernels are filtered against aliasing by an earlier rule of VisionCore")
    if params.get("aa_signal"):
        options = dict(params.get("aa_window_kwargs") or {})
        power = float(options.pop("power", 1.0))
        # Earlier versions windowed other axes, and kept the kernel as a plain weight.
        if f"{held}original" not in theirs or options or params.get("aa_window", "hann") != "hann":
            raise DiffersError("its kernels are windowed by a rule that the checkpoint does not tell")
        kernel = kernel * hann_window(kernel.shape[2:], power)
    return kernel, names


def hann_window(sizes: tuple[int, ...], power: float) -> Tensor:
    """Hann windows to a power, of peak one, along axes of at least five entries; ones along others. Shape `sizes`."""
    window = torch.ones(sizes)
    for axis, size in enumerate(sizes):
        if size >= 5:
            along = windows.hann(size).pow(power)
            window = window * (along / along.max()).reshape([-1 if axis == other else 1 for other in range(len(sizes))])
    return window


def _name(value: Any) -> str:
    return str(value or "none").lower()


def _triple(value: Any) -> tuple[int, int, int]:
    """Time, height and width of a number for all three, or of a list."""
    if isinstance(value, int):
        return value, value, value
    time, height, width = (0, *value)[-3:]
    return time, height, width
