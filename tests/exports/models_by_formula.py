"""Small model folders whose every byte follows from integer arithmetic: the same on every machine.

`bench/official_gguf.py` gives them to llama.cpp's converter, and the tests give them to ours.
"""

import hashlib
import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Stored = Literal["F32", "BF16"]

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>"]
SPECIAL += ["<global-img>", "<row_1_col_1>"]
MERGES = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("i", "n"), ("e", "r"), ("Ċ", "Ċ"), ("Ġ", "a"), ("o", "n"), ("r", "e")]
TEMPLATE = "{% for message in messages %}{{ message['content'] }}<end_of_utterance>\n{% endfor %}"

SMOLLM: dict[str, Any] = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ],
}
GPT2: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
LLAMA3: dict[str, Any] = {
    "type": "Sequence",
    "pretokenizers": [
        {
            "type": "Split",
            "pattern": {
                "Regex": "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|"
                " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
            },
            "behavior": "Isolated",
            "invert": False,
        },
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ],
}


@dataclass(frozen=True)
class Case:
    """A model to build: config fields over the common ones, and what its tokenizer does."""

    family: str
    width: int = 64
    middle: int = 128
    layers: int = 2
    heads: int = 2
    kv_heads: int = 1
    tied: bool = False
    text: dict[str, Any] = field(default_factory=dict)
    biases: bool = False
    words: str = "smollm"
    starts: bool = False
    old_layout: bool = False


