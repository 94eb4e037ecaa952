"""What a rule says about one call of a function."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from resgrow.curvature.tapped import Tapped

SquaresFn = Callable[[Tensor, Tensor, frozenset[str]], dict[str, Tensor]]
PerSampleFn = Callable[[str, Tensor, Tensor], Tensor]


def unchanged(output: Tensor) -> Tensor:
    return output


@dataclass(frozen=True)
class Formula:
    """How to differentiate a call with respect to the parameters that entered it.

    ``squares`` and ``per_sample`` get the input and the gradient at the output with the sample as first dimension.
    Where several of the call's rows belong to one sample (windows of an image, frames of a video) these rows are one
    more dimension, where they were.

    Attributes:
        operands: role ("weight", "bias", ...) -> the tapped tensor in it.
        squares: ``(x, grad, roles) -> {role: sum over samples of squared per-sample gradients}``.
        per_sample: ``(role, x, grad) -> (n, *shape of the operand)``, the gradient of each sample.
        features: number of trailing dimensions, the same in input and output, that are not positions of a sample.
        joins: calls with the same value that use the same parameters count as one call with all their positions.
    """

    operands: dict[str, Tapped]
    squares: SquaresFn
    per_sample: PerSampleFn
    features: int = 1
    joins: Hashable = None


@dataclass(frozen=True)
class Site:
    """One call of a function that parameters entered. Not to be kept: it holds on to the input.

    Attributes:
        x: the input that the formula needs.
        formula: all that is needed besides.
        candidates: the dimensions of ``x`` and of the output that may hold the samples.
        batched: the function's contract is that samples are in dimension 0.
        relink: makes the output's graph cheaper to differentiate.
    """

    x: Tensor
    formula: Formula
    candidates: Sequence[int]
    batched: bool = False
    relink: Callable[[Tensor], Tensor] = unchanged


def tapped(**roles: Tensor | None) -> dict[str, Tapped]:
    """Those of a call's operands that are parameters."""
    return {role: operand for role, operand in roles.items() if isinstance(operand, Tapped)}


def wide(t: Tensor) -> Tensor:
    """At least float32, so that sums over positions keep their digits."""
    return t.float() if t.dtype in (torch.bfloat16, torch.float16) else t


def channel_sums(t: Tensor, dims: int) -> Tensor:
    """``(n, C)``: sums over all but samples and channels of a tensor ``(n, C, *)`` with ``dims`` dimensions.

    Further dimensions, of folded rows, are between samples and channels.
    """
    channel = t.dim() - dims + 1
    return t.movedim(channel, 1).reshape(t.shape[0], t.shape[channel], -1).sum(2)
