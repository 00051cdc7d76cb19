"""Lightning checkpoints of VisionCore's layout: what is taken computes what theirs does, what is not is named."""

import os
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.vision_core import clip, plain_convolutions, published, save, whole
from visiontune.errors import ModelError, RecipeError
from visiontune.models.cortex_coverage import Coverage, refuse_missing
from visiontune.models.cortex_lightning import PIXEL_MEAN, PIXEL_STD, read_lightning
from visiontune.models.cortex_network import Cortex, CortexConfig


def loaded(path: Path) -> tuple[Cortex, Coverage]:
    """Our network for frames of 20 x 22 pixels, filled from a checkpoint."""
    core = read_lightning(path)
    config = CortexConfig(
        **core.shape.model_dump(),
        height=20,
        width=22,
        stimulus_mean=PIXEL_MEAN,
        stimulus_std=PIXEL_STD,
        behaviour=2 if core.shape.modulation != "none" else 0,
        sessions=("a", "b"),
        units=("a/0", "b/0"),
    )
    cortex = Cortex(config, seed=9)
    return cortex, core.fill(cortex)


def features(cortex: Cortex) -> torch.Tensor:
    with torch.no_grad():
        return cortex.features(clip(), torch.tensor([0, 1]))


@pytest.mark.parametrize("prefix", ["model.", "_orig_mod.", "model._orig_mod.", ""])
def test_a_core_that_ours_computes_wholly_gives_the_references_features(tmp_path: Path, prefix: str) -> None:
    network, config = whole()
    cortex, coverage = loaded(save(tmp_path / "core.ckpt", network, config, prefix))
    assert not coverage.missing and not coverage.notes
    with torch.no_grad():
        theirs = network(clip())
    torch.testing.assert_close(features(cortex), theirs, rtol=0, atol=1e-5)
    assert float(theirs.std()) > 0.05
    assert set(coverage.unused) == {name for name in network.state_dict() if name.startswith("readouts.")} | {
        f"convnet.layers.{place}.conv.conv.parametrizations.weight.original"
        for place in ("0.components", "2.main_block.components")
    }
    assert set(coverage.taken) | set(coverage.new) == set(cortex.state_dict())


def test_every_tensor_that_is_taken_is_named_with_what_it_is_made_of(tmp_path: Path) -> None:
    _, coverage = loaded(save(tmp_path / "core.ckpt", *whole()))
    weight = "convnet.layers.0.components.conv.conv.parametrizations.weight"
    assert coverage.taken["core.blocks.0.weight"] == f"{weight}.0.g, {weight}.0.v"
    assert coverage.taken["frontend.weight"] == "frontend.temporal_conv.conv.parametrizations.weight.original"
    assert coverage.taken["core.blocks.1.shortcut"] == "convnet.layers.1.shortcut.weight"
    assert coverage.taken["recurrence.state_weight"] == "recurrent.cell.conv_h.weight"
    assert coverage.taken["adapter.table"] == coverage.taken["core.blocks.0.bias"] == "as it starts: theirs has none"


def test_frames_that_theirs_does_not_pad_give_its_features_inside_the_border(tmp_path: Path) -> None:
    network, config = plain_convolutions()
    cortex, coverage = loaded(save(tmp_path / "core.ckpt", network, config))
    assert (
        not coverage.missing and len(coverage.notes) == 2 and "along the border, 2 of its pixels" in coverage.notes[0]
    )
    with torch.no_grad():
        theirs = network(clip())
    torch.testing.assert_close(features(cortex)[..., 4:-4, 4:-4], theirs, rtol=0, atol=1e-5)
    assert cortex.config.output == "exp"  # theirs predicts logarithms


