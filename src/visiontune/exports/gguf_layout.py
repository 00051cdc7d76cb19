"""What a merged folder becomes in GGUF: which files, their tensors under llama.cpp's names, and their keys."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visiontune.errors import ModelError
from visiontune.exports.gguf_tokenizer import add_tokenizer
from visiontune.exports.merged_folder import StoredTensor, read_json, read_json_if_there, stored_tensors
from visiontune.exports.quantise import gguf_package, projector_quantisation, tensor_type

VISION_FAMILIES = ("smolvlm", "idefics3")
TEXT_FAMILIES = ("llama",)

# What transformers takes where a config.json leaves a field out.
_TEXT_DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
}
_VISION_DEFAULTS = {
    "hidden_size": 1152,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 32,
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu_pytorch_tanh",
}

_TEXT_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_VISION_NAMES = {
    "layer_norm1": "ln1",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "layer_norm2": "ln2",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}


@dataclass(frozen=True)
class Tensor:
    """A tensor to be: its name in the GGUF file, its shape (rows last), its values, its type, and the name of the
    tensor in the merged folder that it comes from (none: computed from the config)."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], NDArray[np.float32]]
    type: str
    source: str | None


@dataclass(frozen=True)
class File:
    """A file to be: `add_keys` puts the model's keys on a GGUFWriter."""

    architecture: str
    kind: str
    quantisation: str
    tensors: list[Tensor]
    add_keys: Callable[[Any], None]


def planned_files(
    merged: Path, quantisation: str, image_size: int | None, longest_edge: int | None, name: str, template: str | None
) -> list[File]:
    """The text file and, for a vision-language model, the projector, checked as far as configs and headers tell.

    The arguments are those of `write_gguf`. Raises ModelError for what llama.cpp could not run as it was trained.
    """
    config = read_json(merged / "config.json")
    family = config.get("model_type")
    inner = config.get("text_config", {}).get("model_type", "llama") if family in VISION_FAMILIES else family
    if inner not in TEXT_FAMILIES:
        raise ModelError(
            f"A model of type '{family}' cannot be written as GGUF."
            if family == inner
            else f"A '{family}' model whose text model is of type '{inner}' cannot be written as GGUF.",
            where=str(merged / "config.json"),
            fix=f"supported types: {', '.join((*VISION_FAMILIES, *TEXT_FAMILIES))}",
        )
    left = stored_tensors(merged)
    if family in TEXT_FAMILIES:
        if image_size is not None or longest_edge is not None:
            raise ModelError("A text model has no image size.", where=str(merged), fix="leave it out")
        files = [_text_file(merged, config, left, "model.", quantisation, name, template)]
    else:
        files = [
            _text_file(merged, config, left, "model.text_model.", quantisation, name, template),
            _vision_file(merged, config, left, quantisation, image_size, longest_edge, name),
        ]
    # Frequencies of the rotary embedding are computed from the config, and old folders store them as well.
    if unknown := sorted(name for name in left if not name.endswith(".rotary_emb.inv_freq")):
        raise ModelError(
            f"{len(unknown)} tensors have no place in a GGUF file, the first is '{unknown[0]}'.",
            where=str(merged),
            fix="merge adapters and added parts into the weights first",
        )
    return files


