"""Rules of normalisation layers in eval mode.

With statistics that are constants: ``d_x = (gamma / sigma)^2 d``, ``h_gamma = sum d xhat^2``, ``h_beta = sum d``.

With statistics of the sample itself (layer, group, instance and RMS norm) every output depends on all ``n`` inputs
of its group, ``dy_j/dx_i = gamma_j / sigma (1[i=j] - (1 + xhat_i xhat_j) / n)``. The squares of these entries, summed
over ``j`` with ``e_j = gamma_j^2 d_j / sigma^2``:

    ``d_x_i = e_i (1 - 2 (1 + xhat_i^2) / n) + (sum e + 2 xhat_i sum e xhat + xhat_i^2 sum e xhat^2) / n^2``

Their second derivatives, times the gradient, are left out as in the Levenberg-Marquardt variant of the recursion.
RMS norm subtracts no mean, so the ``1 +`` goes: ``d_x_i = e_i (1 - 2 xhat_i^2 / n) + xhat_i^2 sum e xhat^2 / n^2``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from resgrow import ops
from resgrow.curvature.lecun.tape import Call, Rule, Tape

Ints = Sequence[int]


class _FixedNorm(Rule):
    """``y = (x - mean) rstd weight + bias`` over ``(N, C, *)``; mean and rstd are constants."""

    @staticmethod
    def forward(
        ctx: Any,
        tape: Tape,
        compute: Callable[[], Tensor],
        x: Tensor,
        mean: Tensor,
        rstd: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
    ) -> Tensor:
        ctx.tape = tape
        ctx.save_for_backward(x, mean, rstd, weight)
        return compute()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (d,) = grads
        x, mean, rstd, weight = ctx.saved_tensors
        _, _, needs_x, _, _, needs_weight, needs_bias = ctx.needs_input_grad
        shape = (-1, *(1,) * (x.dim() - 2))
        scale = rstd if weight is None else rstd * weight
        power = scale if ctx.tape.gradient_pass else scale.square()
        d_x = (d * power.view(shape)).to(d.dtype) if needs_x else None
        h_weight = h_bias = None
        if (needs_weight or needs_bias) and not ctx.tape.gradient_pass:
            h_weight, h_bias = ops.squared_input_grad_norm(x, d, mean, rstd)
        return None, None, d_x, None, None, h_weight if needs_weight else None, h_bias if needs_bias else None


def _fixed_norm(
    call: Call,
    compute: Callable[[], Tensor],
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Tensor:
    return _FixedNorm.apply(call.tape, compute, x, mean, (var + eps).rsqrt(), weight, bias)


def batch_norm(
    call: Call,
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if training or running_mean is None or running_var is None:
        call.refuse("statistics of the batch couple its samples; build it with track_running_stats=True")

    def compute() -> Tensor:
        return call.func(x, running_mean, running_var, weight, bias, False, momentum, eps)

    return _fixed_norm(call, compute, x, running_mean, running_var, weight, bias, eps)


def instance_norm(
    call: Call,
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    def compute() -> Tensor:
        return call.func(x, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)

    if not use_input_stats and running_mean is not None and running_var is not None:
        return _fixed_norm(call, compute, x, running_mean, running_var, weight, bias, eps)
    return _per_group(call, compute, x, (x.shape[0], x.shape[1], -1), weight, bias, eps)


class _SampleNorm(Rule):
    """``y = (x - mean) rstd weight + bias`` with the statistics of each row of ``x.reshape(rows)``."""

    @staticmethod
    def forward(
        ctx: Any,
        tape: Tape,
        compute: Callable[[], Tensor],
        rows: Ints,
        eps: float,
        centred: bool,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
    ) -> Tensor:
        ctx.tape, ctx.rows, ctx.eps, ctx.centred = tape, rows, eps, centred
        ctx.bias_shape = None if bias is None else bias.shape
        ctx.save_for_backward(x, weight)
        return compute()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (d,) = grads
        x, weight = ctx.saved_tensors
        *_, needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        xhat, rstd = _normalised(x.reshape(ctx.rows), ctx.eps, ctx.centred)
        if ctx.tape.gradient_pass:
            e = (d if weight is None else d * weight).reshape(ctx.rows)
            return None, None, None, None, None, _gradient(e, xhat, rstd, ctx.centred).reshape(x.shape), None, None
        e = (d if weight is None else d * weight.square()).reshape(ctx.rows) * rstd.square()
        d_x = _curvature(e, xhat, ctx.centred).reshape(x.shape) if needs_x else None
        h_weight = (d * xhat.reshape(x.shape).square()).sum_to_size(weight.shape) if needs_weight else None
        h_bias = d.sum_to_size(ctx.bias_shape) if needs_bias else None
        return None, None, None, None, None, d_x, h_weight, h_bias


def _normalised(x: Tensor, eps: float, centred: bool) -> tuple[Tensor, Tensor]:
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if centred:
        x = x - x.mean(-1, keepdim=True)
    rstd = (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    return x * rstd, rstd


def _gradient(e: Tensor, xhat: Tensor, rstd: Tensor, centred: bool) -> Tensor:
    g = e - xhat * (e * xhat).mean(-1, keepdim=True)
    return rstd * (g - e.mean(-1, keepdim=True) if centred else g)


def _curvature(e: Tensor, xhat: Tensor, centred: bool) -> Tensor:
    n = xhat.shape[-1]
    square = xhat.square()
    second = (e * square).sum(-1, keepdim=True)
    if not centred:
        return e * (1 - 2 / n * square) + square * second / n**2
    first, zeroth = (e * xhat).sum(-1, keepdim=True), e.sum(-1, keepdim=True)
    return e * (1 - 2 / n * (1 + square)) + (zeroth + 2 * xhat * first + square * second) / n**2


def layer_norm(
    call: Call,
    x: Tensor,
    normalized_shape: Ints,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    rows = (*x.shape[: x.dim() - len(normalized_shape)], prod(normalized_shape))
    return _SampleNorm.apply(
        call.tape, lambda: call.func(x, normalized_shape, weight, bias, eps), rows, eps, True, x, weight, bias
    )


def rms_norm(
    call: Call, x: Tensor, normalized_shape: Ints, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    rows = (*x.shape[: x.dim() - len(normalized_shape)], prod(normalized_shape))
    small = torch.finfo(x.dtype).eps if eps is None else eps
    return _SampleNorm.apply(
        call.tape, lambda: call.func(x, normalized_shape, weight, eps), rows, small, False, x, weight, None
    )


def group_norm(
    call: Call,
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    rows = (x.shape[0], num_groups, -1)
    return _per_group(call, lambda: call.func(x, num_groups, weight, bias, eps), x, rows, weight, bias, eps)


def _per_group(
    call: Call,
    compute: Callable[[], Tensor],
    x: Tensor,
    rows: Ints,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Tensor:
    """Gains and biases per channel, brought to the shape that broadcasts against ``(N, C, *)``."""
    shape = (-1, *(1,) * (x.dim() - 2))
    gain, shift = (p if p is None else p.view(shape) for p in (weight, bias))
    return _SampleNorm.apply(call.tape, compute, rows, eps, True, x, gain, shift)