def test_pools_are_taken_while_they_start_at_the_same_pixels(tmp_path: Path) -> None:
    network, config = plain_convolutions(pooled=True)
    cortex, coverage = loaded(save(tmp_path / "core.ckpt", network, config))
    assert {name.rsplit(".", 1)[0] for name in coverage.missing} == {"core.blocks.1", "core.blocks.1.norm"}
    assert all("other pixels" in reason for reason in coverage.missing.values())
    frames = clip()
    with torch.no_grad():
        theirs = network.convnet.layers[0]((frames[:, None].float() - 127) / 255)  # pyright: ignore
        ours = cortex.core.blocks[0](((frames.float() - 127) / 255)[..., None]).permute(0, 4, 1, 2, 3)
    torch.testing.assert_close(ours[..., 1:-1, 1:-1], theirs, rtol=0, atol=1e-5)


def test_the_published_configuration_is_taken_as_far_as_ours_computes_it(tmp_path: Path) -> None:
    network, config = published()
    path = save(tmp_path / "core.ckpt", network, config)
    cortex, coverage = loaded(path)
    assert set(coverage.taken) == {"frontend.weight", "core.blocks.0.weight", "core.blocks.0.bias"}
    frames = (clip(frames=20).float() - 127) / 255
    with torch.no_grad():
        theirs = network.frontend(frames[:, None])
        filtered = cortex.frontend(frames)
        torch.testing.assert_close(filtered.permute(0, 4, 1, 2, 3), theirs, rtol=0, atol=1e-5)
        stem: Any = network.convnet.layers[0]  # pyright: ignore
        expected = stem.components["conv"](theirs)
        weight = cortex.core.first_kernels
        ours = torch.nn.functional.conv3d(theirs, weight)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    reasons = coverage.missing
    assert "shifts by up to 0.25" in reasons["core.blocks.0.norm.gain"]
    assert "before its shortcut" in reasons["core.blocks.1.weight"] and "core.blocks.2.norm.floor" in reasons
    assert "before the convolution" in reasons["recurrence.input_weight"] and "on a grid" in reasons["adapter.table"]
    shape = read_lightning(path).shape
    assert (shape.channels, shape.kernels, shape.temporal_kernels) == ((4, 6, 8), (7, 9, 5), (1, 3, 3))
    assert (shape.pools, shape.activation, shape.recurrent_channels) == ((1, 2, 1), "split_relu", 6)
    unused = coverage.unused
    assert len(unused) + len({n for source in coverage.taken.values() for n in source.split(", ")} & set(
        network.state_dict())) == len(network.state_dict())  # fmt: skip
    assert "sessions" in unused["adapters.0.log_scale"] and "units" in unused["readouts.0.mean"]
    assert "shifts" in unused["convnet.layers.0.components.norm.beta"]
    assert "it is one" in unused["convnet.layers.0.components.act.ongain"]


BLOCKS = ("convnet", "params", "block_configs")
STEM = ("convnet", "params", "stem_config")


