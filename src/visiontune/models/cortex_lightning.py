"""Cores from Lightning checkpoints of VisionCore's layout (github.com/Yates-Lab/VisionCore), read without running code.

A checkpoint holds tensors by their names and the configuration that they were trained with. A tensor is taken where
both networks compute the same with it; any other is named, with the reason. Kernels are (out, in, time, height, width).
"""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visiontune.errors import ModelError
from visiontune.models.cortex_coverage import ForeignCore
from visiontune.models.cortex_lightning_blocks import DiffersError, blocks_of, effective_kernel, raw_kernel
from visiontune.models.cortex_transfer import ADAPTER_TABLE
from visiontune.recipe import validated
from visiontune.recipe_targets import CoreShape

PIXEL_MEAN, PIXEL_STD = 127.0, 255.0  # how VisionCore's data code shows 8-bit frames; checkpoints do not say
CORES = {"resnet": "resnet", "vanilla": "conv", "cnn": "conv", "conv": "conv"}
OPEN = 40.0  # a gate with this bias alone is one in float32
WEIGHT = "parametrizations.weight.original"
OF_SESSIONS = {
    "readouts.": "readouts are of the units that they were trained on",
    "adapters.": "adapters are of the sessions that they were trained on, and sample frames otherwise than ours",
    "baselines.": "baselines are of the units that they were trained on",
    "spike_history.": "spike histories are no input here",
}
FIX = (
    'where it was trained: c = torch.load(OLD, weights_only=False); torch.save({"state_dict": c["state_dict"], '
    '"hyper_parameters": {"model_config_dict": PLAIN_DICT}}, NEW), with the YAML of its model as PLAIN_DICT'
)


