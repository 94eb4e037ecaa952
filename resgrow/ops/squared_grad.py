"""Sums over samples of squared per-sample gradients, without per-sample gradients in memory.

These are the diagonals of the empirical Fisher matrix and, with gradients drawn from the model's own predictive
distribution, of the generalised Gauss-Newton matrix, for everything a layer learns. Each needs only the layer's
input and the gradient at its output. :mod:`resgrow.ops.reference` states the same equations in plain torch.

The functions ``squared_input_grad_*`` square the input instead and nothing else: what the recursion of diagonals
(``lecun``) needs, with curvature in place of the gradient. The square is taken as the input is read.

Common to all functions
    * The result is a **sum** over samples (dimension 0) of whatever ``grad`` holds. With the gradient of a *mean*
      loss over N samples, ``grad`` carries a factor 1/N and the result one of 1/N^2.
    * float32 in, float32 out; float64 in, float64 out; bfloat16 in, float32 accumulation and float32 out, and on CUDA
      float16 likewise.
    * Any strides; contiguous and channels_last inputs are fastest. The result is contiguous and does not depend on
      the number of threads. Beyond the result, a few megabytes are allocated at most.
    * On CUDA, channels_last inputs whose channels are a multiple of 8 (of 4 in float32) are fastest; others are copied
      into that layout first. Products are as precise as float32's, on tensor cores too, unless
      ``torch.set_float32_matmul_precision("high")`` allows ``squared_grad_*`` to round float32 inputs to tf32. Results
      depend on sizes alone, not on the device or on scheduling. Partial sums take up to 70 MB while a call runs.
    * No gradient flows: the result never requires one, whatever the inputs do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from resgrow import _load  # noqa: F401  (registers torch.ops.resgrow)

__all__ = [
    "squared_grad_bias",
    "squared_grad_conv2d",
    "squared_grad_linear",
    "squared_grad_norm",
    "squared_input_grad_conv2d",
    "squared_input_grad_linear",
    "squared_input_grad_norm",
]


def squared_grad_linear(x: Tensor, grad: Tensor) -> Tensor:
    """Squared per-sample weight gradients of a linear layer: ``H[o, i] = sum_n (sum_t grad[n,t,o] x[n,t,i])^2``.

    Args:
        x: ``(N, *, I)``, the layer's input; the dimensions between first and last are positions ``t`` of one sample.
        grad: ``(N, *, O)``, the gradient at its output, of the dtype of ``x``.

    Returns:
        ``(O, I)``, float32 (float64 for float64 input), a sum over samples.

    Raises:
        ValueError: shapes that do not belong together.
        TypeError: dtypes that differ, or other than float32, float64 and bfloat16.
    """
    return torch.ops.resgrow.squared_grad_linear(x, grad)


def squared_grad_conv2d(
    x: Tensor,
    grad: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """Squared per-sample weight gradients of a 2-D convolution with zero padding.

    ``H[o, i, ky, kx] = sum_n (sum_{oy, ox} grad[n, o, oy, ox] x[n, i, oy s + ky d - p, ox s + kx d - p])^2``

    Args:
        x: ``(N, C, H, W)``, the layer's input.
        grad: ``(N, O, Ho, Wo)``, the gradient at its output, of the dtype of ``x``.
        kernel_size, stride, padding, dilation: the convolution's, an int or a pair (height, width); padding in pixels.
        groups: the convolution's; divides ``C`` and ``O``. Depthwise is ``groups == C``.

    Returns:
        ``(O, C / groups, kh, kw)``, float32 (float64 for float64 input), a sum over samples.

    Raises:
        ValueError: settings out of range, or shapes that do not follow from them.
        TypeError: dtypes that differ, or other than float32, float64 and bfloat16; settings that are not integers.
    """
    settings = _settings("squared_grad_conv2d", kernel_size, stride, padding, dilation)
    return torch.ops.resgrow.squared_grad_conv2d(x, grad, *settings, groups)


def squared_grad_bias(grad: Tensor, channel_dim: int = 1) -> Tensor:
    """Squared per-sample bias gradients: ``H[c] = sum_n (sum_t grad[n, c, t])^2``.

    Args:
        grad: ``(N, *)``, the gradient at the layer's output, with C entries in ``channel_dim``.
        channel_dim: where the channels are; 1 for convolutions, -1 for linear layers. Never 0, which counts samples.

    Returns:
        ``(C,)``, float32 (float64 for float64 input), a sum over samples.

    Raises:
        ValueError: fewer than two dimensions, or a ``channel_dim`` that is not one of them or is the first.
        TypeError: a dtype other than float32, float64 and bfloat16.
    """
    return torch.ops.resgrow.squared_grad_bias(grad, channel_dim)


def squared_grad_norm(x: Tensor, grad: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Squared per-sample gradients of gain and bias of ``y = weight (x - mean) rstd + bias``, in one pass.

    ``weight[c] = sum_n (sum_t grad (x - mean[c]) rstd[c])^2`` and ``bias[c] = sum_n (sum_t grad)^2``.

    Args:
        x: ``(N, C, *)``, the layer's input.
        grad: like ``x``, the gradient at its output.
        mean, rstd: ``(C,)``, any floating dtype: running mean and ``1 / sqrt(var + eps)``. Constants, as in eval mode:
            in train mode batch norm couples the samples, and a per-sample gradient does not exist.

    Returns:
        Two ``(C,)`` tensors (weight, bias), float32 (float64 for float64 input), sums over samples.

    Raises:
        ValueError: shapes that do not belong together.
        TypeError: dtypes of ``x`` and ``grad`` that differ, or other than float32, float64 and bfloat16.
    """
    return torch.ops.resgrow.squared_grad_norm(x, grad, mean, rstd)


