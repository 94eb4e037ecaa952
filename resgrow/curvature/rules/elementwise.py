"""Parameters that are broadcast against samples: each sample gets its own copy, whose gradient is the sample's."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from resgrow.curvature.layout import Layout
from resgrow.curvature.rules.site import PerSampleFn, Site, tapped, wide
from resgrow.curvature.tapped import Tapped


def prelu(input: Tensor, weight: Tensor) -> Site | None:
    """``F.prelu`` of ``input (N, C, *)`` with one slope for all channels or one each."""
    operands = tapped(weight=weight)
    if not operands or input.dim() < 2:
        return None
    dims, channels = input.dim(), weight.numel()

    def per_sample(role: str, x: Tensor, grad: Tensor) -> Tensor:
        slopes = wide(grad) * wide(x).clamp(max=0)
        if channels == 1:
            return slopes.flatten(1).sum(1).view(-1, *weight.shape)
        channel = slopes.dim() - dims + 1
        return slopes.sum([d for d in range(1, slopes.dim()) if d != channel])

    return _site(input, operands, (0,), per_sample)


def spread(operand: Tapped, dims: int, layout: Layout, size: int) -> Tensor:
    """A view of the operand with ``dims`` dimensions and ``size`` copies in the dimension of the samples."""
    shape = [1] * (dims - operand.dim()) + list(operand.shape)
    if layout.dim is not None:
        shape[layout.dim] = size
    return operand.plain.expand(shape)


def copies(operand: Tapped, copy: Tensor, layout: Layout, candidates: Sequence[int]) -> Site:
    """The site of a tensor that holds a copy of ``operand`` for each sample."""
    dims, dim, shape = copy.dim(), layout.dim, operand.shape
    single = [1] * (dims - len(shape)) + list(shape)
    if dim is not None:
        del single[dim]

    def per_sample(role: str, x: Tensor, grad: Tensor) -> Tensor:
        grad = wide(grad)
        if dim is not None and grad.dim() > dims:  # several rows of one sample, next to where the sample was
            grad = grad.sum(dim + 1)
        return grad.sum_to_size(grad.shape[0], *single).reshape(-1, *shape)

    return _site(copy, {"value": operand}, candidates, per_sample)


def _site(x: Tensor, operands: dict[str, Tapped], candidates: Sequence[int], per_sample: PerSampleFn) -> Site:
    """A site whose per-sample gradients are small enough to be squared one by one."""

    def squares(x: Tensor, grad: Tensor, roles: frozenset[str]) -> dict[str, Tensor]:
        return {role: per_sample(role, x, grad).square().sum(0) for role in roles}

    return Site(x, operands, candidates, squares, per_sample)