CASES = {
    "smolvlm": Case("smolvlm", text={"rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}}),
    # As the first generation lies on the hub: other file names, fields left to the defaults of transformers.
    "idefics3": Case("idefics3", text={"rope_theta": 273768.0}, old_layout=True),
    "smolvlm, tied": Case("smolvlm", text={"rope_theta": 100000.0}, tied=True),
    "smolvlm, rows of 48": Case("smolvlm", width=48, middle=80, heads=3, kv_heads=3),
    "llama 3": Case(
        "llama",
        heads=4,
        kv_heads=2,
        text={
            "rope_theta": 300000.0,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 1000,
            },
        },
        words="llama-bpe",
        starts=True,
    ),
    "llama, tied": Case(
        "llama",
        tied=True,
        biases=True,
        words="gpt-2",
        text={"rope_scaling": {"type": "linear", "factor": 2.0}, "attention_bias": True, "head_dim": 16},
    ),
}
# For the types that llama.cpp's quantiser mixes: rows of 256 fill the blocks of K-quants, and eight layers differ.
LAYERED_CASES = {
    "llama, rows of 256": Case("llama", width=256, middle=256, layers=8, heads=8),
    "llama, rows of 256, tied": Case("llama", width=256, middle=512, layers=3, heads=8, tied=True),
    "llama, rows of 96": Case("llama", width=96, middle=192, layers=4, heads=3),
}


def build(case: Case, folder: Path, *, stored: Stored = "F32", rounded: bool = False, parts: int = 1) -> None:
    """Write the folder. `rounded` keeps the values that BF16 holds, `stored` is how they stand, in `parts` files."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(case)
    tokens = max(token["id"] for token in tokenizer["added_tokens"]) + 1
    vocab_size = -(-tokens // 32) * 32
    _write(folder / "tokenizer.json", tokenizer)
    _write(folder / "config.json", _config(case, vocab_size))
    shapes = _shapes(case, vocab_size)
    names = sorted(shapes)
    files = [names[part::parts] for part in range(parts)]
    called = [
        f"model-{n + 1:05d}-of-{parts:05d}.safetensors" if parts > 1 else "model.safetensors" for n in range(parts)
    ]
    for name, members in zip(called, files, strict=True):
        write_safetensors(
            folder / name, {member: values(member, shapes[member]) for member in members}, stored, rounded=rounded
        )
    if parts > 1:
        where = {member: name for name, members in zip(called, files, strict=True) for member in members}
        _write(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": where})
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<end_of_utterance>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
    }
    images = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "size": {"longest_edge": 64}}
    if case.old_layout:
        settings |= {"chat_template": TEMPLATE, "add_prefix_space": False, "add_bos_token": False}
        _write(folder / "preprocessor_config.json", images)
        _write(folder / "processor_config.json", {"image_seq_len": 4})
    else:
        (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
        if case.family != "llama":
            _write(folder / "processor_config.json", {"image_seq_len": 4, "image_processor": images})
    _write(folder / "tokenizer_config.json", settings)


def values(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Values of 16 bits spread over ±1/8, norms around 1: exact in float32, rounded in all smaller types."""
    count = int(np.prod(shape))
    mixed = (
        np.arange(count, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(zlib.crc32(name.encode()))
    ) & 0xFFFFFFFF
    spread = ((mixed >> np.uint64(16)).astype(np.float64) / 65536 - 0.5) / 4
    is_norm = name.endswith("norm.weight") or "layernorm" in name or "layer_norm" in name
    return (spread + (1 if is_norm else 0)).astype(np.float32).reshape(shape)


def write_safetensors(path: Path, tensors: dict[str, NDArray[np.float32]], stored: Stored, *, rounded: bool) -> None:
    """A safetensors file; `rounded` cuts the values to the upper half of a float32 first, as BF16 does."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, tensor in tensors.items():
        bits = tensor.view(np.uint32) & 0xFFFF0000 if rounded or stored == "BF16" else tensor.view(np.uint32)
        raw = (bits >> 16).astype("<u2").tobytes() if stored == "BF16" else bits.astype("<u4").tobytes()
        header[name] = {"dtype": stored, "shape": tensor.shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    written = json.dumps(header).encode()
    written += b" " * (-len(written) % 8)
    path.write_bytes(len(written).to_bytes(8, "little") + written + data)


def described(path: Path) -> dict[str, Any]:
    """A GGUF file's tensors as `TYPE SHAPE HASH` (rows last), and its keys; long lists by their hash."""
    from gguf import GGUFReader

    def hashed(data: bytes) -> str:
        return hashlib.sha256(data).hexdigest()[:16]

    reader = GGUFReader(path)
    tensors = {}
    for tensor in reader.tensors:
        shape = "x".join(str(length) for length in reversed(tensor.shape.tolist()))
        tensors[tensor.name] = f"{tensor.tensor_type.name} {shape} {hashed(tensor.data.tobytes())}"
    keys = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    for name, value in keys.items():
        if isinstance(value, list) and len(value) > 16:
            keys[name] = hashed(json.dumps(value).encode())
    return {"tensors": tensors, "keys": keys}


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in a byte-level vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]


def _tokenizer(case: Case) -> dict[str, Any]:
    vocabulary = [*SPECIAL, *_byte_letters(), *(a + b for a, b in MERGES)]
    added = [(token, i, True) for i, token in enumerate(SPECIAL)]
    # Tokens that a user added as text: one plain, one that looks like control, one with SentencePiece's space.
    first = len(vocabulary)
    added += [("<answer>", first, False), ("<|tool|>", first + 1, False), ("▁row", first + 2, False)]
    added += [("<late>", first + 3, True)]
    words = {"smollm": SMOLLM, "gpt-2": GPT2, "llama-bpe": LLAMA3}[case.words]
    start = {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}
    text, other = ({"Sequence": {"id": letter, "type_id": i}} for i, letter in enumerate("AB"))
    starts = {
        "type": "TemplateProcessing",
        "single": [start, text],
        "pair": [start, text, start, other],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}},
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": special,
            }
            for token, i, special in added
        ],
        "normalizer": None,
        "pre_tokenizer": words,
        "post_processor": starts if case.starts else None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": case.words == "llama-bpe",
            "vocab": {token: i for i, token in enumerate(vocabulary)},
            "merges": [f"{a} {b}" for a, b in MERGES] if case.old_layout else [list(pair) for pair in MERGES],
        },
    }


