"""Parameters that are broadcast against samples: each sample gets its own copy, whose gradient is the sample's."""

from __future__ import annotations

import torch
from torch import Tensor

from resgrow.curvature.layout import Layout
from resgrow.curvature.rules.site import Formula, PerSampleFn, Site, channel_sums, tapped, wide
from resgrow.curvature.tapped import Tapped, plain


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
        return channel_sums(slopes, dims)

    return Site(input, _formula(operands, per_sample), (0,))


def tristate_relu(x: Tensor, w: Tensor, d: Tensor) -> Site:
    """``resgrow.ops.tristate_relu`` of ``x (N, C, *)``, whose gradients pass straight through the gates."""
    dims = x.dim()
    width, depth = ((plain(gate) >= 0.5).to(wide(x).dtype) for gate in (w, d))

    def per_sample(role: str, x: Tensor, grad: Tensor) -> Tensor:
        x, grad = wide(x), wide(grad)
        if role == "w":
            return channel_sums(grad * torch.where(x >= 0, x, depth * x), dims)
        below = grad * x.clamp(max=0) * width.view(-1, *(1,) * (dims - 2))
        return below.flatten(1).sum(1)

    return Site(x, _formula(tapped(w=w, d=d), per_sample), (0,), batched=True)


def spread(operand: Tapped, dims: int, layout: Layout, size: int) -> Tensor:
    """A view of the operand with ``dims`` dimensions and ``size`` copies in the dimension of the samples."""
    shape = [1] * (dims - operand.dim()) + list(operand.shape)
    if layout.dim is not None:
        shape[layout.dim] = size
    return operand.plain.expand(shape)


def copies(operand: Tapped, dims: int, layout: Layout) -> Formula:
    """For a tensor of ``dims`` dimensions that holds a copy of ``operand`` for each sample."""
    dim, shape = layout.dim, operand.shape
    single = [1] * (dims - len(shape)) + list(shape)
    if dim is not None:
        del single[dim]

    def per_sample(role: str, x: Tensor, grad: Tensor) -> Tensor:
        grad = wide(grad)
        if dim is not None and grad.dim() > dims:  # several rows of one sample, next to where the sample was
            grad = grad.sum(dim + 1)
        return grad.sum_to_size(grad.shape[0], *single).reshape(-1, *shape)

    return _formula({"value": operand}, per_sample)


def _formula(operands: dict[str, Tapped], per_sample: PerSampleFn) -> Formula:
    """A formula whose per-sample gradients are small enough to be squared as they are."""

    def squares(x: Tensor, grad: Tensor, roles: frozenset[str]) -> dict[str, Tensor]:
        return {role: per_sample(role, x, grad).square().sum(0) for role in roles}

    return Formula(operands, squares, per_sample)
