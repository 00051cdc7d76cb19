"""From an image to its label's probabilities with llama.cpp on two cores, at the shapes of SmolVLM-256M: exported for
tiles of 256 pixels, beside the stock layout, which scales every image to 2048 pixels and cuts it.

The weights are random: times, memory and sizes do not depend on their values. The vocabulary has the real size; its
tokenizer is trained on the question, and the rest of the table is empty.

    python bench/device.py

Run it alone: llama.cpp's threads wait for each other at every operation, so that one more busy process makes the times
ten times as long.
"""

import io
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from visiontune.exports.gguf import predicted_bytes, write_gguf
from visiontune.exports.runtime import Runtime
from visiontune.models.labels import LabelTree
from visiontune.models.smolvlm import build_tiny

LABELS = ("water", "land", "fire", "wood", "metal")
QUESTION = "Classify this image into one of these elements: water, land, fire, wood, metal."
MARKER = "<__media__>"
PROMPT = f"<|im_start|>User:{MARKER}{QUESTION}<end_of_utterance>\nAssistant:"
THREADS = 2
IMAGE_SIDE = 256
QUANTISATION = "q8_0"
NATIVE = {"image_size": 256}
STOCK = {"longest_edge": 2048}
NATIVE_RUNS = 9

VOCABULARY = 49280
WIDTH, TEXT_LAYERS, KEY_WIDTH, FEED_FORWARD = 576, 30, 192, 1536
VISION_WIDTH, VISION_LAYERS, VISION_FEED_FORWARD = 768, 12, 3072
PATCH, SIDE, SCALE = 16, 512, 4


