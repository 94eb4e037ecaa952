"""Rules of layers that multiply by a weight: ``d_x = (W^2)^T d_y``, ``h_W = sum d_y x^2``, ``h_b = sum d_y``.

LeCun, Denker & Solla (1990), eq. 8 and 9; for shared weights the terms between positions are dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from resgrow import ops
from resgrow.curvature.lecun.tape import Call, Rule, Tape, is_parameter

Ints = Sequence[int]


class _Linear(Rule):
    @staticmethod
    def forward(ctx: Any, tape: Tape, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.tape = tape
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (d,) = grads
        x, weight = ctx.saved_tensors
        _, needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        if ctx.tape.gradient_pass:
            return None, d @ weight, None, None
        return (
            None,
            d @ weight.square() if needs_x else None,
            ops.squared_input_grad_linear(x, d) if needs_weight else None,
            d.flatten(0, -2).sum(0) if needs_bias else None,
        )


def linear(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if x.dim() == 1:
        return _Linear.apply(call.tape, x[None], weight, bias)[0]
    return _Linear.apply(call.tape, x, weight, bias)


def matmul(call: Call, x: Tensor, weight: Tensor) -> Tensor:
    """``x @ W`` with a matrix that is a parameter or a constant."""
    if weight.dim() != 2 or (weight.requires_grad and not is_parameter(weight)):
        call.refuse("only products with a matrix that is a parameter or a constant have one")
    return linear(call, x, weight.mT)


def addmm(call: Call, bias: Tensor, x: Tensor, weight: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    if beta != 1 or alpha != 1:
        call.refuse("only beta = alpha = 1 have one")
    return bias + matmul(call, x, weight)


class _Conv(Rule):
    @staticmethod
    def forward(ctx: Any, tape: Tape, x: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any) -> Tensor:
        ctx.tape, ctx.settings = tape, settings
        ctx.save_for_backward(x, weight)
        return torch.convolution(x, weight, bias, *settings)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (d,) = grads
        x, weight = ctx.saved_tensors
        _, needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        d_x = h_weight = h_bias = None
        if needs_x:
            power = weight if ctx.tape.gradient_pass else weight.square()
            d_x = _gradient(d, x, power, ctx.settings, 0)
        if needs_weight and not ctx.tape.gradient_pass:
            h_weight = _weight_moment(x, d, weight, ctx.settings)
        if needs_bias and not ctx.tape.gradient_pass:
            h_bias = d.sum([0, *range(2, d.dim())])
        return None, d_x, h_weight, h_bias, *(None for _ in ctx.settings)


def _gradient(d: Tensor, x: Tensor, weight: Tensor, settings: tuple[Any, ...], which: int) -> Tensor:
    mask = [i == which for i in range(3)]
    return torch.ops.aten.convolution_backward(d, x, weight, None, *settings, mask)[which]


def _weight_moment(x: Tensor, d: Tensor, weight: Tensor, settings: tuple[Any, ...]) -> Tensor:
    """``sum d x^2`` over all positions that share a weight."""
    stride, padding, dilation, transposed, _, groups = settings
    if transposed or weight.dim() == 5:
        return _gradient(d, x.square(), weight, settings, 1)
    if weight.dim() == 3:  # of height one
        x, d = x.unsqueeze(2), d.unsqueeze(2)
        stride, padding, dilation = (1, *stride), (0, *padding), (1, *dilation)
    kernel = (1, *weight.shape[2:])[-2:]
    return ops.squared_input_grad_conv2d(x, d, kernel, stride, padding, dilation, groups).view(weight.shape)


def _convolution(
    call: Call,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | Ints,
    padding: int | Ints,
    dilation: int | Ints,
    groups: int,
    output_padding: int | Ints | None = None,
) -> Tensor:
    spatial = weight.dim() - 2
    single = x.dim() == spatial + 1
    settings = (
        _several(stride, spatial),
        _several(padding, spatial),
        _several(dilation, spatial),
        output_padding is not None,
        _several(output_padding or 0, spatial),
        groups,
    )
    output = _Conv.apply(call.tape, x[None] if single else x, weight, bias, *settings)
    return output[0] if single else output


def conv(
    call: Call,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Ints = 1,
    padding: int | str | Ints = 0,
    dilation: int | Ints = 1,
    groups: int = 1,
) -> Tensor:
    if isinstance(padding, str):
        spatial = weight.dim() - 2
        each = [0] * spatial if padding == "valid" else _same(weight.shape[2:], _several(dilation, spatial))
        # Where both sides cannot get the same, the far side gets one more, as in torch.
        x = F.pad(x, [side for total in reversed(each) for side in (0, total % 2)])
        padding = [total // 2 for total in each]
    return _convolution(call, x, weight, bias, stride, padding, dilation, groups)


def conv_transpose(
    call: Call,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Ints = 1,
    padding: int | Ints = 0,
    output_padding: int | Ints = 0,
    groups: int = 1,
    dilation: int | Ints = 1,
) -> Tensor:
    return _convolution(call, x, weight, bias, stride, padding, dilation, groups, output_padding)


def embedding(
    call: Call,
    indices: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """Rows are copied, so autograd's own sum per index is the rule; as in training, none for ``padding_idx``."""
    if max_norm is not None or scale_grad_by_freq:
        call.refuse("it has one without max_norm and scale_grad_by_freq")
    return F.embedding(indices, weight, padding_idx)


def _same(kernel: Ints, dilation: Ints) -> list[int]:
    return [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]


def _several(value: int | Ints, count: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values
