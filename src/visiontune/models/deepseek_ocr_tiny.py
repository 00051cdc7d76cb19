"""Small DeepSeek-OCR models with random weights, of both generations: the real classes, to try things on.

A view is cut into 16 x 16 patches, whatever its size, so that the first generation makes 4 x 4 features of it (21
tokens). The second generation's learned queries are part of its classes: 145 tokens a view.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from visiontune.models.tiny_tokenizer import train_byte_level

PATCHES_A_SIDE = 16
WIDTH = 64
# Of first weights. SAM's own class has 1e-10, for weights that are loaded: every feature would be dead. With the usual
# 0.02 a model this narrow says nothing of its image for hundreds of steps.
SPREAD = WIDTH**-0.5
LONGEST = 4096  # tokens
HALF = [0.5, 0.5, 0.5]
BEGIN, END, PAD, IMAGE = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", "<image>"  # as published

# The published models have no roles: the pages, each on its line, the question, and the answer right behind it.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% for part in message['content'] %}"
    "{{ part['text'] if part['type'] == 'text' else '<image>\n' }}{% endfor %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


def build_first(
    folder: Path,
    texts: Sequence[str],
    seed: int,
    *,
    image_size: int = 64,
    experts: int = 4,
    patches_a_side: int = PATCHES_A_SIDE,
) -> None:
    """Write a small DeepSeek-OCR of the first generation to `folder`, its tokenizer trained on `texts`.

    The first decoder layer is dense, the second has `experts` routed ones, two for each token, and a shared one. The
    same arguments give the same files.
    """
    from transformers import (
        UnlimitedOcrConfig,
        UnlimitedOcrForConditionalGeneration,
        UnlimitedOcrImageProcessor,
        UnlimitedOcrProcessor,
    )

    tokenizer = _train_tokenizer(texts)
    config = UnlimitedOcrConfig(
        vision_config={
            "sam_config": _sam(image_size, patches_a_side),
            "encoder_config": {
                "hidden_size": WIDTH,  # that of SAM's last convolution, whose features it reads as its patches
                "intermediate_size": 2 * WIDTH,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "initializer_range": SPREAD,
                "image_size": patches_a_side // 4 * 14,
                "patch_size": 14,
            },
        },
        # A window as long as the longest text is no window: that is what makes these classes a DeepSeek-OCR.
        text_config=_decoder(tokenizer, experts) | {"sliding_window": LONGEST},
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
    )
    side = {"height": image_size, "width": image_size}
    processor = UnlimitedOcrProcessor(
        UnlimitedOcrImageProcessor(size=side, image_mean=HALF, image_std=HALF),
        tokenizer,
        chat_template=CHAT_TEMPLATE,
        patch_size=image_size // patches_a_side,
    )
    _write(UnlimitedOcrForConditionalGeneration, config, processor, seed, folder)


def build_second(
    folder: Path,
    texts: Sequence[str],
    seed: int,
    *,
    image_size: int = 64,
    experts: int = 4,
    patches_a_side: int = PATCHES_A_SIDE,
) -> None:
    """Write a small DeepSeek-OCR of the second generation, as `build_first`."""
    from transformers import (
        DeepseekOcr2Config,
        DeepseekOcr2ForConditionalGeneration,
        DeepseekOcr2ImageProcessorPil,
        DeepseekOcr2Processor,
    )

    tokenizer = _train_tokenizer(texts)
    config = DeepseekOcr2Config(
        vision_config={
            "sam_config": _sam(image_size, patches_a_side),
            "encoder_config": {
                "vocab_size": 32,
                "hidden_size": WIDTH,
                "intermediate_size": 2 * WIDTH,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "initializer_range": SPREAD,
                "num_key_value_heads": 2,
            },
        },
        text_config=_decoder(tokenizer, experts),
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
    )
    side = {"height": image_size, "width": image_size}
    processor = DeepseekOcr2Processor(
        DeepseekOcr2ImageProcessorPil(size=side, tile_size=image_size, image_mean=HALF, image_std=HALF),
        tokenizer,
        chat_template=CHAT_TEMPLATE,
        patch_size=image_size // patches_a_side,
    )
    _write(DeepseekOcr2ForConditionalGeneration, config, processor, seed, folder)


def _sam(image_size: int, patches_a_side: int) -> dict[str, Any]:
    return {
        "hidden_size": WIDTH,
        "output_channels": WIDTH // 2,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": image_size,
        "patch_size": image_size // patches_a_side,
        "window_size": 4,
        "global_attn_indexes": [1],
        "mlp_dim": 2 * WIDTH,
        "downsample_channels": [WIDTH - 16, WIDTH],
        "initializer_range": SPREAD,
    }


def _decoder(tokenizer: Any, experts: int) -> dict[str, Any]:
    return {
        "vocab_size": -(-len(tokenizer) // 32) * 32,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": LONGEST,
        "n_routed_experts": experts,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": WIDTH // 2,
        "mlp_layer_types": ["dense", "sparse"],
        "n_group": 1,
        "topk_group": 1,
        "topk_method": "greedy",
        "initializer_range": SPREAD,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _write(family: Any, config: Any, processor: Any, seed: int, folder: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = family(config)
    network.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    network.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    network.save_pretrained(folder)
    processor.save_pretrained(folder)


def _train_tokenizer(texts: Sequence[str]) -> Any:
    """A byte-level BPE tokenizer with digits one by one and DeepSeek's special tokens."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = train_byte_level(texts, [BEGIN, END, PAD, IMAGE])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[IMAGE],
        model_max_length=LONGEST,
        clean_up_tokenization_spaces=False,
    )
