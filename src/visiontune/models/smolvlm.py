"""SmolVLM: the first generation (Idefics3 classes), the second (SmolVLM classes), and a tiny one to try things on."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from visiontune.contract import DeviceContract
from visiontune.models.adapter import Batch, Layout
from visiontune.models.generative import GenerativeAdapter, load_network
from visiontune.models.generative_encoder import GenerativeEncoder
from visiontune.models.parts import Part
from visiontune.models.tiny_tokenizer import train_byte_level
from visiontune.recipe_sections import Data

PARTS = (
    Part("vision_encoder", ("model.vision_model",)),
    Part("projector", ("model.connector",)),
    Part("language_model", ("model.text_model.layers", "model.text_model.norm", "model.text_model.rotary_emb")),
    Part("embeddings", ("model.text_model.embed_tokens", "lm_head")),
)

CUTS_INTO_TILES = True
SEEN = ("pixel_values", "pixel_attention_mask")
TINY_IMAGE_SIZE = 32
TINY_PATCHES_PER_SIDE, TINY_SCALE = 4, 2
TINY_CONTEXT = 2048


def native_image_size(config: Any) -> int:
    """Pixels a side of a tile."""
    return int(config.vision_config.image_size)


def projector_takes_lora(config: Any) -> bool:
    """Whether there is a linear layer in the projector."""
    return True


def page_tokens(config: Any, side: int) -> int:
    """The image tokens of one tile."""
    vision = config.vision_config
    return (vision.image_size // vision.patch_size // config.scale_factor) ** 2


def tiny_page_tokens(name: str, side: int) -> int:
    """The same of the tiny model."""
    return (TINY_PATCHES_PER_SIDE // TINY_SCALE) ** 2


class SmolVLMEncoder(GenerativeEncoder):
    """Samples to tensors through the checkpoint's own processor and chat template, images resized by Pillow."""

    def __init__(self, processor: Any, data: Data) -> None:
        super().__init__(processor, data, processor.end_of_utterance_token)
        image_processor = processor.image_processor
        image_processor.do_image_splitting = data.image_splitting
        image_processor.size = {"longest_edge": data.image_longest_edge}
        self.tokens_per_tile: int = processor.image_seq_len

    def see(self, images: Sequence[Image]) -> tuple[dict[str, torch.Tensor], Layout]:
        """RGB images as tiles (tiles, 3, height, width) float32, what of them is picture (tiles, height, width) int64,
        and (rows, columns) of each image's tiles. The model drops tiles that are all zero."""
        seen = self.processor.image_processor(
            images=[list(images)], return_row_col_info=True, return_tensors="pt", input_data_format="channels_last"
        )
        layout = tuple(zip(seen["rows"][0], seen["cols"][0], strict=True))
        return {name: seen[name][0] for name in SEEN}, layout

    def layout(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tiles of an image of this size in pixels; 0 and 0 for one that is not cut."""
        _, rows, columns = self.processor.image_processor.get_number_of_image_patches(height, width)
        return rows, columns

    def views(self, layout: Layout) -> int:
        return sum(rows * columns + 1 if rows else 1 for rows, columns in layout)

    def placeholder(self, layout: Layout, image: int) -> str:
        rows, columns = [[row for row, _ in layout]], [[column for _, column in layout]]
        return self.processor.replace_image_token({"rows": rows, "cols": columns}, image)

    def features(self, views: int) -> int:
        return views * self.tokens_per_tile


class SmolVLMAdapter(GenerativeAdapter):
    """SmolVLM for the training loop."""

    family = "smolvlm"
    parts = PARTS
    packs = True

    def images_of(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {name: batch.tensors[name] for name in SEEN if name in batch.tensors}

    def projected(self, features: torch.Tensor) -> list[torch.Tensor]:
        network: Any = self.network
        return list(network.model.connector(features))


def load(folder: str, revision: str | None, data: Data, device: DeviceContract | None = None) -> SmolVLMAdapter:
    """A checkpoint of either generation, weights in float32."""
    return SmolVLMAdapter(load_network(folder, revision), load_encoder(folder, revision, data, device))


def load_encoder(folder: str, revision: str | None, data: Data, device: DeviceContract | None = None) -> SmolVLMEncoder:
    """The encoder of a checkpoint without its weights, images resized by Pillow."""
    from transformers import AutoConfig, AutoImageProcessor, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder, revision=revision)
    processor.image_processor = AutoImageProcessor.from_pretrained(folder, revision=revision, backend="pil")
    if device is None:
        return SmolVLMEncoder(processor, data)
    from visiontune.models.smolvlm_device import SmolVLMDeviceEncoder

    return SmolVLMDeviceEncoder(processor, data, device, AutoConfig.from_pretrained(folder, revision=revision))


def chat_prompt(folder: str | None, revision: str | None = None) -> str:
    """What the checkpoint's chat template (None: the tiny model's) makes of a picture and a question, up to the answer,
    with {marker} and {question} in their places."""
    from transformers import AutoProcessor

    return prompt_of(None if folder is None else AutoProcessor.from_pretrained(folder, revision=revision))


def prompt_of(processor: Any) -> str:
    """`chat_prompt` of a processor; None stands for the tiny model's template."""
    from transformers.utils.chat_template_utils import render_jinja_template

    messages: Any = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "{question}"}]}]
    if processor is None:
        (text,), _ = render_jinja_template([messages], chat_template=CHAT_TEMPLATE, add_generation_prompt=True)
    else:
        text = processor.apply_chat_template(messages, add_generation_prompt=True)
    return text.replace("<image>", "{marker}")


