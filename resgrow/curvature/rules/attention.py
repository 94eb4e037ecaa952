"""Multi-head attention, taken apart into linear layers that have rules of their own."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> Any:
    """``F.multi_head_attention_forward`` of ``query (L, N, E)``, ``key`` and ``value (S, N, *)``.

    ``NotImplemented`` for inputs without a batch, dropout, static or additional keys and values.
    """
    unusual = (bias_k, bias_v, static_k, static_v)
    if query.dim() != 3 or add_zero_attn or (training and dropout_p > 0) or any(t is not None for t in unusual):
        return NotImplemented
    weights = (q_proj_weight, k_proj_weight, v_proj_weight) if use_separate_proj_weight else None
    q, k, v = (_heads(t, num_heads) for t in _projections(query, key, value, in_proj_weight, weights, in_proj_bias))
    mask = _mask(q, k, attn_mask, key_padding_mask, need_weights or not is_causal)
    shares = None
    if need_weights:
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        shares = (scores if mask is None else scores + mask).softmax(-1)
        context = shares @ v
        shares = shares.mean(1) if average_attn_weights else shares
    else:
        causal = is_causal and key_padding_mask is None
        context = F.scaled_dot_product_attention(q, k, v, None if causal else mask, is_causal=causal)
    # (N, heads, L, E / heads) -> (L, N, E)
    return F.linear(context.permute(2, 0, 1, 3).flatten(2), out_proj_weight, out_proj_bias), shares


def _projections(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packed: Tensor | None,
    separate: tuple[Tensor | None, ...] | None,
    bias: Tensor | None,
) -> tuple[Tensor, ...]:
    """Queries ``(L, N, E)``, keys and values ``(S, N, E)``."""
    if separate is None and query is key and key is value:
        assert packed is not None
        return F.linear(query, packed, bias).chunk(3, dim=-1)
    if separate is None:
        assert packed is not None
        separate = packed.chunk(3)
    biases = (None, None, None) if bias is None else bias.chunk(3)
    # A function of fixed parameters alone would not be seen as linear.
    return tuple(F.linear(t, w, b) for t, w, b in zip((query, key, value), separate, biases, strict=True))  # type: ignore[arg-type]


def _heads(t: Tensor, heads: int) -> Tensor:
    """``(L, N, E)`` -> ``(N, heads, L, E / heads)``."""
    return t.unflatten(2, (heads, -1)).permute(1, 2, 0, 3)


def _mask(
    q: Tensor, k: Tensor, attn_mask: Tensor | None, key_padding_mask: Tensor | None, needed: bool
) -> Tensor | None:
    """What is added to the scores ``(N, heads, L, S)``, or None."""
    found = None
    if attn_mask is not None and (needed or key_padding_mask is not None):
        mask = _additive(attn_mask, q.dtype)
        found = mask if mask.dim() == 2 else mask.unflatten(0, (q.shape[0], q.shape[1]))
    if key_padding_mask is not None:
        hidden = _additive(key_padding_mask, q.dtype)[:, None, None, :]
        found = hidden if found is None else found + hidden
    return found


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Boolean masks hide what is True."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))