def _config(case: Case, vocab_size: int) -> dict[str, Any]:
    text = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM" if case.family == "llama" else "VLlama3ForCausalLM"],
        "vocab_size": vocab_size,
        "hidden_size": case.width,
        "intermediate_size": case.middle,
        "num_hidden_layers": case.layers,
        "num_attention_heads": case.heads,
        "num_key_value_heads": case.kv_heads,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 3,
        "pad_token_id": 2,
        "tie_word_embeddings": case.tied,
        **case.text,
    }
    if case.family == "llama":
        return text
    vision = {
        "model_type": f"{case.family}_vision",
        "hidden_size": case.width,
        "intermediate_size": case.middle,
        "num_hidden_layers": case.layers,
        "num_attention_heads": case.heads,
        "image_size": 32,
        "patch_size": 8,
        "layer_norm_eps": 1e-6,
    }
    if case.old_layout:
        del vision["layer_norm_eps"]
    names = {"smolvlm": "SmolVLM", "idefics3": "Idefics3"}
    return {
        "model_type": case.family,
        "architectures": [f"{names[case.family]}ForConditionalGeneration"],
        "image_token_id": 5,
        "scale_factor": 2,
        "tie_word_embeddings": case.tied,
        "text_config": text,
        "vision_config": vision,
    }


def _shapes(case: Case, vocab_size: int) -> dict[str, tuple[int, ...]]:
    wide, middle, head = case.width, case.middle, case.text.get("head_dim", case.width // case.heads)
    text = "model" if case.family == "llama" else "model.text_model"
    shapes: dict[str, tuple[int, ...]] = {
        f"{text}.embed_tokens.weight": (vocab_size, wide),
        f"{text}.norm.weight": (wide,),
    }
    if not case.tied:
        shapes["lm_head.weight"] = (vocab_size, wide)
    for layer in range(case.layers):
        here = f"{text}.layers.{layer}"
        rows = {"q": case.heads * head, "k": case.kv_heads * head, "v": case.kv_heads * head}
        for name, count in rows.items():
            shapes[f"{here}.self_attn.{name}_proj.weight"] = (count, wide)
            if case.biases:
                shapes[f"{here}.self_attn.{name}_proj.bias"] = (count,)
        shapes[f"{here}.self_attn.o_proj.weight"] = (wide, case.heads * head)
        if case.biases:
            shapes[f"{here}.self_attn.o_proj.bias"] = (wide,)
        shapes |= {f"{here}.mlp.{name}_proj.weight": (middle, wide) for name in ("gate", "up")}
        shapes[f"{here}.mlp.down_proj.weight"] = (wide, middle)
        shapes |= {f"{here}.{name}.weight": (wide,) for name in ("input_layernorm", "post_attention_layernorm")}
    if case.family == "llama":
        return shapes
    vision = "model.vision_model"
    shapes["model.connector.modality_projection.proj.weight"] = (wide, 4 * wide)
    shapes[f"{vision}.embeddings.patch_embedding.weight"] = (wide, 3, 8, 8)
    shapes[f"{vision}.embeddings.patch_embedding.bias"] = (wide,)
    shapes[f"{vision}.embeddings.position_embedding.weight"] = (16, wide)
    for end in ("weight", "bias"):
        shapes[f"{vision}.post_layernorm.{end}"] = (wide,)
    for layer in range(case.layers):
        here = f"{vision}.encoder.layers.{layer}"
        maps = {f"self_attn.{name}": (wide, wide) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
        for name, shape in (maps | {"mlp.fc1": (middle, wide), "mlp.fc2": (wide, middle)}).items():
            shapes |= {f"{here}.{name}.weight": shape, f"{here}.{name}.bias": shape[:1]}
        for name in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{here}.{name}.{end}": (wide,) for end in ("weight", "bias")}
    return shapes
