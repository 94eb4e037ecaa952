"""How well predictions order and scale what was measured."""

from __future__ import annotations

import torch
from torch import Tensor


def ranks(values: Tensor) -> Tensor:
    """Ranks from 0, float64; equal values share the mean of theirs."""
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts + 1) / 2)[inverse]


def spearman(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation, ties averaged."""
    return torch.corrcoef(torch.stack([ranks(a), ranks(b)]))[0, 1].item()


def slope(predicted: Tensor, measured: Tensor) -> float:
    """Least-squares slope of ``measured`` on ``predicted`` through the origin: 1 where predictions are to scale.

    The largest predictions decide it.
    """
    return (predicted @ measured / (predicted @ predicted)).item()


def loglog_slope(predicted: Tensor, measured: Tensor) -> float:
    """Least-squares slope of ``log measured`` on ``log predicted`` where both are positive; all sizes weigh alike."""
    both = (predicted > 0) & (measured > 0)
    x, y = predicted[both].log(), measured[both].log()
    x = x - x.mean()
    return (x @ y / (x @ x)).item()
