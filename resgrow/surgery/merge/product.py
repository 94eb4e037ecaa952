"""Two linear maps in a row as one: arithmetic of convolutions and matrices, in float64. Exact, or a reason why not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

Pair = tuple[int, int]


@dataclass(frozen=True)
class Matrix:
    """``y = weight x + bias``: weight ``(O, I)``, bias ``(O,)`` or None, float64."""

    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, layer: nn.Linear) -> Matrix:
        return cls(layer.weight.double(), None if layer.bias is None else layer.bias.double())

    def layer(self, like: nn.Module) -> nn.Linear:
        """A layer with the dtype, device and requires_grad of ``like``."""
        outputs, inputs = self.weight.shape
        return _filled(nn.Linear(inputs, outputs, self.bias is not None, device="meta"), self, like)


@dataclass(frozen=True)
class Convolution:
    """``conv2d(x, weight, bias, ...)``: weight ``(O, C / groups, kh, kw)``, bias ``(O,)`` or None, float64."""

    weight: Tensor
    bias: Tensor | None
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    @classmethod
    def of(cls, layer: nn.Conv2d) -> Convolution:
        """Of a layer with zero padding given in numbers."""
        bias = None if layer.bias is None else layer.bias.double()
        stride, padding, dilation = (_pair(value) for value in (layer.stride, layer.padding, layer.dilation))
        return cls(layer.weight.double(), bias, stride, padding, dilation, layer.groups)

    def layer(self, like: nn.Module) -> nn.Conv2d:
        """As `Matrix.layer`."""
        outputs, inputs, *kernel = self.weight.shape
        settings = (self.stride, self.padding, self.dilation, self.groups, self.bias is not None)
        empty = nn.Conv2d(inputs * self.groups, outputs, (kernel[0], kernel[1]), *settings, device="meta")
        return _filled(empty, self, like)


Map = Matrix | Convolution


def scaled(first: Map, scale: Tensor, shift: Tensor | None = None) -> Map:
    """``scale first(x) + shift`` per output channel, each ``(O,)``: a norm in evaluation mode, or width gates."""
    weight = first.weight * scale.view(-1, *[1] * (first.weight.dim() - 1))
    bias = None if first.bias is None else first.bias * scale
    if shift is not None:
        bias = shift if bias is None else bias + shift
    return replace(first, weight=weight, bias=bias)


def behind(scale: Tensor, shift: Tensor | None, second: Matrix) -> Matrix:
    """``second(scale x + shift)``, each ``(I,)``: norms and gates that come after a flatten count its columns."""
    bias = second.bias
    if shift is not None:
        more = second.weight @ shift
        bias = more if bias is None else bias + more
    return Matrix(second.weight * scale, bias)


def matrix_after_matrix(first: Matrix, second: Matrix) -> Matrix:
    """``W = W2 W1``, ``b = b2 + W2 b1``."""
    return Matrix(second.weight @ first.weight, _bias(first, second.weight, second))


def convolution_after_convolution(first: Convolution, second: Convolution) -> Convolution | str:
    """The convolution that does what both do one after the other.

    Tap ``t`` of the first and ``j`` of the second read the input at ``s1 s2 p - (p1 + s1 p2) + d1 t + s1 d2 j``: the
    kernels are convolved, strides multiply, and paddings add up to ``p1 + s1 p2``. That is exact where the second does
    not pad; where it does, it pads with zeros what the first would fill with sums over its border and with its bias,
    so then only where the first has one tap and no bias.
    """
    for axis in range(2):
        if second.padding[axis] and first.weight.shape[2 + axis] > 1:
            return "the second pads what the first, with a kernel of several taps, would sum over the border"
    if any(second.padding) and first.bias is not None and first.bias.any():
        return "the second pads with zeros where the first has its bias"
    groups = math.gcd(first.groups, second.groups)
    steps, dilation = _steps(first, second)
    blocks = [_composed(a, b, steps) for a, b in zip(_parts(first, groups), _parts(second, groups), strict=True)]
    return Convolution(
        torch.cat(blocks),
        _bias(first, _dense(second.weight, second.groups).sum((2, 3)), second),
        _pair(a * b for a, b in zip(first.stride, second.stride, strict=True)),
        _pair(p + s * q for p, s, q in zip(first.padding, first.stride, second.padding, strict=True)),
        dilation,
        groups,
    )


def matrix_after_convolution(first: Convolution, second: Matrix, size: Sequence[int]) -> Matrix:
    """``second(flatten(first(x)))`` of images ``(C, H, W)`` of ``size`` as one matrix of the flattened input.

    Each row of ``second`` is a gradient at the convolution's output; its gradient at the input is the merged row.
    """
    outputs = first.weight.shape[0]
    sides = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(
            size[1:], first.padding, first.dilation, first.weight.shape[2:], first.stride, strict=True
        )
    ]
    rows = second.weight.unflatten(1, (outputs, *sides))
    weight = conv2d_input(
        (len(rows), *size), first.weight, rows, first.stride, first.padding, first.dilation, first.groups
    )
    return Matrix(weight.flatten(1), _bias(first, rows.sum((2, 3)), second))


def _bias(first: Map, sums: Tensor, second: Map) -> Tensor | None:
    """``b2 + sums b1``, ``sums`` ``(O, C)`` being what the second adds up of each channel."""
    if first.bias is None:
        return second.bias
    passed = sums @ first.bias
    return passed if second.bias is None else passed + second.bias


def _steps(first: Convolution, second: Convolution) -> tuple[list[tuple[int, int, int]], Pair]:
    """Per axis the distances between taps of the first and of the second in units of the dilation, and the kernel's
    length; and the dilation, the largest that fits all taps."""
    steps, dilations = [], []
    for axis in range(2):
        k1, k2 = first.weight.shape[2 + axis], second.weight.shape[2 + axis]
        near, far = first.dilation[axis], first.stride[axis] * second.dilation[axis]
        unit = math.gcd(near if k1 > 1 else 0, far if k2 > 1 else 0) or 1
        near, far = (near // unit if k1 > 1 else 0), (far // unit if k2 > 1 else 0)
        steps.append((near, far, near * (k1 - 1) + far * (k2 - 1) + 1))
        dilations.append(unit)
    return steps, _pair(dilations)


def _composed(first: Tensor, second: Tensor, steps: Sequence[tuple[int, int, int]]) -> Tensor:
    """Kernels ``(C, I, *k1)`` and ``(O, C, *k2)``, one group each, as one ``(O, I, *k)``."""
    (near_y, far_y, height), (near_x, far_x, width) = steps
    result = first.new_zeros(second.shape[0], first.shape[1], height, width)
    for y1, x1 in _taps(first):
        for y2, x2 in _taps(second):
            place = result[:, :, near_y * y1 + far_y * y2, near_x * x1 + far_x * x2]
            place += second[:, :, y2, x2] @ first[:, :, y1, x1]
    return result


def _taps(kernel: Tensor) -> list[Pair]:
    return [(y, x) for y in range(kernel.shape[2]) for x in range(kernel.shape[3])]


def _parts(layer: Convolution, groups: int) -> list[Tensor]:
    """Dense kernels ``(O / groups, C / groups, kh, kw)`` of ``groups`` of the layer's groups taken together."""
    together = layer.groups // groups
    return [_dense(part, together) for part in layer.weight.chunk(groups)]


def _dense(weight: Tensor, groups: int) -> Tensor:
    """A grouped kernel ``(O, C / groups, kh, kw)`` with its zeros, ``(O, C, kh, kw)``."""
    if groups == 1:
        return weight
    outputs, inputs = weight.shape[0] // groups, weight.shape[1]
    result = weight.new_zeros(weight.shape[0], inputs * groups, *weight.shape[2:])
    for g, part in enumerate(weight.chunk(groups)):
        result[g * outputs : (g + 1) * outputs, g * inputs : (g + 1) * inputs] = part
    return result


def _pair(values: Any) -> Pair:
    first, second = values
    return first, second


def _filled(layer: Any, found: Map, like: Any) -> Any:
    """``layer``, so far without memory, with the numbers of ``found``."""
    for name in ("weight", "bias"):
        value = getattr(found, name)
        if value is not None:
            value = value.to(like.weight.device, like.weight.dtype)
            setattr(layer, name, nn.Parameter(value, like.weight.requires_grad))
    return layer
