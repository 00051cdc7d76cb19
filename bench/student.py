"""How much faster the student that is shipped is than the teacher: RF-DETR Nano by ONNX beside Grounding DINO.

Shapes of the published models, random weights: RF-DETR Nano at 384 x 384 pixels through onnxruntime, Grounding DINO
with Swin-T at 800 x 1066 pixels and five classes through torch. One picture at a time, both on the same threads.

    python bench/student.py [--threads 2] [--runs 5]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visiontune.exports.onnx_graph import MODEL, write_graphs
from visiontune.exports.onnx_runtime import open_session

NANO = {"side": 384, "patch": 16, "layers": 12, "windows": 2, "decoder_layers": 2}
TEACHER_SIZE = (800, 1066)
PROMPT_TOKENS = 13  # five classes of one word each, the points between them and both ends


def student() -> Any:
    """RF-DETR Nano's shape, random weights."""
    from transformers import RfDetrConfig, RfDetrForObjectDetection

    backbone = {
        "model_type": "rf_detr_dinov2",
        "image_size": NANO["side"],
        "patch_size": NANO["patch"],
        "num_windows": NANO["windows"],
        "hidden_size": 384,
        "num_hidden_layers": NANO["layers"],
        "num_attention_heads": 6,
        "out_features": ["stage3", "stage6", "stage9", "stage12"],
        "window_block_indexes": [0, 1, 3, 4, 6, 7, 9, 10],
        "use_mask_token": False,
    }
    return RfDetrForObjectDetection(
        RfDetrConfig(backbone_config=backbone, decoder_layers=NANO["decoder_layers"])
    ).eval()


def teacher() -> Any:
    """Grounding DINO with Swin-T, random weights."""
    from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection

    return GroundingDinoForObjectDetection(GroundingDinoConfig(disable_custom_kernels=True)).eval()


def seconds(run: Callable[[], Any], runs: int) -> list[float]:
    """Seconds of each run, after one that does not count."""
    run()
    taken = []
    for _ in range(runs):
        started = time.perf_counter()
        run()
        taken.append(time.perf_counter() - started)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        small = student()
        write_graphs("rf_detr", small, NANO["side"], Path(folder))
        session = open_session(Path(folder) / MODEL, arguments.threads)
        picture = np.random.default_rng(0).normal(size=(1, 3, NANO["side"], NANO["side"])).astype(np.float32)
        fast = seconds(lambda: session.run(None, {"pixel_values": picture}), 4 * arguments.runs)
        plain = seconds(lambda: small(pixel_values=torch.from_numpy(picture)), arguments.runs)
        large = teacher()
        ids = torch.tensor([[101, *range(2000, 2000 + PROMPT_TOKENS - 2), 102]])
        ids[0, 2:-1:2] = 1012  # the points
        inputs = {"pixel_values": torch.randn(1, 3, *TEACHER_SIZE), "input_ids": ids}
        inputs |= {"attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
        slow = seconds(lambda: large(**inputs), arguments.runs)
    mine, torch_mine, its = (statistics.median(taken) for taken in (fast, plain, slow))
    count = [sum(p.numel() for p in model.parameters()) / 1e6 for model in (small, large)]
    print(f"RF-DETR Nano, {count[0]:.1f} M parameters: ONNX {1000 * mine:.0f} ms, torch {1000 * torch_mine:.0f}")
    print(f"Grounding DINO, {count[1]:.1f} M parameters, torch: {1000 * its:.0f} ms a picture")
    print(f"{its / mine:.0f} times faster on {arguments.threads} threads")


if __name__ == "__main__":
    main()