def build_tiny(
    folder: Path,
    texts: Sequence[str],
    seed: int,
    *,
    image_size: int = 32,
    width: int = 96,
    layers: int = 3,
    patches_per_side: int = TINY_PATCHES_PER_SIDE,
) -> None:
    """Write a small SmolVLM with random weights to `folder`: the real classes, a tokenizer trained on `texts`.

    Widths are multiples of 32, so that the model can be quantised in blocks of 32 later. The same arguments give the
    same files.
    """
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMProcessor
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
    from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

    tokenizer = _train_tokenizer(texts)
    scale_factor = TINY_SCALE
    config = SmolVLMConfig(
        text_config={
            "model_type": "llama",
            "architectures": ["VLlama3ForCausalLM"],  # the name converters to other formats look for
            "vocab_size": -(-len(tokenizer) // 32) * 32,
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": width // 32,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
            "max_position_embeddings": TINY_CONTEXT,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": width // 32,
            "image_size": image_size,
            "patch_size": image_size // patches_per_side,
        },
        scale_factor=scale_factor,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SmolVLMForConditionalGeneration(config)
    network.generation_config.eos_token_id = tokenizer.eos_token_id
    network.generation_config.pad_token_id = tokenizer.pad_token_id
    tile = {"longest_edge": image_size}
    processor = SmolVLMProcessor(
        image_processor=SmolVLMImageProcessorPil(size=tile, max_image_size=tile, do_image_splitting=False),
        tokenizer=tokenizer,
        video_processor=SmolVLMVideoProcessor(
            size=tile,
            max_image_size=tile,
            video_sampling={"max_frames": 8, "fps": 1, "video_size": tile},  # pyright: ignore[reportCallIssue]
        ),
        image_seq_len=(patches_per_side // scale_factor) ** 2,
        chat_template=CHAT_TEMPLATE,
    )
    network.save_pretrained(folder)
    processor.save_pretrained(folder)


def _train_tokenizer(texts: Sequence[str]) -> Any:
    """A byte-level BPE tokenizer with SmolLM's splitting (digits one by one) and SmolVLM's special tokens."""
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<end_of_utterance>", "<fake_token_around_image>"]
    special += ["<image>", "<global-img>", *(f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7))]
    tokenizer = train_byte_level([*texts, "User: Assistant: "], special)
    tokenizer = _with_blank_line(tokenizer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        additional_special_tokens=special[4:],
        model_max_length=TINY_CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def _with_blank_line(tokenizer: Any) -> Any:
    """The tokenizer with a token for a blank line, which stands between the tiles of an image and its overview."""
    values = json.loads(tokenizer.to_str())
    newline = "\u010a"  # the byte 10, as byte-level tokenizers write it
    vocabulary, merges = values["model"]["vocab"], values["model"]["merges"]
    if newline * 2 not in vocabulary:
        vocabulary[newline * 2] = len(vocabulary)
        merges.append([newline, newline])
    return type(tokenizer).from_str(json.dumps(values))


# The turns of SmolVLM: "User:" before an image, "User: " before text, each turn closed by the end token and a new line.
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}"
    "{% for part in message['content'] %}{{ part['text'] if part['type'] == 'text' else '<image>' }}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
