"""Small Qwen2.5-VL, Qwen3-VL and Gemma 3 models with random weights: the real classes, to try things on.

A token stands for 8 x 8 pixels of the Qwens' images, whatever their shape, and for a sixteenth of Gemma's square.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from visiontune.models.tiny_tokenizer import train_byte_level

WIDTH, LAYERS = 96, 3
HEADS, HEAD = 3, 32
PATCH, MERGE = 4, 2
MERGED = PATCH * MERGE  # pixels a side of what a token stands for
TOKENS_A_SIDE = 4  # of Gemma's square
LONGEST = 2048  # tokens
SPREAD = 0.1  # of first weights: a model this narrow says nothing of its image with the usual 0.02

QWEN_SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
)
GEMMA_SPECIAL = (
    *("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
    *("<start_of_image>", "<image_soft_token>", "<end_of_image>"),
)

# Turns between <|im_start|> and <|im_end|>, an image between its own two marks.
QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{{ part['text'] if part['type'] == 'text' else '<|vision_start|><|image_pad|><|vision_end|>' }}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Gemma knows a user and a model; what the system says stands in front of the first question.
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] != 'system' %}<start_of_turn>"
    "{{ 'model' if message['role'] == 'assistant' else 'user' }}\n"
    "{% if loop.index0 == 1 and messages[0]['role'] == 'system' %}"
    "{{ messages[0]['content'][0]['text'] }}\n\n{% endif %}"
    "{% for part in message['content'] %}"
    "{{ part['text'] | trim if part['type'] == 'text' else '<start_of_image>' }}{% endfor %}"
    "<end_of_turn>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def build_qwen2_5_vl(folder: Path, texts: Sequence[str], seed: int, *, image_size: int = 32) -> None:
    """Write a small Qwen2.5-VL to `folder`, its tokenizer trained on `texts`. Input and output embeddings are one, as
    in the published 3B. The same arguments give the same files."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    classes = (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor, Qwen2VLVideoProcessor)
    vision = {"window_size": 4 * MERGED, "fullatt_block_indexes": [LAYERS - 1]}
    _build_qwen(classes, vision, folder, texts, seed, image_size, tied=True)


def build_qwen3_vl(folder: Path, texts: Sequence[str], seed: int, *, image_size: int = 32) -> None:
    """Write a small Qwen3-VL to `folder`, its tokenizer trained on `texts`. The same arguments give the same files."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    classes = (Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor, Qwen3VLVideoProcessor)
    vision = {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    _build_qwen(classes, vision, folder, texts, seed, image_size, tied=False)


def _build_qwen(
    classes: tuple[Any, Any, Any, Any],
    vision: dict[str, Any],
    folder: Path,
    texts: Sequence[str],
    seed: int,
    image_size: int,
    *,
    tied: bool,
) -> None:
    """Either generation; `classes` are those of config, network, processor and video processor."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    make_config, network, make_processor, make_videos = classes
    tokenizer = _tokenizer(texts, QWEN_SPECIAL, "<|im_end|>", "<|endoftext|>")
    config = make_config(
        text_config=_text(tokenizer, "mrope_section"),
        vision_config=_qwen_vision() | vision,
        tie_word_embeddings=tied,
        **_qwen_ids(tokenizer),
    )
    cut: Any = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": 2}
    sizes = {"shortest_edge": (2 * MERGED) ** 2, "longest_edge": image_size**2}
    images = Qwen2VLImageProcessorPil(size=sizes, **cut)
    processor = make_processor(images, tokenizer, make_videos(**cut), chat_template=QWEN_TEMPLATE)
    _write(network, config, processor, seed, folder)


def build_gemma3(folder: Path, texts: Sequence[str], seed: int, *, image_size: int = 32) -> None:
    """Write a small Gemma 3 to `folder`, its tokenizer trained on `texts`. The same arguments give the same files."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3Processor
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    marks = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = _tokenizer(texts, GEMMA_SPECIAL, "<eos>", "<pad>", bos_token="<bos>", extra_special_tokens=marks)
    boi, eoi, image = (tokenizer.convert_tokens_to_ids(token) for token in marks.values())
    config = Gemma3Config(
        text_config=_text(tokenizer, None) | {"query_pre_attn_scalar": HEAD, "sliding_window": 512},
        vision_config={
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "image_size": image_size,
            "patch_size": image_size // (2 * TOKENS_A_SIDE),
            "vision_use_head": False,
        },
        mm_tokens_per_image=TOKENS_A_SIDE**2,
        boi_token_index=boi,
        eoi_token_index=eoi,
        image_token_index=image,
        initializer_range=SPREAD,
    )
    processor = Gemma3Processor(
        Gemma3ImageProcessorPil(size={"height": image_size, "width": image_size}),
        tokenizer,
        chat_template=GEMMA_TEMPLATE,
        image_seq_length=TOKENS_A_SIDE**2,
    )
    _write(Gemma3ForConditionalGeneration, config, processor, seed, folder)


def _text(tokenizer: Any, sections: str | None) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 100000.0}
    per_layer = {"full_attention": rope, "sliding_attention": rope | {"rope_theta": 10000.0}}
    return {
        "vocab_size": -(-len(tokenizer) // 32) * 32,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 1,
        "head_dim": HEAD,
        "rope_parameters": rope | {sections: [4, 6, 6]} if sections else per_layer,  # time, rows, columns
        "max_position_embeddings": LONGEST,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": SPREAD,
    }


def _qwen_vision() -> dict[str, Any]:
    return {
        "depth": LAYERS,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_heads": HEADS,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        "out_hidden_size": WIDTH,
        "initializer_range": SPREAD,
    }


def _qwen_ids(tokenizer: Any) -> dict[str, Any]:
    names = ("image_pad", "video_pad", "vision_start", "vision_end")
    fields = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return {field: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for field, name in zip(fields, names, strict=True)}


def _tokenizer(texts: Sequence[str], special: Sequence[str], end: str, pad: str, **more: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=train_byte_level([*texts, "user assistant model "], special),
        eos_token=end,
        pad_token=pad,
        additional_special_tokens=list(special),
        model_max_length=LONGEST,
        clean_up_tokenization_spaces=False,
        **more,
    )


def _write(kind: Any, config: Any, processor: Any, seed: int, folder: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = kind(config)
        if (
            config.model_type == "gemma3"
        ):  # its class starts it at zero, for weights that are loaded: nothing would pass
            torch.nn.init.normal_(network.model.multi_modal_projector.mm_input_projection_weight, std=SPREAD)
    network.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    network.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
