"""Cross-entropy of supervised tokens without a tensor of all logits.

A vocabulary of 150,000 tokens makes the logits of a batch the largest tensor of its step, several times over: as they
come, in float32, and as their gradient. Here they exist for some tokens at a time, and are made again for the backward.
"""

from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint

LOGITS_AT_ONCE = 2**26  # numbers: 256 MB in float32

Head = Callable[[torch.Tensor], torch.Tensor]


def token_losses(
    head: Head, hidden: torch.Tensor, targets: torch.Tensor, vocabulary: int, at_once: int = LOGITS_AT_ONCE
) -> torch.Tensor:
    """The cross-entropy of each token, (tokens,) float32.

    head: from (n, width) to logits (n, vocabulary). hidden: (tokens, width), what predicts each token. targets:
    (tokens,) int64. at_once: how many logits may exist at a time; where all fit, nothing is computed twice.
    """
    rows = max(1, at_once // vocabulary)
    if len(targets) <= rows:
        return _losses(head, hidden, targets)
    pieces = zip(hidden.split(rows), targets.split(rows), strict=True)
    return torch.cat([checkpoint(_losses, head, *piece, use_reentrant=False) for piece in pieces])


def _losses(head: Head, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(head(hidden).float(), targets, reduction="none")
