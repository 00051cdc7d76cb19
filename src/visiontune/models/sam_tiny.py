"""Small SAMs with random weights, of the real classes, that learn to draw masks from nothing.

The classes' own first weights do not: a vision encoder that starts at 1e-10 tells the decoder nothing, and positions
that are random waves of many periods let no attention find the place that a box names. So layers start as torch starts
them, positions are waves from a quarter to eight periods a side, and the attention between boxes and image starts by
comparing positions. The published models come with learned weights and need none of this.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from visiontune.recipe import ObjectChoices

WIDTH, ENCODER_WIDTH, LAYERS, PATCH = 64, 64, 3, 8
LEAST_PERIODS, MOST_PERIODS = 0.25, 8.0
ALIKE = 2.0  # how strongly attention starts by comparing positions
TOLD = 0.5  # standard deviation of learned embeddings


def build_sam(folder: Path, objects: ObjectChoices, seed: int, *, image_size: int) -> None:
    """Write a small SAM for squares of `image_size` to `folder`, its real processor beside it. The same arguments give
    the same files."""
    from transformers import SamConfig, SamImageProcessorPil, SamModel, SamProcessor

    config = SamConfig(
        vision_config={
            "hidden_size": ENCODER_WIDTH,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "image_size": image_size,
            "patch_size": PATCH,
            "output_channels": WIDTH,
            "window_size": 4,
            "global_attn_indexes": [LAYERS - 1],
            "num_pos_feats": WIDTH // 2,
            "mlp_ratio": 2.0,
            "initializer_range": 0.02,
        },
        prompt_encoder_config={"hidden_size": WIDTH, "image_size": image_size, "patch_size": PATCH},
        mask_decoder_config={
            "hidden_size": WIDTH,
            "mlp_dim": 2 * WIDTH,
            "num_attention_heads": 4,
            "attention_downsample_rate": 2,
            "num_hidden_layers": 2,
            "iou_head_hidden_dim": WIDTH,
        },
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: Any = SamModel(config)
        _start(network)
    network.vision_encoder.neck.layer_norm2.weight.data.fill_(0.5)
    network.save_pretrained(folder)
    padded = {"height": image_size, "width": image_size}
    cells = {"height": 4 * (image_size // PATCH), "width": 4 * (image_size // PATCH)}
    processor = SamImageProcessorPil(
        size={"longest_edge": image_size},
        pad_size=padded,
        mask_size={"longest_edge": cells["height"]},
        mask_pad_size=cells,
    )
    SamProcessor(processor).save_pretrained(folder)


def build_sam2(folder: Path, objects: ObjectChoices, seed: int, *, image_size: int) -> None:
    """The same of SAM 2."""
    from transformers import Sam2Config, Sam2ImageProcessor, Sam2Model, Sam2Processor

    side = image_size
    config = Sam2Config(
        vision_config={
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": 16,
                "num_attention_heads": 1,
                "image_size": [side, side],
                "patch_kernel_size": [5, 5],
                "patch_stride": [2, 2],
                "patch_padding": [2, 2],
                "blocks_per_stage": [1, 2, 2, 1],
                "embed_dim_per_stage": [16, 32, 64, 128],
                "num_attention_heads_per_stage": [1, 2, 4, 8],
                "window_size_per_stage": [8, 4, 4, 4],
                "window_positional_embedding_background_size": [4, 4],
                "global_attention_blocks": [4],
            },
            "backbone_channel_list": [128, 64, 32, 16],
            "backbone_feature_sizes": [[side // 2] * 2, [side // 4] * 2, [side // 8] * 2],
            "fpn_hidden_size": WIDTH,
        },
        prompt_encoder_config={"hidden_size": WIDTH, "image_size": side, "patch_size": PATCH},
        mask_decoder_config={
            "hidden_size": WIDTH,
            "mlp_dim": 2 * WIDTH,
            "num_attention_heads": 4,
            "attention_downsample_rate": 2,
            "num_hidden_layers": 2,
            "iou_head_hidden_dim": WIDTH,
        },
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: Any = Sam2Model(config)
        _start(network)
    network.save_pretrained(folder)
    size = {"height": side, "width": side}
    processor = Sam2ImageProcessor(size=size, mask_size={"height": side // 2, "width": side // 2})
    Sam2Processor(processor).save_pretrained(folder)


@torch.no_grad()
def _start(network: Any) -> None:
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            module.reset_parameters()
        elif isinstance(module, nn.Embedding):
            module.weight.normal_(0, TOLD)
    waves, half = WIDTH // 2, WIDTH // 4
    periods = torch.logspace(math.log10(LEAST_PERIODS), math.log10(MOST_PERIODS), half)
    positions = torch.zeros(2, waves)
    positions[0, :half], positions[1, half:] = periods, periods
    network.shared_image_embedding.positional_embedding.copy_(positions)
    network.prompt_encoder.shared_embedding.positional_embedding.copy_(positions)
    transformer = network.mask_decoder.transformer
    for layer in transformer.layers:
        _compare(layer.cross_attn_token_to_image, half, waves, sided=False)
        _compare(layer.cross_attn_image_to_token, half, waves, sided=True)
        out = layer.cross_attn_image_to_token
        nn.init.orthogonal_(out.v_proj.weight)
        nn.init.orthogonal_(_output(out).weight)
        layer.layer_norm3.weight.fill_(0.5)
        layer.layer_norm4.weight.fill_(0.5)
    own = transformer.layers[0].self_attn
    for projection, gain in ((own.q_proj, 1.5), (own.k_proj, 1.5), (own.v_proj, 1.0), (_output(own), 1.0)):
        nn.init.eye_(projection.weight).mul_(gain)
        projection.bias.zero_()
    _compare(transformer.final_attn_token_to_image, half, waves, sided=False)


def _output(attention: Any) -> Any:
    """The last layer of an attention; the two generations call it differently."""
    layers = dict(attention.named_children())
    return layers.get("out_proj") or layers["o_proj"]


def _compare(attention: Any, half: int, waves: int, *, sided: bool) -> None:
    """Let an attention start by comparing positions along one axis a head: sine with sine and cosine with cosine are
    largest at one place; `sided`, the first two heads compare sine with cosine, which tells the two sides apart."""
    heads = attention.num_attention_heads
    width = attention.internal_dim // heads
    queries, keys = torch.zeros_like(attention.q_proj.weight), torch.zeros_like(attention.k_proj.weight)
    for head in range(heads):
        first = (head % 2) * half
        chosen = torch.linspace(0, half - 1, width // 2).round().long() + first
        for number, wave in enumerate(chosen.tolist()):
            row = head * width + 2 * number
            queries[row, wave] = queries[row + 1, waves + wave] = 1
            if sided and head < 2 * max(1, heads // 4):
                keys[row, waves + wave], keys[row + 1, wave] = 1, -1
            else:
                keys[row, wave] = keys[row + 1, waves + wave] = 1
    for projection, weight in ((attention.q_proj, queries), (attention.k_proj, keys)):
        projection.weight.copy_(ALIKE * weight)
        projection.bias.zero_()