def read_lightning(path: Path) -> ForeignCore:
    """The core that a checkpoint holds. Raises ModelError where it cannot be read as data alone, or does not say what
    our core's shape follows from."""
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ModelError("There is no such checkpoint.", where=str(path), fix="check the path") from error
    except pickle.UnpicklingError as error:
        raise ModelError(
            "The checkpoint cannot be read as data alone, and code in files is not run.", where=str(path), fix=FIX
        ) from error
    except (
        OSError,
        EOFError,
        RuntimeError,
        ValueError,
        LookupError,
    ) as error:  # what torch raises of files of any kind
        told = str(error).strip().splitlines()
        raise ModelError(
            f"The file cannot be read as a checkpoint: {told[0] if told else 'it is cut short'}.",
            where=str(path),
            fix="copy it again; it is what torch.save wrote",
        ) from error
    tensors = held.get("state_dict") if isinstance(held, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ModelError("The file holds no state_dict of tensors.", where=str(path), fix=FIX)
    plain = {name.replace("_orig_mod.", "").removeprefix("model."): tensor for name, tensor in tensors.items()}
    if len(plain) < len(tensors):
        raise ModelError("Two of its tensors have one name but for their prefixes.", where=str(path), fix=FIX)
    told = held.get("hyper_parameters")
    config = told.get("model_config_dict") if isinstance(told, dict) else None
    if not isinstance(config, dict):
        raise ModelError(
            "The checkpoint does not say how its model is built: hyper_parameters.model_config_dict is missing.",
            where=str(path),
            fix=FIX,
        )
    return _Reader(path, plain, config).read()


class _Reader:
    """Works through a configuration, part by part."""

    def __init__(self, path: Path, theirs: dict[str, Tensor], config: dict[str, Any]) -> None:
        self.path, self.theirs, self.config = path, theirs, config
        self.shape: dict[str, Any] = {}
        self.values: dict[str, Tensor | None] = {}
        self.sources: dict[str, tuple[str, ...]] = {}
        self.differs: dict[str, str] = {}
        self.unused = dict(OF_SESSIONS)
        self.notes: list[str] = []
        self.repeats = False  # frames in front of a clip

    def read(self) -> ForeignCore:
        if (channels := self.config.get("initial_input_channels", 1)) != 1:
            raise self.unknown(f"initial_input_channels {channels}")
        if any(name.startswith("adapters.") for name in self.theirs):
            self.differs[ADAPTER_TABLE] = "theirs blurs frames and samples them on a grid, ours moves and scales them"
        else:
            self.take(ADAPTER_TABLE, None)
        for name, tensor in self.theirs.items():
            if name.endswith("act.ongain") and bool((tensor == 1).all()):
                self.unused[name] = "it is one, and changes nothing"
            if name.endswith(WEIGHT) and f"{name.removesuffix('original')}0.v" in self.theirs:
                self.unused[name] = "the weight norm replaces it"
        self.frontend()
        self.core()
        self.modulation()
        self.recurrence()
        kind, _ = self.section("readout")
        self.shape["readout"] = "linear" if kind == "linear" else "gaussian"
        # Without an activation theirs predicts the logarithm of a rate.
        self.shape["output"] = (
            "exp" if str(self.config.get("output_activation", "none")).lower() == "none" else "softplus"
        )
        shape = validated(CoreShape, self.shape, str(self.path))
        reasons = (self.differs, self.unused)
        return ForeignCore(self.path, shape, self.theirs, self.values, self.sources, *reasons, tuple(self.notes))

    def section(self, name: str) -> tuple[str, dict[str, Any]]:
        """Type and parameters of a part of the configuration."""
        section = self.config.get(name) or {}
        return str(section.get("type") or "none").lower(), section.get("params") or {}

    def unknown(self, what: str) -> ModelError:
        return ModelError(f"{what} has no counterpart in our core.", where=str(self.path), fix="train a new core")

    def take(self, ours: str, value: Tensor | None, *theirs: str) -> None:
        """Fill ours with a value made of theirs."""
        self.values[ours] = None if value is None else value.float()
        self.sources[ours] = theirs

    @contextmanager
    def step(self, ours: str, theirs: str) -> Iterator[None]:
        """Takes all tensors whose names start as `ours`, or, where theirs differs, none of them."""
        try:
            yield
        except DiffersError as difference:
            self.differs[ours] = self.unused[theirs] = str(difference)
            for name in [name for name in self.values if name.startswith(ours)]:
                del self.values[name], self.sources[name]

    def frontend(self) -> None:
        kind, params = self.section("frontend")
        self.shape["frontend"] = kind
        if kind == "none":
            return
        if kind != "learnable_temporal":
            raise self.unknown(f"frontend.type {kind}")
        at = "frontend.temporal_conv.conv"
        channels, _, taps, *_ = raw_kernel(self.theirs, at, self.path).shape
        self.shape |= {"temporal_channels": channels, "temporal_taps": taps}
        with self.step("frontend.", "frontend."):
            if params.get("split_MP"):
                raise DiffersError("theirs sees the fine and the coarse of a frame apart (split_MP)")
            if f"{at}.bias" in self.theirs:
                raise DiffersError("theirs has a bias")
            weight, names = effective_kernel(self.theirs, at, params, self.path)
            self.take("frontend.weight", weight.flatten(1), *names)

    def core(self) -> None:
        kind, params = self.section("convnet")
        if kind not in CORES:
            raise self.unknown(f"convnet.type {kind}")
        blocks = blocks_of(CORES[kind], params, self.theirs, self.path)
        self.repeats = any(block.repeats for block in blocks)
        activations = {"split_relu" if block.activation == "splitrelu" else "relu" for block in blocks}
        if len(activations) > 1:
            raise self.unknown("act_type splitrelu in some blocks alone")
        self.shape |= {
            "core": CORES[kind],
            "channels": tuple(block.outputs for block in blocks),
            "kernels": tuple(block.side for block in blocks),
            "temporal_kernels": tuple(block.frames for block in blocks),
            "strides": tuple(block.stride[-1] for block in blocks),
            "pools": tuple(block.pool for block in blocks),
            "activation": activations.pop(),
            "norm": "none" if all(block.norm == "none" for block in blocks) else "rms",
        }
        margin = 0  # places along each side of ours that theirs has not
        for place, block in enumerate(blocks):
            ours = f"core.blocks.{place}."
            margin += block.side // 2 - block.padding
            shifted = margin % block.stride[-1] != 0 or margin // block.stride[-1] % block.pool != 0
            margin = margin // block.stride[-1] // block.pool
            with self.step(ours, block.theirs):
                block.check(self.theirs, last=place == len(blocks) - 1)
                if shifted:
                    raise DiffersError("its strides or pools start at other pixels than ours")
                weight, names = effective_kernel(self.theirs, block.at, block.conv, self.path)
                bias = [name for name in (f"{block.at}.bias",) if name in self.theirs]
                self.take(f"{ours}weight", weight, *names)
                self.take(f"{ours}bias", self.theirs[bias[0]] if bias else torch.zeros(block.outputs), *bias)
                if block.residual and (shortcut := block.shortcut(self.theirs)) is not None:
                    self.take(f"{ours}shortcut", self.theirs[shortcut][:, :, 0, 0, 0], shortcut)
                if self.shape["norm"] == "rms":
                    with self.step(f"{ours}norm.", f"{block.components}norm."):
                        gain, floor, learned = block.rms(self.theirs)
                        self.take(f"{ours}norm.gain", gain, *learned)
                        self.take(f"{ours}norm.floor", floor)
                if not block.pads_as_ours:
                    self.notes.append(f"{block.theirs} sees no zeros around its frames, as ours does: features differ "
                                      f"along the border, {block.side // 2} of its pixels wide")  # fmt: skip

    def modulation(self) -> None:
        kind, _ = self.section("modulator")
        if kind not in ("none", "film", "concat"):
            raise self.unknown(f"modulator.type {kind}")
        self.shape["modulation"] = kind
        if kind != "none":
            self.differs["modulation."] = self.unused["modulator."] = (
                "theirs is a perceptron of other layers, which sees one row of behaviour for a whole window"
            )

    def recurrence(self) -> None:
        kind, params = self.section("recurrent")
        if kind not in ("none", "convgru"):
            raise self.unknown(f"recurrent.type {kind}")
        self.shape["recurrence"] = kind
        if kind == "none":
            return
        inputs, states, bias = (f"recurrent.cell.{n}" for n in ("conv_x.weight", "conv_h.weight", "conv_x.bias"))
        if states not in self.theirs:
            gate = "recurrent.cells.0.update_gate.bias"
            if gate not in self.theirs:
                raise self.unknown("recurrent.params without recurrent.cell or recurrent.cells.0")
            self.shape["recurrent_channels"] = len(self.theirs[gate])
            self.differs["recurrence."] = self.unused["recurrent."] = (
                "its reset gate acts on the state before the convolution, ours after"
            )
            return
        channels, side = self.theirs[states].shape[1:3]
        self.shape["recurrent_channels"] = channels
        with self.step("recurrence.", "recurrent."):
            if params.get("fast_phase"):
                raise DiffersError("theirs hands on what it is shown beside its state (fast_phase)")
            if side != 3:
                raise DiffersError(f"its kernels have {side} x {side} pixels, ours 3 x 3")
            for name, theirs in (("input_weight", inputs), ("state_weight", states), ("bias", bias)):
                new_share, _, candidate = self.theirs[theirs].chunk(3)  # the reset gate of this cell is never used
                # Its gate says how much is new, ours how much is kept: sigmoid(-x) = 1 - sigmoid(x).
                reset = torch.full_like(new_share, OPEN if theirs == bias else 0.0)
                self.take(f"recurrence.{name}", torch.cat([-new_share, reset, candidate]), theirs)
            self.take("recurrence.state_bias", torch.zeros(channels))
            if self.repeats:
                self.notes.append("recurrent: theirs also runs over frames that it repeats in front of a clip, ours "
                                  "does not: states differ at the start")  # fmt: skip
