"""Attention among the tokens of one sample where several stand in a row: no mask, and no work between samples.

A mask that keeps samples apart costs the whole row squared; here each sample is attended to alone. The samples' bounds
travel as the attention mask, in a form that transformers hands through as it is.
"""

from typing import Any

import torch

NAME = "visiontune_segments"


def bounds(lengths: torch.Tensor) -> torch.Tensor:
    """Where the samples of a row begin and the last one ends, from their lengths (samples,): (1, 1, 1, samples + 1)
    int64, on the CPU, in the place of an attention mask."""
    return torch.nn.functional.pad(lengths.cpu().cumsum(0), (1, 0))[None, None, None]


def attend_within(text_config: Any) -> None:
    """Let the layers of a text model with this config attend within `bounds`; other masks keep their meaning."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    text_config._attn_implementation = NAME


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **given: Any,
) -> tuple[torch.Tensor, None]:
    """query (1, heads, length, width), key and value with as many or fewer heads: (1, length, heads, width)."""
    if attention_mask is None or attention_mask.dtype != torch.int64:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **given
        )
    grouped = query.shape[1] != key.shape[1]
    lengths = attention_mask.flatten().diff().tolist()
    parts = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
    attended = [
        torch.nn.functional.scaled_dot_product_attention(
            *part, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=grouped
        )
        for part in parts
    ]
    return torch.cat(attended, dim=2).transpose(1, 2).contiguous(), None
