"""Precision of a run: autocast, the type of frozen weights, and loss scaling for fp16."""

from contextlib import AbstractContextManager
from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """The context a forward pass runs in: matrix products in the precision, sums and norms in float32."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")


def loss_scaler(device: torch.device, precision: Precision) -> torch.amp.GradScaler:  # pyright: ignore[reportPrivateImportUsage]
    """The scaler that keeps fp16 gradients from vanishing; it does nothing for the other precisions."""
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16", init_scale=2.0**14)  # pyright: ignore[reportPrivateImportUsage]
    scaler.scale(
        torch.zeros((), device=device)
    )  # makes its scale now: a rank may have nothing to scale in the first step
    return scaler
