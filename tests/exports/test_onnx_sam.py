"""Facts about SAM as an image encoder and a mask decoder in ONNX."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

from tests.exports.onnx_models import SIDE, scattered
from visiontune.exports.onnx_graph import write_graphs
from visiontune.exports.onnx_runtime import open_session

CHANNELS = 32


@pytest.fixture(scope="module")
def network() -> Any:
    vision: Any = {"hidden_size": 32, "output_channels": CHANNELS, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": SIDE, "patch_size": 16, "window_size": 2, "global_attn_indexes": [1], "num_pos_feats": 16}
    prompts: Any = {"hidden_size": CHANNELS, "image_size": SIDE, "patch_size": 16}
    decoder: Any = {"hidden_size": CHANNELS, "mlp_dim": 64, "num_attention_heads": 2, "iou_head_hidden_dim": CHANNELS}
    config = SamConfig(
        vision_config=SamVisionConfig(**vision).to_dict(),
        prompt_encoder_config=SamPromptEncoderConfig(**prompts).to_dict(),
        mask_decoder_config=SamMaskDecoderConfig(**decoder).to_dict(),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SamModel(config).eval()
    scattered(network)
    return network


@pytest.fixture(scope="module")
def folder(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sam")
    assert write_graphs("sam", network, SIDE, place) == ["encoder.onnx", "decoder.onnx"]
    return place


@torch.no_grad()
def test_one_encoding_serves_any_number_of_boxes_as_in_torch(network: Any, folder: Path) -> None:
    encoder, decoder = (open_session(folder / name, 1) for name in ("encoder.onnx", "decoder.onnx"))
    random = torch.Generator().manual_seed(0)
    for batch in (1, 2, 5):
        pixels = torch.randn(batch, 3, SIDE, SIDE, generator=random)
        wanted = network.vision_encoder(pixels).last_hidden_state
        (embeddings,) = encoder.run(None, {"pixel_values": pixels.numpy()})
        assert embeddings.shape == (batch, CHANNELS, SIDE // 16, SIDE // 16)
        assert np.abs(embeddings - wanted.numpy()).max() < 1e-4
    for count in (1, 2, 7):
        low = torch.rand(1, count, 2, generator=random) * SIDE / 2
        boxes = torch.cat([low, low + 4 + torch.rand(1, count, 2, generator=random) * SIDE / 2], dim=2)
        drawn = network(image_embeddings=wanted[:1], input_boxes=boxes, multimask_output=False)
        masks, scores = decoder.run(None, {"embeddings": wanted[:1].numpy(), "boxes": boxes.numpy()})
        assert masks.shape == (1, count, SIDE // 4, SIDE // 4) and scores.shape == (1, count)
        assert np.abs(masks - drawn.pred_masks[:, :, 0].numpy()).max() < 1e-4
        assert np.abs(scores - drawn.iou_scores[:, :, 0].numpy()).max() < 1e-4
