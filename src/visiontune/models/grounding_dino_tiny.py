"""Small Grounding DINOs with random weights, of both kinds: the real classes, to try things on."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from visiontune.models.grounding_prompts import phrase
from visiontune.recipe import ObjectChoices

WIDTH = 64
LONGEST_PROMPT = 64  # tokens
QUERIES = 30
FIRST_PROBABILITY = 0.01
# Where BERT's own vocabulary has its marks and the signs of ASCII: the model knows '.' and '?' by these numbers.
MARKS = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}
FIRST_SIGN = 999


def places(objects: ObjectChoices, image_size: int) -> int:
    """How many objects a tiny model has places for in an image, whatever its size."""
    return QUERIES


def build_mm(folder: Path, objects: ObjectChoices, seed: int, *, image_size: int) -> None:
    """Write a small MM-Grounding DINO to `folder`, with a tokenizer that has a token for each word of the classes.

    The same arguments give the same files.
    """
    from transformers import MMGroundingDinoConfig, MMGroundingDinoForObjectDetection

    _build(folder, objects, seed, image_size, MMGroundingDinoConfig, MMGroundingDinoForObjectDetection)


def build_original(folder: Path, objects: ObjectChoices, seed: int, *, image_size: int) -> None:
    """The same as a Grounding DINO."""
    from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection

    _build(folder, objects, seed, image_size, GroundingDinoConfig, GroundingDinoForObjectDetection, unlikely=True)


def _build(
    folder: Path,
    objects: ObjectChoices,
    seed: int,
    image_size: int,
    config_class: Any,
    model_class: Any,
    unlikely: bool = False,
) -> None:
    from transformers import GroundingDinoProcessor
    from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil

    tokenizer = tokenizer_of(objects.classes)
    config = config_class(
        backbone_config={
            "model_type": "swin",
            "image_size": image_size,
            "patch_size": 4,
            "embed_dim": 16,
            "depths": [1, 1, 1],
            "num_heads": [1, 2, 4],
            "window_size": 4,
            "drop_path_rate": 0.0,
            "out_indices": [2, 3],
        },
        text_config={
            "model_type": "bert",
            "vocab_size": len(tokenizer),
            "hidden_size": WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 2 * WIDTH,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        d_model=WIDTH,
        num_feature_levels=3,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=2 * WIDTH,
        decoder_ffn_dim=2 * WIDTH,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        num_queries=QUERIES,
        max_text_len=LONGEST_PROMPT,
        dropout=0.0,
        fusion_droppath=0.0,
        disable_custom_kernels=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = model_class(config)
    if unlikely:
        _say_nothing_is_there(network.model)
    network.save_pretrained(folder)
    size = {"shortest_edge": image_size, "longest_edge": image_size}
    GroundingDinoProcessor(GroundingDinoImageProcessorPil(size=size), tokenizer).save_pretrained(folder)


def tokenizer_of(classes: Iterable[str]) -> Any:
    """A BERT tokenizer: letters and digits, of which any word can be spelled, and the words of the classes."""
    from transformers import BertTokenizer

    signs = [chr(code) for code in range(ord("!"), 127) if not chr(code).isupper()]
    vocabulary = [MARKS.get(i, f"[unused{i}]") for i in range(FIRST_SIGN)] + signs
    backend: Any = BertTokenizer({word: i for i, word in enumerate(vocabulary)}).backend_tokenizer
    words = [
        word
        for name in classes
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(phrase(name)))
    ]
    spelled = [sign for sign in signs if sign.isalnum()] + sorted({letter for word in words for letter in word})
    vocabulary += [*(f"##{letter}" for letter in spelled), *spelled, *words]
    return BertTokenizer({word: i for i, word in enumerate(dict.fromkeys(vocabulary))}, model_max_length=LONGEST_PROMPT)


def _say_nothing_is_there(model: Any) -> None:
    """Start a Grounding DINO where an MM-Grounding DINO starts: at logits of the size of 1, and each class unlikely.

    It has neither the scale nor the bias of the other. The norms in front of its products of vision and text can stand
    for both: normed features sum to 0, so that the two constants added here meet only each other.
    """
    with torch.no_grad():
        for norm in (model.enc_output_norm, model.decoder.layer_norm):
            norm.bias.fill_(1.0)
        text = model.encoder.layers[-1].text_enhancer_layer.layer_norm_after
        text.weight.fill_(WIDTH**-0.5)
        text.bias.fill_(torch.logit(torch.tensor(FIRST_PROBABILITY)).item() / WIDTH)
