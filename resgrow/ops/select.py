"""Thresholds and masks by exact rank over many tensors at once: the native family ``select``."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from resgrow import _load  # noqa: F401  (registers torch.ops.resgrow)


def select_threshold(scores: Tensor | Sequence[Tensor], k: int) -> Tensor:
    """The ``k``-th smallest of all scores, as ``torch.cat([s.flatten() for s in scores]).kthvalue(k).values``.

    Args:
        scores: one tensor or a sequence of tensors of any shapes and strides; float32, float64 or bfloat16, all of
            one dtype. Infinities are ordinary values and -0.0 equals 0.0.
        k: rank, 1-based; ``1 <= k <=`` number of scores.

    Returns:
        0-dim tensor of the scores' dtype; the same bits for every number of threads. Not differentiable: the
        result does not require grad. A zero is returned as 0.0.

    Raises:
        ValueError: no tensor given, k out of range, or a NaN among the scores.
        TypeError: scores are not tensors, their dtype is another or mixed, or k is not an integer.
    """
    return torch.ops.resgrow.select_threshold(*_arguments("select_threshold", scores, k))


def select_mask(scores: Tensor | Sequence[Tensor], k: int) -> list[Tensor]:
    """Which scores stay when the ``k`` smallest of all go.

    Args:
        scores: as for :func:`select_threshold`.
        k: how many go; ``0 <= k <=`` number of scores.

    Returns:
        One contiguous bool tensor per tensor of scores, of its shape: False at exactly the k smallest scores. Ties
        go in order of position, earlier tensors first and row-major within one, whatever the strides and the number
        of threads. Not differentiable.

    Raises:
        ValueError: no tensor given, k out of range, or a NaN among the scores; nothing is returned then.
        TypeError: scores are not tensors, their dtype is another or mixed, or k is not an integer.
    """
    return torch.ops.resgrow.select_mask(*_arguments("select_mask", scores, k))


def _arguments(op: str, scores: Tensor | Sequence[Tensor], k: int) -> tuple[list[Tensor], int]:
    """What the dispatcher cannot say clearly itself; all other checks are the native code's."""
    tensors = [scores] if isinstance(scores, Tensor) else list(scores)
    for i, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: scores must be a tensor or a sequence of tensors (got {type(tensor)} at {i})")
    if not tensors:
        raise ValueError(f"{op}: scores must hold at least one tensor (got an empty sequence)")
    try:
        k = operator.index(k)
    except TypeError:
        raise TypeError(f"{op}: k must be an integer (got {k!r}); round it first") from None
    return [tensor.detach() for tensor in tensors], k


@torch.library.register_fake("resgrow::select_threshold")
def _(scores: list[Tensor], k: int) -> Tensor:
    return scores[0].new_empty(())


@torch.library.register_fake("resgrow::select_mask")
def _(scores: list[Tensor], k: int) -> list[Tensor]:
    return [torch.empty(s.shape, dtype=torch.bool, device=s.device) for s in scores]