def squared_input_grad_linear(x: Tensor, grad: Tensor) -> Tensor:
    """Weight gradient of a linear layer with its input squared: ``H[o, i] = sum_{n,t} grad[n,t,o] x[n,t,i]^2``.

    Args:
        x: ``(N, *, I)``, the layer's input.
        grad: ``(N, *, O)``, of the dtype of ``x`` and either sign.

    Returns:
        ``(O, I)``, float32 (float64 for float64 input), a sum over samples and positions.

    Raises:
        ValueError: shapes that do not belong together.
        TypeError: dtypes that differ, or other than float32, float64 and bfloat16.
    """
    return torch.ops.resgrow.squared_input_grad_linear(x, grad)


def squared_input_grad_conv2d(
    x: Tensor,
    grad: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """Weight gradient of a 2-D convolution with zero padding and with its input squared.

    ``H[o, i, ky, kx] = sum_{n, oy, ox} grad[n, o, oy, ox] x[n, i, oy s + ky d - p, ox s + kx d - p]^2``

    Args:
        x: ``(N, C, H, W)``, the layer's input.
        grad: ``(N, O, Ho, Wo)``, of the dtype of ``x`` and either sign.
        kernel_size, stride, padding, dilation, groups: the convolution's, as for :func:`squared_grad_conv2d`.

    Returns:
        ``(O, C / groups, kh, kw)``, float32 (float64 for float64 input), a sum over samples and positions.

    Raises:
        ValueError: settings out of range, or shapes that do not follow from them.
        TypeError: dtypes that differ, or other than float32, float64 and bfloat16; settings that are not integers.
    """
    settings = _settings("squared_input_grad_conv2d", kernel_size, stride, padding, dilation)
    return torch.ops.resgrow.squared_input_grad_conv2d(x, grad, *settings, groups)


def squared_input_grad_norm(x: Tensor, grad: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """``sum_{n,t} grad ((x - mean[c]) rstd[c])^2`` and ``sum_{n,t} grad`` per channel, in one pass.

    Args:
        x: ``(N, C, *)``, the layer's input.
        grad: like ``x``, of either sign.
        mean, rstd: ``(C,)``, any floating dtype: running mean and ``1 / sqrt(var + eps)``.

    Returns:
        Two ``(C,)`` tensors (weight, bias), float32 (float64 for float64 input), sums over samples and positions.

    Raises:
        ValueError: shapes that do not belong together.
        TypeError: dtypes of ``x`` and ``grad`` that differ, or other than float32, float64 and bfloat16.
    """
    return torch.ops.resgrow.squared_input_grad_norm(x, grad, mean, rstd)


def _settings(op: str, *values: int | Sequence[int]) -> list[list[int]]:
    """Kernel size, stride, padding and dilation as pairs (height, width)."""
    names = ("kernel_size", "stride", "padding", "dilation")
    pairs = [[value, value] if isinstance(value, int) else list(value) for value in values]
    for name, pair in zip(names, pairs, strict=True):
        if len(pair) != 2:
            raise ValueError(f"{op}: {name} must be an int or a pair (got {pair!r})")
    return pairs


def _accumulated(t: Tensor) -> torch.dtype:
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def _fake_linear(x: Tensor, grad: Tensor) -> Tensor:
    return x.new_empty((grad.shape[-1], x.shape[-1]), dtype=_accumulated(x))


def _fake_conv2d(
    x: Tensor,
    grad: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    shape = (grad.shape[1], x.shape[1] // groups, kernel_size[0], kernel_size[1])
    return x.new_empty(shape, dtype=_accumulated(x))


def _fake_bias(grad: Tensor, channel_dim: int) -> Tensor:
    return grad.new_empty((grad.shape[channel_dim],), dtype=_accumulated(grad))


def _fake_norm(x: Tensor, grad: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    return tuple(x.new_empty((x.shape[1],), dtype=_accumulated(x)) for _ in range(2))  # type: ignore[return-value]


_FAKES: dict[str, Callable[..., Any]] = {
    "squared_grad_linear": _fake_linear,
    "squared_grad_conv2d": _fake_conv2d,
    "squared_grad_bias": _fake_bias,
    "squared_grad_norm": _fake_norm,
    "squared_input_grad_linear": _fake_linear,
    "squared_input_grad_conv2d": _fake_conv2d,
    "squared_input_grad_norm": _fake_norm,
}
for _name, _fake in _FAKES.items():
    torch.library.register_fake(f"resgrow::{_name}", _fake)