def put(*place: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """Set a value of the configuration: the place, then the value."""

    def change(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        *path, last, value = place
        for step in path:
            config = config.setdefault(step, {}) if isinstance(step, str) else config[step]
        config[last] = value

    return change


def fill(name: str, value: float, *shape: int) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """Put a tensor of one value in the place of one, or a new one of a shape."""

    def change(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        tensors[name] = torch.full(shape or tensors[name].shape, value)

    return change


def plain_weight(config: dict[str, Any], tensors: dict[str, Any]) -> None:
    """As versions wrote it that windowed a plain weight, by other rules."""
    kernel = tensors.pop("frontend.temporal_conv.conv.parametrizations.weight.original")
    tensors["frontend.temporal_conv.conv.weight"] = kernel


# What differs -> how it comes, which of ours is then not filled, and what is said.
DIFFERENCES: dict[str, tuple[Callable[[dict[str, Any], dict[str, Any]], None], str | tuple[str, ...], str]] = {
    "activation": (put(*STEM, "act_type", "silu"), "core.blocks.0.", "activation is silu"),
    "dilation": (put(*STEM, "conv_params", "dilation", [1, 2, 2]), "core.blocks.0.", "dilated"),
    "groups": (put(*STEM, "conv_params", "groups", 2), "core.blocks.0.", "groups"),
    "stride in time": (put(*STEM, "conv_params", "stride", 2), "core.blocks.0.", "strides in time"),
    "uneven stride": (put(*STEM, "conv_params", "stride", [1, 1, 2]), "core.blocks.0.", "down and across"),
    "uneven padding": (put(*STEM, "conv_params", "padding", [0, 1, 2]), "core.blocks.0.", "unevenly"),
    "padding in time": (put(*STEM, "conv_params", "padding", 2), "core.blocks.0.", "time at both ends"),
    "order": (put(*STEM, "order", ["norm", "conv", "act"]), "core.blocks.0.", "its order is"),
    "ongain": (fill("convnet.layers.0.components.act.ongain", 0.5, 1), "core.blocks.0.", "ongain"),
    "another window": (put(*STEM, "conv_params", "aa_window", "kaiser"), "core.blocks.0.", "rule"),
    "a filter of frequencies": (put(*STEM, "conv_params", "aa_freq", True), "core.blocks.0.", "aliasing"),
    "a shift": (fill("convnet.layers.0.components.norm.beta", 0.1), "core.blocks.0.norm.", "shifts by up to 0.1"),
    "another norm": (put(*STEM, "norm_type", "layer"), "core.blocks.0.norm.", "its norm is layer"),
    "no norm": (put(*STEM, "norm_type", "none"), "core.blocks.0.norm.", "its norm is none"),
    "a norm over frames": (put(*STEM, "norm_params", "target_dim", [1, 2]), "core.blocks.0.norm.", "of each pixel"),
    "a smaller epsilon": (put(*STEM, "norm_params", "eps", 1e-7), "core.blocks.0.norm.", "adds 1e-07"),
    "activation before the sum": (put(*BLOCKS, 0, "act_type", "relu"), "core.blocks.1.", "before its shortcut"),
    "no activation": (
        put("convnet", "params", "resnet_post_add_activation", "none"),
        ("core.blocks.1.", "core.blocks.2."),
        "activation is none",
    ),
    "a norm on shortcuts": (
        put("convnet", "params", "resnet_shortcut_norm_type", "rms"), "core.blocks.1.", "no projection"
    ),
    "a shortcut in place of the identity": (
        fill("convnet.layers.2.shortcut.weight", 0.5, 8, 8, 1, 1, 1), "core.blocks.2.", "no projection"
    ),
    "a first block with a shortcut": (put("convnet", "params", "stem_config", None), "core.blocks.0.", "first block"),
    "final activation": (put("convnet", "params", "final_activation", "softplus"), "core.blocks.2.", "softplus"),
    "two scales": (put("frontend", "params", "split_MP", True), "frontend.", "split_MP"),
    "a bias in time": (fill("frontend.temporal_conv.conv.bias", 0.5, 4), "frontend.", "bias"),
    "an unknown window": (plain_weight, "frontend.", "rule"),
    "features beside the state": (put("recurrent", "params", "fast_phase", True), "recurrence.", "fast_phase"),
    "another number of inputs": (
        fill("recurrent.cell.conv_x.weight", 0.5, 12, 12, 3, 3), "recurrence.input_weight", "is (12, 12, 3, 3)"
    ),
    "modulation": (put("modulator", "type", "film"), "modulation.", "perceptron"),
    "adapters": (fill("adapters.0.log_scale", 0.5, 2), "adapter.", "on a grid"),
}  # fmt: skip


def without_a_stem(config: dict[str, Any], tensors: dict[str, Any]) -> None:
    """Rename the blocks of `whole` for a network that begins with its first block of residuals."""
    for name in list(tensors):
        if name.startswith("convnet.layers."):
            place = int(name.split(".")[2])
            tensor = tensors.pop(name)
            if place:
                tensors[name.replace(f"layers.{place}", f"layers.{place - 1}")] = tensor


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_what_theirs_computes_otherwise_is_not_taken_and_said(tmp_path: Path, difference: str) -> None:
    change, ours, said = DIFFERENCES[difference]
    network, config = whole()
    config, tensors = deepcopy(config), dict(network.state_dict())
    change(config, tensors)
    if config["convnet"]["params"]["stem_config"] is None:
        without_a_stem(config, tensors)
    path = tmp_path / "core.ckpt"
    torch.save({"state_dict": tensors, "hyper_parameters": {"model_config_dict": config}}, path)
    cortex, coverage = loaded(path)
    assert set(coverage.missing) == {name for name in cortex.state_dict() if name.startswith(ours)} != set()
    assert all(said in why for why in coverage.missing.values())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put("frontend", "type", "da"), "frontend.type da"),
        (put("convnet", "type", "densenet"), "convnet.type densenet"),
        (put("convnet", "params", "block_configs", []), "no block_configs"),
        (put(*STEM, "conv_params", "type", "depthwise"), "depthwise"),
        (put(*STEM, "act_type", "splitrelu"), "act_type splitrelu"),
        (put("modulator", "type", "convgru"), "modulator.type convgru"),
        (put("recurrent", "type", "lstm"), "recurrent.type lstm"),
        (put("initial_input_channels", 2), "initial_input_channels 2"),
    ],
)
def test_a_shape_that_cannot_be_told_is_an_error_that_names_it(tmp_path: Path, change: Any, said: str) -> None:
    network, config = whole()
    change(config, {})
    with pytest.raises(ModelError, match=said):
        read_lightning(save(tmp_path / "core.ckpt", network, config))


