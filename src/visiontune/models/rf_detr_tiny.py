"""A small RF-DETR of random weights, to try the family on a CPU."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from visiontune.recipe import ObjectChoices

PATCH, WINDOWS = 16, 2
TRAINED_QUERIES = 300  # of all groups together
# Where masks are learned, patches and the pixels of masks are half as wide, or no mask could say where an object ends;
# one group of queries pays for it.
MASK_PATCH, MASK_PIXEL = 8, 2


def patch_of(masks: bool) -> int:
    """Pixels a side of what the network sees as one token, of which a query has one for itself."""
    return MASK_PATCH if masks else PATCH


def places(objects: ObjectChoices, image_size: int) -> int:
    """How many objects a tiny model has places for in an image of `image_size` pixels a side."""
    return objects.queries or min((image_size // patch_of(objects.masks)) ** 2, TRAINED_QUERIES)


def tiny_config(objects: ObjectChoices, image_size: int) -> Any:
    """The RfDetrConfig of a network of about a million weights for images of `image_size` pixels a side."""
    from transformers import RfDetrConfig

    patch, queries = patch_of(objects.masks), places(objects, image_size)
    return RfDetrConfig(
        backbone_config={
            "model_type": "rf_detr_dinov2",
            "image_size": image_size,
            "patch_size": patch,
            "num_windows": WINDOWS,
            "hidden_size": 96,
            "num_hidden_layers": 4,
            "num_attention_heads": 3,
            "out_features": ["stage2", "stage4"],
            "use_mask_token": False,
        },
        d_model=96,
        decoder_layers=3,
        decoder_ffn_dim=256,
        decoder_self_attention_heads=3,
        decoder_cross_attention_heads=6,
        intermediate_size=192,
        num_queries=queries,
        group_detr=1 if objects.masks else max(1, TRAINED_QUERIES // queries),
        mask_downsample_ratio=MASK_PIXEL if objects.masks else 4,
        dropout=0.0,
        id2label=dict(enumerate(objects.classes)),
        label2id={name: place for place, name in enumerate(objects.classes)},
    )


def tiny_network(config: Any, seed: int, *, masks: bool) -> Any:
    """The network with weights that depend on `seed` alone; with `masks` one that draws them."""
    from transformers import RfDetrForInstanceSegmentation, RfDetrForObjectDetection

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: Any = (RfDetrForInstanceSegmentation if masks else RfDetrForObjectDetection)(config)
        _initialise(network.model if masks else network)
        if masks:
            # Of what turns queries to masks the last layer keeps its small weights: masks start undecided.
            for part in (network.blocks, network.spatial_features_proj, network.query_features_block):
                _spread(part.modules())
    return network


@torch.no_grad()
def _initialise(detector: Any) -> None:
    """Draw weights to train from the start. transformers has 0.02 for the deviation of them all, which wide layers that
    were trained before need; narrow ones learn several times faster from those of Glorot and Bengio 2010.

    Content of queries from N(0, 1) and reference points of 0 are those of the original RF-DETR; positions are the sines
    and cosines of Beyer et al. 2022, "Better plain ViT baselines".
    """
    classifiers = [detector.class_embed, *detector.model.enc_out_class_embed]
    embeddings = detector.model.backbone.backbone.embeddings
    kept = {id(module) for module in (*classifiers, embeddings.patch_embeddings.projection)}
    _spread(module for module in detector.modules() if id(module) not in kept)
    torch.nn.init.normal_(detector.model.query_feat.weight)
    torch.nn.init.zeros_(detector.model.reference_point_embed.weight)
    embeddings.position_embeddings[0, 1:] = _positions(*embeddings.position_embeddings.shape[1:])


def _spread(modules: Iterable[torch.nn.Module]) -> None:
    for module in modules:
        # Weights of 0 are meant: boxes start where they are proposed, and are looked at all around.
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and module.weight.any():
            torch.nn.init.xavier_uniform_(module.weight)


def _positions(tokens: int, width: int) -> Tensor:
    """Sines and cosines of the rows and columns of a square of patches, (tokens - 1, width)."""
    side = math.isqrt(tokens - 1)
    places = torch.arange(side).repeat(side), torch.arange(side).repeat_interleave(side)
    speeds = 10000 ** -(torch.arange(width // 4) / (width // 4))
    angles = [place[:, None] * speeds for place in places]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)
