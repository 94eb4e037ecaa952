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
        scores: one tensor or a sequence of tensors of any shapes and strides; float32, float64 or bfloat16, on CUDA
            also float16, all of one dtype and on one device. Infinities are ordinary values and -0.0 equals 0.0.
        k: rank, 1-based; ``1 <= k <=`` number of scores.

    Returns:
        0-dim tensor of the scores' dtype; the same bits for every number of threads. Not differentiable: the
        result does not require grad. A zero is returned as 0.0.

    Raises:
        ValueError: no tensor given, k out of range, tensors on several devices, or a NaN among the scores. On CUDA
            the host waits for the result to know that. While a CUDA graph is captured it cannot: there, and when
            the graph is replayed, scores with NaN have the threshold NaN.
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
        ValueError: no tensor given, k out of range, tensors on several devices, or a NaN among the scores; nothing
            is returned then. On CUDA the host waits for the result to know that. While a CUDA graph is captured it
            cannot: there, and when the graph is replayed, all scores stay if any is NaN.
        TypeError: scores are not tensors, their dtype is another or mixed, or k is not an integer.
    """
    return torch.ops.resgrow.select_mask(*_arguments("select_mask", scores, k))


def select_mask_obd(
    weights: Tensor | Sequence[Tensor], curvatures: Tensor | Sequence[Tensor], damping: float, k: int
) -> list[Tensor]:
    """:func:`select_mask` of the scores of damped Optimal Brain Damage, ``1/2 (max(h, 0) + damping) w^2``.

    On CUDA the scores are computed in registers wherever they are looked at, and never written to memory.

    Args:
        weights: ``w``, as the scores of :func:`select_threshold`.
        curvatures: ``h``, diagonal curvature; one tensor per weight, of its shape, dtype and device.
        damping: added to all curvature, in its unit; finite and at least 0. (``resgrow.saliency``'s is relative to
            the mean.)
        k: how many weights go; ``0 <= k <=`` number of weights.

    Returns:
        As :func:`select_mask`. Scores of float64 are in float64, all others in float32.

    Raises:
        ValueError: as :func:`select_mask`; weights and curvatures that do not fit together; a negative damping.
        TypeError: as :func:`select_mask`, or damping is not a number.
    """
    weighted, k = _arguments("select_mask_obd", weights, k, "weights")
    curved, _ = _arguments("select_mask_obd", curvatures, k, "curvatures")
    try:
        damping = float(damping)
    except (TypeError, ValueError):
        raise TypeError(f"select_mask_obd: damping must be a number (got {damping!r})") from None
    return torch.ops.resgrow.select_mask_obd(weighted, curved, damping, k)


def _arguments(op: str, given: Tensor | Sequence[Tensor], k: int, name: str = "scores") -> tuple[list[Tensor], int]:
    """What the dispatcher cannot say clearly itself; all other checks are the native code's."""
    tensors = [given] if isinstance(given, Tensor) else list(given)
    for i, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor or a sequence of tensors (got {type(tensor)} at {i})")
    if not tensors:
        raise ValueError(f"{op}: {name} must hold at least one tensor (got an empty sequence)")
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


@torch.library.register_fake("resgrow::select_mask_obd")
def _(weights: list[Tensor], curvatures: list[Tensor], damping: float, k: int) -> list[Tensor]:
    return [torch.empty(w.shape, dtype=torch.bool, device=w.device) for w in weights]