def _text_file(
    merged: Path,
    config: dict[str, Any],
    left: dict[str, StoredTensor],
    prefix: str,
    quantisation: str,
    name: str,
    template: str | None,
) -> File:
    text = _TEXT_DEFAULTS | config.get("text_config", config)
    heads, layers, where = text["num_attention_heads"], text["num_hidden_layers"], merged / "config.json"
    kv_heads = text.get("num_key_value_heads") or heads
    head_dim = text.get("head_dim") or text["hidden_size"] // heads
    rope = {"rope_theta": text.get("rope_theta", 10000.0)} | (
        text.get("rope_parameters") or text.get("rope_scaling") or {}
    )
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in ("default", "llama3", "linear") or rope.get("partial_rotary_factor", 1) != 1:
        raise ModelError(f"Rotary embeddings of this kind are not supported: {rope}.", where=str(where), fix=_OTHER)
    _check_activation(text, "silu", where)
    tied = "lm_head.weight" not in left
    if tied and not (config.get("tie_word_embeddings") or text.get("tie_word_embeddings")):
        raise ModelError(
            "There is no 'lm_head.weight', and the config does not tie the output to the embeddings.",
            where=str(merged),
            fix="export or download the model again",
        )

    def tensors() -> Iterator[Tensor]:
        typed = partial(tensor_type, quantisation=quantisation, layers=layers, tied=tied)
        if rope_type == "llama3":
            factors = _llama3_factors(rope, head_dim)
            yield Tensor("rope_freqs.weight", factors.shape, lambda: factors, "F32", None)
        names = [("embed_tokens", "token_embd", 0)]
        for layer in range(layers):
            for source, target in _TEXT_NAMES.items():
                turned = {"attn_q": heads, "attn_k": kv_heads}.get(target, 0)
                names.append((f"layers.{layer}.{source}", f"blk.{layer}.{target}", turned))
        names.append(("norm", "output_norm", 0))
        for source, target, turned in names:
            for suffix, stored in _taken(left, prefix + source, merged):
                read = partial(_rotary_order, stored, turned) if turned else stored.read
                yield Tensor(target + suffix, stored.shape, read, typed(target + suffix, stored.shape), stored.name)
        if not tied:
            stored = left.pop("lm_head.weight")
            yield Tensor("output.weight", stored.shape, stored.read, typed("output.weight", stored.shape), stored.name)

    planned = list(tensors())
    embeddings = next(tensor for tensor in planned if tensor.name == "token_embd.weight")
    if embeddings.shape[0] != text["vocab_size"]:
        raise ModelError(
            f"The config says {text['vocab_size']} tokens, the embeddings have {embeddings.shape[0]}.",
            where=str(where),
            fix="export the model again",
        )

    def add_keys(writer: Any) -> None:
        gguf = gguf_package()
        writer.add_name(name)
        writer.add_block_count(layers)
        writer.add_context_length(text["max_position_embeddings"])
        writer.add_embedding_length(text["hidden_size"])
        writer.add_feed_forward_length(text["intermediate_size"])
        writer.add_head_count(heads)
        writer.add_head_count_kv(kv_heads)
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
        writer.add_layer_norm_rms_eps(text["rms_norm_eps"])
        writer.add_rope_freq_base(rope["rope_theta"])
        writer.add_rope_dimension_count(head_dim)
        if rope_type == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(rope["factor"])
        writer.add_vocab_size(text["vocab_size"])
        add_tokenizer(writer, gguf, merged, text["vocab_size"], template)

    return File("llama", "model", quantisation, planned, add_keys)