def test_a_partial_load_is_refused_naming_each_tensor_unless_they_are_allowed(tmp_path: Path) -> None:
    _, coverage = loaded(save(tmp_path / "core.ckpt", *published()))
    missing = coverage.missing
    with pytest.raises(ModelError) as refused:
        refuse_missing(missing, ["recurrence.*", "adapter.table"], "core.ckpt")
    left = [name for name in missing if name.startswith("core.")]
    assert all(name in refused.value.found for name in left) and "recurrence" not in refused.value.found
    refuse_missing(missing, ["recurrence.*", "adapter.table", "core.*"], "core.ckpt")


def test_a_name_that_is_not_missing_cannot_be_allowed(tmp_path: Path) -> None:
    for made in (whole, published):
        _, coverage = loaded(save(tmp_path / "core.ckpt", *made()))
        with pytest.raises(RecipeError, match=r"No tensor 'frontend\.weight' is missing") as refused:
            refuse_missing(coverage.missing, [*coverage.missing, "frontend.weight"], "core.ckpt")
        assert refused.value.where == "--allow-missing"


class Code:
    """What runs when a file with it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    network, config = whole()
    path = save(tmp_path / "core.ckpt", network, {**config, "planted": Code(tmp_path / "ran")})
    with pytest.raises(ModelError, match="code in files is not run") as refused:
        read_lightning(path)
    assert not (tmp_path / "ran").exists()
    assert refused.value.fix is not None and "model_config_dict" in refused.value.fix
    torch.load(path, weights_only=False)
    assert (tmp_path / "ran").exists()  # it would have


def test_a_file_that_is_no_checkpoint_is_a_clear_error(tmp_path: Path) -> None:
    network, config = whole()
    with pytest.raises(ModelError, match="no such checkpoint"):
        read_lightning(tmp_path / "none.ckpt")
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    with pytest.raises(ModelError, match="cannot be read as data"):
        read_lightning(tmp_path / "text.ckpt")
    torch.save({"weights": network.state_dict()}, tmp_path / "weights.ckpt")
    with pytest.raises(ModelError, match="no state_dict"):
        read_lightning(tmp_path / "weights.ckpt")
    torch.save({"state_dict": network.state_dict(), "hyper_parameters": {"lr": 1.0}}, tmp_path / "told.ckpt")
    with pytest.raises(ModelError, match="model_config_dict is missing"):
        read_lightning(tmp_path / "told.ckpt")
    twice = {**network.state_dict(), **{f"model.{n}": t for n, t in network.state_dict().items()}}
    torch.save({"state_dict": twice, "hyper_parameters": {"model_config_dict": config}}, tmp_path / "twice.ckpt")
    with pytest.raises(ModelError, match="one name but for"):
        read_lightning(tmp_path / "twice.ckpt")
