"""Convolutions and transposed convolutions in one to three dimensions.

A transposed convolution is the map from output gradients to input gradients of a convolution: its weight gradient is
that convolution's, with input and output gradient in each other's place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from resgrow import ops
from resgrow.curvature.rules.site import Formula, Site, channel_sums, tapped, wide

Sizes = int | Sequence[int]


def conv(
    dims: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: str | Sizes = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Site | None:
    """``F.conv1d``, ``F.conv2d`` and ``F.conv3d`` of ``input (N, C, *)``; inputs without a batch have no rule."""
    kernel = tuple(weight.shape[2:])
    steps = _sizes(dilation, dims)
    pads = _pads(padding, [d * (k - 1) for d, k in zip(steps, kernel, strict=True)])
    geometry = _Geometry(tuple(weight.shape), _sizes(stride, dims), pads, steps, groups)
    return _site(geometry, input, weight, bias)


def conv_transpose(
    dims: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
) -> Site | None:
    """``F.conv_transpose1d``, ``2d`` and ``3d`` of ``input (N, C, *)``."""
    steps, pads = _sizes(stride, dims), _sizes(padding, dims)
    # An output that is longer by a stride or more would make room for further positions of the convolution.
    spare = [extra if extra >= step else 0 for extra, step in zip(_sizes(output_padding, dims), steps, strict=True)]
    both = tuple((pad, pad - extra) for pad, extra in zip(pads, spare, strict=True))
    geometry = _Geometry(tuple(weight.shape), steps, both, _sizes(dilation, dims), groups, transposed=True)
    return _site(geometry, input, weight, bias)


@dataclass(frozen=True)
class _Geometry:
    """A convolution's weight ``(O, C / groups, *kernel)`` and settings, one entry per spatial dimension."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool = False

    @property
    def dims(self) -> int:
        return len(self.stride)

    def ends(self, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """Input and output gradient of the convolution, and the padding that is left to it."""
        x, grad = (grad, x) if self.transposed else (x, grad)
        if all(before == after for before, after in self.pads):
            return x, grad, tuple(before for before, _ in self.pads)
        return F.pad(x, [width for pair in reversed(self.pads) for width in pair]), grad, (0,) * self.dims


def _site(geometry: _Geometry, x: Tensor, weight: Tensor, bias: Tensor | None) -> Site | None:
    if x.dim() != geometry.dims + 2:
        return None
    operands = tapped(weight=weight, bias=bias)
    formula = Formula(operands, partial(_squares, geometry), partial(_per_sample, geometry))
    return Site(x, formula, (0,), batched=True)


def _squares(geometry: _Geometry, x: Tensor, grad: Tensor, roles: frozenset[str]) -> dict[str, Tensor]:
    found = {}
    if "bias" in roles:
        found["bias"] = ops.squared_grad_bias(grad, grad.dim() - geometry.dims - 1)
    if "weight" in roles:
        found["weight"] = _squared_weight(geometry, x, grad)
    return found


def _squared_weight(geometry: _Geometry, x: Tensor, grad: Tensor) -> Tensor:
    if geometry.dims == 3 or x.dim() > geometry.dims + 2:
        total = torch.zeros(geometry.shape, dtype=wide(grad).dtype, device=grad.device)
        for n in range(x.shape[0]):
            total.add_(_gradient(geometry, x[n : n + 1], grad[n : n + 1]).square_())
        return total
    x, grad, padding = geometry.ends(x, grad)
    if geometry.dims == 2:
        return ops.squared_grad_conv2d(
            x, grad, geometry.shape[2:], geometry.stride, padding, geometry.dilation, geometry.groups
        )
    kernel, stride, padding, dilation = ((rest, *last) for rest, last in (
        (1, geometry.shape[2:]), (1, geometry.stride), (0, padding), (1, geometry.dilation)
    ))  # fmt: skip
    x, grad = x.unsqueeze(2), grad.unsqueeze(2)
    return ops.squared_grad_conv2d(x, grad, kernel, stride, padding, dilation, geometry.groups).squeeze(2)


def _per_sample(geometry: _Geometry, role: str, x: Tensor, grad: Tensor) -> Tensor:
    if role == "bias":
        return channel_sums(wide(grad), geometry.dims + 2)
    return torch.stack([_gradient(geometry, x[n : n + 1], grad[n : n + 1]) for n in range(x.shape[0])])


def _gradient(geometry: _Geometry, x: Tensor, grad: Tensor) -> Tensor:
    """The weight gradient of one sample, ``x (1, *, C, *)``."""
    x, grad = (wide(t).flatten(0, t.dim() - geometry.dims - 2) for t in (x, grad))
    x, grad, padding = geometry.ends(x, grad)
    return torch.ops.aten.convolution_backward(
        grad,
        x,
        x.new_empty(1).expand(geometry.shape),  # only its shape matters
        None,
        geometry.stride,
        padding,
        geometry.dilation,
        False,
        (0,) * geometry.dims,
        geometry.groups,
        (False, True, False),
    )[1]


def _sizes(value: Sizes, dims: int) -> tuple[int, ...]:
    sizes = (value,) if isinstance(value, int) else tuple(value)
    return sizes * dims if len(sizes) == 1 else sizes


def _pads(padding: str | Sizes, reach: list[int]) -> tuple[tuple[int, int], ...]:
    """Zeros before and after each dimension; of an odd number "same" padding puts the last one after."""
    if padding == "same":
        return tuple((total // 2, total - total // 2) for total in reach)
    return tuple((pad, pad) for pad in _sizes(0 if isinstance(padding, str) else padding, len(reach)))
