"""Attention whose heads surgery has changed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class NarrowAttention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` whose heads need not fill the embedding exactly: ``num_heads * head_dim`` is free.

    torch's own computes the size of a head from the embedding. Surgery turns a layer into this one in place when it
    takes heads out of it or adds some; it is not made by itself. Arguments and results are those of the parent's
    ``forward``; the parameters have its names, with fewer or more rows (``out_proj``: columns).
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")  # as the parent does
        batched = query.dim() == 3
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._heads(query, key, value)
        mask = _mask(attn_mask, key_padding_mask, q, k)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) / self.head_dim**0.5
            weights = (scores if mask is None else scores + mask).softmax(-1)
            weights = F.dropout(weights, dropout) if dropout else weights
            heads = weights @ v
        else:
            heads = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        out = self.out_proj(heads.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), weights

    def _heads(self, *inputs: Tensor) -> list[Tensor]:
        """Queries, keys and values, each ``(N, heads, L, head_dim)``."""
        packed: Tensor | None = self.in_proj_weight
        weights = [self.q_proj_weight, self.k_proj_weight, self.v_proj_weight] if packed is None else packed.chunk(3)
        biases = [None] * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        projected = [F.linear(x, weight, bias) for x, weight, bias in zip(inputs, weights, biases, strict=True)]
        return [x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for x in projected]


def _mask(attn_mask: Tensor | None, padding: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """Both masks as what is added to the scores ``(N, heads, L, S)``."""
    total = None
    if attn_mask is not None:
        shape = (len(q), -1, *attn_mask.shape[-2:]) if attn_mask.dim() == 3 else (1, 1, *attn_mask.shape)
        total = _added(attn_mask, q.dtype).view(shape)
    if padding is not None:
        other = _added(padding, q.dtype).view(len(q), 1, 1, k.shape[-2])
        total = other if total is None else total + other
    return total


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -torch.inf)
