"""Sums over blocks of a weight: the arithmetic that scores and units share."""

import torch
from torch import Tensor


def block_sums(x: Tensor, block: tuple[int, int]) -> Tensor:
    """Sums over blocks of ``bo`` output by ``bi`` input channels of one kernel tap, ragged at the upper edges.

    Args:
        x: ``(O, I, *k)``.
        block: ``(bo, bi)``, both >= 1.

    Returns:
        ``(ceil(O / bo), ceil(I / bi), *k)`` in float32 (float64 for float64); ``x`` itself where both are 1.
    """
    x = x if x.dtype == torch.float64 else x.float()
    for dim, size in enumerate(block):
        if size == 1:
            continue
        missing = -x.shape[dim] % size
        if missing:
            shape = list(x.shape)
            shape[dim] = missing
            x = torch.cat([x, x.new_zeros(shape)], dim)
        x = x.unflatten(dim, (-1, size)).sum(dim + 1)
    return x