def _vision_file(
    merged: Path,
    config: dict[str, Any],
    left: dict[str, StoredTensor],
    quantisation: str,
    image_size: int | None,
    longest_edge: int | None,
    name: str,
) -> File:
    vision = _VISION_DEFAULTS | config.get("vision_config", {})
    scale_factor, where = config.get("scale_factor", 2), merged / "config.json"
    _check_activation(vision, "gelu_pytorch_tanh", where)
    own_size, patch, layers = vision["image_size"], vision["patch_size"], vision["num_hidden_layers"]
    size = own_size if image_size is None else image_size
    # Of its own size a model leaves out pixels that fill no patch (384 // 14 is 27); a smaller one has none to spare.
    fitting = [*range(patch * scale_factor, own_size, patch * scale_factor)]
    fitting += [own_size] * (own_size // patch % scale_factor == 0)
    if size not in fitting:
        raise ModelError(
            f"Tiles of {size} pixels do not fit the model: it has tiles of {own_size}, patches of {patch}, and joins "
            f"{scale_factor} × {scale_factor} of them.",
            where=str(where),
            fix=f"sizes that would do: {', '.join(map(str, fitting))}",
        )
    quantisation = projector_quantisation(quantisation)
    sides = own_size // patch, size // patch

    def tensors() -> Iterator[Tensor]:
        names = [("vision_model.embeddings.patch_embedding", "v.patch_embd")]
        names.append(("vision_model.embeddings.position_embedding", "v.position_embd"))
        for layer in range(layers):
            names += [
                (f"vision_model.encoder.layers.{layer}.{source}", f"v.blk.{layer}.{target}")
                for source, target in _VISION_NAMES.items()
            ]
        names.append(("vision_model.post_layernorm", "v.post_ln"))
        names.append(("connector.modality_projection.proj", "mm.model.fc"))
        for source, target in names:
            for suffix, stored in _taken(left, f"model.{source}", merged):
                typed = tensor_type(target + suffix, stored.shape, quantisation, layers=layers, tied=False)
                # The embeddings of patches and positions are small, and their sum is where all starts.
                kind = "F32" if ".embeddings." in source else typed
                if target == "v.position_embd":
                    if stored.shape[0] != sides[0] ** 2:
                        raise ModelError(
                            f"The config makes {sides[0] ** 2} patches of a tile, the model has {stored.shape[0]}.",
                            where=str(where),
                            fix="export the model again",
                        )
                    rows = position_rows(*sides)
                    read = partial(_rows_of, stored, rows)
                    yield Tensor(target + suffix, (len(rows), *stored.shape[1:]), read, kind, stored.name)
                else:
                    yield Tensor(target + suffix, stored.shape, stored.read, kind, stored.name)

    images = read_json_if_there(merged / "preprocessor_config.json")
    processor = read_json_if_there(merged / "processor_config.json")
    images |= processor | processor.get("image_processor", {})
    if missing := [key for key in ("image_mean", "image_std") if key not in images]:
        raise ModelError(
            f"Neither processor_config.json nor preprocessor_config.json has '{missing[0]}'.",
            where=str(merged),
            fix="export the model together with its processor",
        )

    def add_keys(writer: Any) -> None:
        writer.add_name(name)
        writer.add_clip_has_vision_encoder(True)
        writer.add_clip_projector_type(gguf_package().VisionProjectorType.IDEFICS3)
        writer.add_vision_projection_dim((_TEXT_DEFAULTS | config.get("text_config", {}))["hidden_size"])
        writer.add_vision_image_size(size)
        # Always: without this key llama.cpp's versions differ in how many tiles they make of an image.
        writer.add_vision_preproc_image_size(longest_edge or size)
        writer.add_vision_patch_size(patch)
        writer.add_vision_embedding_length(vision["hidden_size"])
        writer.add_vision_feed_forward_length(vision["intermediate_size"])
        writer.add_vision_block_count(layers)
        writer.add_vision_head_count(vision["num_attention_heads"])
        writer.add_vision_attention_layernorm_eps(vision["layer_norm_eps"])
        writer.add_vision_image_mean(images["image_mean"])
        writer.add_vision_image_std(images["image_std"])
        writer.add_vision_projector_scale_factor(scale_factor)
        writer.add_vision_use_gelu(True)

    return File("clip", "mmproj", quantisation, list(tensors()), add_keys)


_OTHER = "use a model of another kind"


def _check_activation(part: dict[str, Any], known: str, where: Path) -> None:
    """llama.cpp has each family's activation built in."""
    if part["hidden_act"] != known:
        raise ModelError(
            f"The activation '{part['hidden_act']}' stands where llama.cpp has '{known}'.", where=str(where), fix=_OTHER
        )


def _taken(left: dict[str, StoredTensor], name: str, merged: Path) -> Iterator[tuple[str, StoredTensor]]:
    """The weight of a module and its bias if it has one, with their suffixes, taken out of `left`."""
    if f"{name}.weight" not in left:
        raise ModelError(f"There is no tensor '{name}.weight'.", where=str(merged), fix="export the model again")
    for suffix in (".weight", ".bias"):
        if name + suffix in left:
            yield suffix, left.pop(name + suffix)


def _rotary_order(stored: StoredTensor, heads: int) -> NDArray[np.float32]:
    """Query or key rows in llama.cpp's order: it rotates neighbours, transformers the two halves of a head."""
    values = stored.read()
    halves = values.reshape(heads, 2, len(values) // heads // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)


def _llama3_factors(rope: dict[str, Any], head_dim: int) -> NDArray[np.float32]:
    """What Llama 3 divides each rotary frequency by, as transformers' `_compute_llama3_parameters` has it.

    Each step is rounded to float32, and a quotient of a number and an array is a product with its reciprocal: so the
    values are those that torch gives, to the bit.
    """
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    factor, low, high, context = (np.float32(rope[name]) for name in names)
    one, powers = np.float32(1), np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = one / (float(rope["rope_theta"]) ** powers.astype(np.float64)).astype(np.float32)
    wavelengths = one / frequencies * np.float32(2 * math.pi)
    smooth = (one / wavelengths * context - low) / (high - low)
    blended = one / ((one - smooth) / factor + smooth)
    return np.where(wavelengths < context / high, one, np.where(wavelengths > context / low, factor, blended))


def _rows_of(stored: StoredTensor, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    return stored.read()[rows]


def position_rows(own_side: int, side: int) -> NDArray[np.int64]:
    """Rows of a position table of `own_side`² patches that a full image of `side`² patches uses: (side²,).

    The arithmetic, float32 included, is that of SmolVLMVisionEmbeddings in transformers. Where a place meets the
    boundary between two rows, torch's own rounding depends on the processor; tables of 7, 26, 27 and 32 patches a side
    (those of the published models) have no such place.
    """
    if side == own_side:
        return np.arange(own_side**2)
    boundaries = (np.arange(1, own_side) / own_side).astype(np.float32)
    places = np.arange(side, dtype=np.float32) * (np.float32(1) / np.float32(side))
    buckets = np.searchsorted(boundaries, np.minimum(places, np.float32(1 - 1e-6)), side="right")
    return (buckets[:, None] * own_side + buckets).reshape(-1)
