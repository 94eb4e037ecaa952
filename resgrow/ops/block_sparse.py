"""Convolution and linear layers that skip the absent blocks of their weight, forward and backward.

A *block* is ``bo`` output by ``bi`` input channels of one kernel tap; a mask says which are present. The cost of a
product, of its input gradient and of its weight gradient is proportional to the number of present blocks.
:mod:`resgrow.ops.reference` states the same in plain torch.

Common to all functions
    * ``x``: float32, float64, bfloat16 and on CUDA float16 (16 bits are accumulated in float32), any strides;
      channels_last is fastest, and the result has the memory format of ``x``. Results do not depend on the number of
      threads, and on CUDA not on scheduling: every sum has a fixed order.
    * Differentiable any number of times, backward and forward, in everything floating.
    * Blocks of a multiple of 4 outputs have kernels; (16, 1) and (16, 16) are fastest. Other blocks, and grouped
      convolutions whose groups the blocks do not divide (depthwise ones among them), are computed densely by torch.
    * bfloat16 under autocast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from resgrow import _load  # noqa: F401  (registers torch.ops.resgrow)
from resgrow.ops import reference
from resgrow.ops.block_index import block_index, check_block, check_mask, pack, unpack

_OPS = torch.ops.resgrow


def block_sparse_conv2d(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    block: tuple[int, int] = (16, 1),
) -> Tensor:
    """``conv2d(x, weight where present else 0, bias, stride, padding, dilation, groups)``.

    Args:
        x: ``(N, C, H, W)``.
        weight: ``(O, C / groups, kh, kw)``, dense. What absent blocks hold is ignored; their gradient is zero.
        mask: bool ``(ceil(O / bo), ceil(C / groups / bi), kh, kw)``, True where a block is present; ragged at the
            upper edges.
        bias: ``(O,)`` or None.
        stride, padding, dilation: int or pair (height, width).
        groups: divides ``C`` and ``O``.
        block: ``(bo, bi)``.

    Returns:
        ``(N, O, Ho, Wo)`` of the dtype of ``x``.

    Every call finds the present blocks and gathers them. Modules that keep them packed
    (:class:`resgrow.nn.BlockSparseConv2d`) do neither.

    Raises:
        ValueError: shapes or settings that do not belong together.
        TypeError: mask is not bool; dtypes that differ, or other than float32, float64 and bfloat16.
    """
    op = "block_sparse_conv2d"
    block = check_block(op, block)
    if weight.dim() != 4:
        raise ValueError(f"{op}: weight must be (O, C / groups, kh, kw) (got {tuple(weight.shape)})")
    check_mask(op, mask, weight.shape, block)
    index = block_index(mask, block)
    values = pack(weight, index, block)
    return packed_conv2d(x, values, index, bias, tuple(weight.shape), stride, padding, dilation, groups)


def block_sparse_linear(
    x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None = None, block: tuple[int, int] = (16, 1)
) -> Tensor:
    """``linear(x, weight where present else 0, bias)``.

    Args:
        x: ``(*, I)``.
        weight: ``(O, I)``, dense. What absent blocks hold is ignored; their gradient is zero.
        mask: bool ``(ceil(O / bo), ceil(I / bi))``, True where a block is present.
        bias: ``(O,)`` or None.
        block: ``(bo, bi)``.

    Returns:
        ``(*, O)`` of the dtype of ``x``.

    Raises:
        ValueError, TypeError: as :func:`block_sparse_conv2d`.
    """
    op = "block_sparse_linear"
    block = check_block(op, block)
    if weight.dim() != 2:
        raise ValueError(f"{op}: weight must be (O, I) (got {tuple(weight.shape)})")
    check_mask(op, mask, weight.shape, block)
    index = block_index(mask, block)
    return packed_linear(x, pack(weight, index, block), index, bias, tuple(weight.shape))


def block_sparse_probe(
    grad: Tensor,
    x: Tensor,
    mask: Tensor,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    block: tuple[int, int] = (16, 1),
) -> Tensor:
    """The weight gradient at the blocks that ``mask`` names, present or absent, and zero elsewhere.

    What a block would have as gradient if it were present: growth asks this of absent ones.

    Args:
        grad: ``(N, O, Ho, Wo)``, the gradient at the output.
        x: ``(N, C, H, W)``, the input.
        mask: bool ``(ceil(O / bo), ceil(C / groups / bi), kh, kw)``, the blocks asked for.
        stride, padding, dilation, groups, block: as :func:`block_sparse_conv2d`.

    Returns:
        ``(O, C / groups, kh, kw)``.
    """
    op = "block_sparse_probe"
    block = check_block(op, block)
    shape = (grad.shape[1], x.shape[1] // groups, *mask.shape[2:])
    check_mask(op, mask, shape, block)
    settings = _settings(op, stride, padding, dilation)
    if not has_kernel(shape, block, groups):
        strides, margins, dilations = (tuple(v) for v in settings)
        return reference.block_sparse_probe(grad, x, mask, strides, margins, dilations, groups, block)
    index = block_index(mask, block)
    values = _OPS.block_sparse_conv2d_weight_grad(grad, x, index, block, shape[2:], *settings, groups)
    return unpack(values, index, shape)


def has_kernel(shape: Sequence[int], block: tuple[int, int], groups: int = 1) -> bool:
    """Whether blocks of a weight ``(O, I / groups, *k)`` are skipped, or computed densely as zeros."""
    if block[0] % 4:
        return False
    return groups == 1 or (shape[0] // groups % block[0] == 0 and shape[1] % block[1] == 0)


def packed_conv2d(
    x: Tensor,
    values: Tensor,
    index: Tensor,
    bias: Tensor | None,
    shape: tuple[int, ...],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    slopes: tuple[Tensor, Tensor] | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """:func:`block_sparse_conv2d` of a weight of ``shape`` given by its present blocks.

    With ``slopes`` or ``residual``, for inference, the end of a residual block in the same pass over the output:
    :func:`resgrow.ops.reference.block_sparse_activated` of the convolution.

    Args:
        values: ``(blocks, bi, bo)`` in the order of ``index``, see :func:`resgrow.ops.block_index.pack`.
        index: int32 ``(4, blocks)``, see :func:`resgrow.ops.block_index.block_index`.
        slopes: an activation: two ``(O,)`` tensors of the dtype of ``x``, by which outputs ``>= 0`` and ``< 0`` are
            multiplied. ReLU is ones and zeros, tri-state ReLU ``w'`` and ``w' d'``.
        residual: ``(N, O, Ho, Wo)`` of the dtype of ``x``, added before the activation. Any strides; channels_last
            is read as it is.

    Raises:
        RuntimeError: slopes or residual where a gradient is needed.
    """
    settings = _settings("block_sparse_conv2d", stride, padding, dilation)
    channels = shape[1] * groups
    if x.dim() != 4 or x.shape[1] != channels:
        raise ValueError(
            f"block_sparse_conv2d: x must be (N, C, H, W) and must have {channels} channels (got {tuple(x.shape)})"
        )
    block = (values.shape[2], values.shape[1])
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, values, bias = x.to(dtype), values.to(dtype), None if bias is None else bias.to(dtype)
        slopes = None if slopes is None else (slopes[0].to(dtype), slopes[1].to(dtype))
        residual = None if residual is None else residual.to(dtype)
    if not has_kernel(shape, block, groups):
        stride, padding, dilation = settings
        y = F.conv2d(x, unpack(values, index, shape), bias, stride, padding, dilation, groups)
        return reference.block_sparse_activated(y, slopes, residual)
    if slopes is not None or residual is not None:
        return _OPS.block_sparse_conv2d_activated(
            x, values, index, bias, residual, slopes or (), shape[0], shape[2:], *settings, groups
        )
    return _OPS.block_sparse_conv2d(x, values, index, bias, shape[0], shape[2:], *settings, groups)


def packed_linear(
    x: Tensor,
    values: Tensor,
    index: Tensor,
    bias: Tensor | None,
    shape: tuple[int, ...],
    slopes: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """As :func:`packed_conv2d`, of ``x`` ``(*, I)`` and a weight of ``shape`` ``(O, I)``."""
    if x.dim() < 1 or x.shape[-1] != shape[1]:
        raise ValueError(f"block_sparse_linear: x must be (*, {shape[1]}) (got {tuple(x.shape)})")
    images = x.reshape(-1, shape[1], 1, 1)
    y = packed_conv2d(images, values, index, bias, (*shape, 1, 1), slopes=slopes)
    return y.reshape(*x.shape[:-1], shape[0])


def _settings(op: str, *values: int | Sequence[int]) -> list[Sequence[int]]:
    """Stride, padding and dilation as pairs."""
    return [(v, v) if isinstance(v, int) else _pair(op, i, v) for i, v in enumerate(values)]


def _pair(op: str, which: int, value: Sequence[int]) -> Sequence[int]:
    if len(value) != 2:
        name = ("stride", "padding", "dilation")[which]
        raise ValueError(f"{op}: {name} must be an int or a pair (got {value!r})")
    return value


# Of the arguments that all four share, in the schema's order: kernel_size, stride, padding, dilation, groups.
_Settings = Any


@torch.library.register_fake("resgrow::block_sparse_conv2d")
def _(x: Tensor, values: Tensor, index: Tensor, bias: Tensor | None, outputs: int, *settings: _Settings) -> Tensor:
    return _output(x, outputs, *settings)


@torch.library.register_fake("resgrow::block_sparse_conv2d_activated")
def _(
    x: Tensor,
    values: Tensor,
    index: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    slopes: Sequence[Tensor],
    outputs: int,
    *settings: _Settings,
) -> Tensor:
    return _output(x, outputs, *settings)


@torch.library.register_fake("resgrow::block_sparse_conv2d_input_grad")
def _(grad: Tensor, values: Tensor, index: Tensor, x_size: Sequence[int], *settings: _Settings) -> Tensor:
    return _laid_out_like(grad, x_size)


@torch.library.register_fake("resgrow::block_sparse_conv2d_weight_grad")
def _(grad: Tensor, x: Tensor, index: Tensor, block: Sequence[int], *settings: _Settings) -> Tensor:
    return x.new_empty((index.shape[1], block[1], block[0]))


def _output(
    x: Tensor,
    outputs: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    sides = [
        (x.shape[2 + i] + 2 * padding[i] - dilation[i] * (kernel_size[i] - 1) - 1) // stride[i] + 1 for i in range(2)
    ]
    return _laid_out_like(x, (x.shape[0], outputs, *sides))


def _laid_out_like(t: Tensor, shape: Sequence[int]) -> Tensor:
    format_ = torch._prims_common.suggest_memory_format(t)
    return torch.empty(shape, dtype=t.dtype, device=t.device, memory_format=format_)
