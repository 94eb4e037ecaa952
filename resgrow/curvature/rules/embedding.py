"""Rows of a table by index."""

from __future__ import annotations

import torch
from torch import Tensor

from resgrow.curvature.rules.site import Formula, Site, tapped, wide


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Site | None:
    """``F.embedding`` of indices ``(*)`` into ``weight (V, E)``.

    Scaling by frequency counts over the whole batch, and ``max_norm`` changes the table: no rule.
    """
    operands = tapped(weight=weight)
    if not operands or max_norm is not None or scale_grad_by_freq:
        return None
    table = _Table(weight.shape[0], None if padding_idx is None else padding_idx % weight.shape[0])
    formula = Formula(
        operands,
        lambda x, grad, roles: {"weight": table.squares(x, grad)},
        lambda role, x, grad: table.per_sample(x, grad),
    )
    return Site(input, formula, range(input.dim()))


class _Table:
    """A table of ``rows`` rows of which row ``padding`` has no gradient."""

    def __init__(self, rows: int, padding: int | None) -> None:
        self.rows, self.padding = rows, padding

    def squares(self, index: Tensor, grad: Tensor) -> Tensor:
        """Gradients of the same row in the same sample are added before they are squared."""
        keys, grad = self._keys(index, grad)
        keys, place = keys.unique(return_inverse=True)
        sums = grad.new_zeros((len(keys), grad.shape[1])).index_add_(0, place, grad)
        return grad.new_zeros((self.rows, grad.shape[1])).index_add_(0, keys % self.rows, sums.square_())

    def per_sample(self, index: Tensor, grad: Tensor) -> Tensor:
        keys, flat = self._keys(index, grad)
        samples, width = index.shape[0], flat.shape[1]
        return flat.new_zeros((samples * self.rows, width)).index_add_(0, keys, flat).view(samples, self.rows, width)

    def _keys(self, index: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """``sample * rows + row`` of every lookup, and its gradient ``(lookups, E)``."""
        rows = index.reshape(index.shape[0], -1).long()
        samples = torch.arange(index.shape[0], device=index.device)[:, None].expand_as(rows)
        keys, grad = (samples * self.rows + rows).reshape(-1), wide(grad).reshape(rows.numel(), -1)
        if self.padding is None:
            return keys, grad
        kept = (rows != self.padding).reshape(-1)
        return keys[kept], grad[kept]