def shapes() -> dict[str, tuple[int, ...]]:
    """The tensors of SmolVLM-256M and their shapes."""
    text, vision, block = "model.text_model", "model.vision_model", VISION_WIDTH
    made: dict[str, tuple[int, ...]] = {
        "lm_head.weight": (VOCABULARY, WIDTH),
        "model.connector.modality_projection.proj.weight": (WIDTH, block * SCALE**2),
        f"{text}.embed_tokens.weight": (VOCABULARY, WIDTH),
        f"{text}.norm.weight": (WIDTH,),
        f"{vision}.embeddings.patch_embedding.weight": (block, 3, PATCH, PATCH),
        f"{vision}.embeddings.patch_embedding.bias": (block,),
        f"{vision}.embeddings.position_embedding.weight": ((SIDE // PATCH) ** 2, block),
        f"{vision}.post_layernorm.weight": (block,),
        f"{vision}.post_layernorm.bias": (block,),
    }
    for layer in (f"{text}.layers.{i}" for i in range(TEXT_LAYERS)):
        made |= {
            f"{layer}.input_layernorm.weight": (WIDTH,),
            f"{layer}.post_attention_layernorm.weight": (WIDTH,),
            f"{layer}.self_attn.q_proj.weight": (WIDTH, WIDTH),
            f"{layer}.self_attn.k_proj.weight": (KEY_WIDTH, WIDTH),
            f"{layer}.self_attn.v_proj.weight": (KEY_WIDTH, WIDTH),
            f"{layer}.self_attn.o_proj.weight": (WIDTH, WIDTH),
            f"{layer}.mlp.gate_proj.weight": (FEED_FORWARD, WIDTH),
            f"{layer}.mlp.up_proj.weight": (FEED_FORWARD, WIDTH),
            f"{layer}.mlp.down_proj.weight": (WIDTH, FEED_FORWARD),
        }
    for layer in (f"{vision}.encoder.layers.{i}" for i in range(VISION_LAYERS)):
        linear = {f"self_attn.{name}": (block, block) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
        linear |= {"mlp.fc1": (VISION_FEED_FORWARD, block), "mlp.fc2": (block, VISION_FEED_FORWARD)}
        for name, shape in linear.items():
            made |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
        for name in ("layer_norm1", "layer_norm2"):
            made |= {f"{layer}.{name}.weight": (block,), f"{layer}.{name}.bias": (block,)}
    return made


def write_checkpoint(folder: Path) -> int:
    """A transformers folder of these shapes with random bfloat16 weights; returns the number of parameters."""
    build_tiny(folder, [QUESTION, *LABELS], 0, width=64, layers=1)  # for its tokenizer, its template and its configs
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config |= {"scale_factor": SCALE, "dtype": "bfloat16"}
    config["text_config"] |= {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": FEED_FORWARD,
        "num_hidden_layers": TEXT_LAYERS,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "max_position_embeddings": 8192,
    }
    config["vision_config"] |= {
        "hidden_size": VISION_WIDTH,
        "intermediate_size": VISION_FEED_FORWARD,
        "num_hidden_layers": VISION_LAYERS,
        "num_attention_heads": 12,
        "image_size": SIDE,
        "patch_size": PATCH,
    }
    path.write_text(json.dumps(config))
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes().items():
        start, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    generator = np.random.default_rng(0)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes().values():
            values = generator.standard_normal(shape, np.float32) * np.float32(0.02) + np.float32(len(shape) == 1)
            (values.view(np.uint32) >> 16).astype("<u2").tofile(file)  # bfloat16 is the upper half of a float32
    return end // 2


def png(seed: int) -> bytes:
    """A noisy image, the worst case of its size."""
    pixels = np.random.default_rng(seed).integers(0, 256, (IMAGE_SIDE, IMAGE_SIDE, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def measure(name: str, merged: Path, out: Path, layout: dict[str, int], runs: int) -> float:
    """Export, run, print a row; returns the median seconds from image to label probabilities."""
    predicted = predicted_bytes(merged, QUANTISATION, layout.get("image_size"))
    started = time.perf_counter()
    files = write_gguf(merged, out, QUANTISATION, **layout)  # pyright: ignore[reportArgumentType]
    written = time.perf_counter() - started
    text, projector = (file.path for file in files)
    with Runtime(text, projector, threads=THREADS) as runtime:
        end = runtime.tokenize("<end_of_utterance>")
        tree = LabelTree(LABELS, tuple((*runtime.tokenize(" " + label), *end) for label in LABELS))
        seconds = []
        for run in range(runs):
            image = png(run)
            started = time.perf_counter()
            scores = runtime.score_labels(PROMPT, image, marker=MARKER, tree=tree)
            seconds.append(time.perf_counter() - started)
            assert abs(np.exp(scores).sum() - 1) < 1e-6
        peak, load = runtime.peak_memory_bytes(), runtime.load_seconds
        # The image of the last run again, so that its tokens are counted and not computed.
        reading = runtime.answer(PROMPT, png(runs - 1), marker=MARKER, max_new_tokens=1, fresh=False)
    tokens = f"{reading.image_tokens} image and {len(reading.prompt_ids)} text tokens"
    median = float(np.median(seconds))
    spread = f"{min(seconds):.2f} to {max(seconds):.2f}" if runs > 1 else "one run"
    print(f"{name}: {median:.2f} s ({runs} runs, {spread}); {tokens}; {len(tree.branches)} branchings")
    print(f"  loaded in {load:.2f} s, at most {peak / 1e6:.0f} MB of memory, mapped files included")
    sizes = ", ".join(
        f"{f.bytes / 1e6:.1f} MB (predicted {p / 1e6:.1f})" for f, p in zip(files, predicted, strict=True) if p
    )
    print(f"  files: {sizes}, written in {written:.1f} s")
    return median


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        merged = Path(folder, "merged")
        parameters = write_checkpoint(merged)
        print(f"{parameters:,} random parameters at SmolVLM-256M's shapes, {QUANTISATION}, {THREADS} threads")
        machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
        print(f"{machine}, load over the last minute {os.getloadavg()[0]:.1f}")
        print(f"from an image of {IMAGE_SIDE} pixels to the probabilities of {len(LABELS)} labels")
        native = measure("256 pixels, two tiles", merged, Path(folder, "native"), NATIVE, NATIVE_RUNS)
        stock = measure("stock, 2048 pixels", merged, Path(folder, "stock"), STOCK, 1)
        print(f"ratio: {stock / native:.0f}")


if __name__ == "__main__":
    main()
