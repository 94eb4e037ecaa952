"""The gated rectifier: the native family ``tristate_relu``. Its derivative is part of the native code."""

from __future__ import annotations

import torch
from torch import Tensor

from resgrow._load import _C  # registers torch.ops.resgrow

_is_compiling = torch.compiler.is_dynamo_compiling
_op = torch.ops.resgrow.tristate_relu.default


def tristate_relu(x: Tensor, w: Tensor, d: Tensor, inplace: bool = False) -> Tensor:
    """``y = w' x`` where ``x >= 0`` and ``y = w' d' x`` elsewhere, with ``w' = 1[w >= .5]``, ``d' = 1[d >= .5]``.

    ``w' = 0`` removes a channel, ``w' = 1, d' = 0`` is ReLU, ``w' = d' = 1`` the identity. Zero times infinity is
    NaN, and NaN passes on. Source: Srinivas & Babu, Learning Neural Network Architectures using Backpropagation.

    Args:
        x: ``(N, C, *)`` of any strides; float32, float64 or bfloat16, on CUDA also float16.
        w: ``(C,)``, width gates, one per channel; of these types, whatever x is (AMP).
        d: 0-dim, depth gate of the layer; as w.
        inplace: write over x, and return it, where no gradient is recorded. Where one is, x is left alone: closed gates
            need it to learn to reopen.

    Returns:
        Tensor of the shape, dtype and memory format of x. Differentiable once; the gates' gradients pass straight
        through, ``dw = sum grad (x if x >= 0 else d' x)`` and ``dd = sum_{x < 0} grad w' x`` (sums over all other
        dimensions, made in float32, in float64 for float64), so that closed gates can reopen. Results do not depend
        on the number of threads or multiprocessors. Forward-mode tangents pass through x, not through the gates.

    Raises:
        ValueError: x has fewer than two dimensions, w is not ``(C,)`` or d not 0-dim.
        TypeError: another dtype.
        RuntimeError: the gradient is differentiated again.
    """
    if inplace and not (torch.is_grad_enabled() and (x.requires_grad or w.requires_grad or d.requires_grad)):
        torch.ops.resgrow.tristate_relu_.default(x, w, d)
        return x
    y = None if _is_compiling() else _C.tristate_relu(x, w, d)  # a microsecond quicker, where it can
    return _op(x, w, d) if y is None else y


@torch.library.register_fake("resgrow::tristate_relu")
def _(x: Tensor, w: Tensor, d: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.register_fake("resgrow::tristate_relu_")
def _(x: Tensor, w: Tensor, d: Tensor) -> None:
    pass


@torch.library.register_fake("resgrow::tristate_relu_backward")
def _(grad: Tensor, x: Tensor, w: Tensor, d: Tensor, need_x: bool, need_gates: bool) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(x) if need_x else x.new_empty(0),
        torch.empty_like(w) if need_gates else w.new_empty(0),
        torch.empty_like(d) if need_gates else d.new_empty(0),
    )
