"""Operators as plain aten ones, for runtimes that know nothing else (ONNX and the like)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from resgrow import _load  # noqa: F401  (registers torch.ops.resgrow)
from resgrow.ops import reference
from resgrow.ops.block_index import pack, unpack

_OPS = torch.ops.resgrow


def decompositions() -> dict[torch._ops.OpOverload, Callable[..., Tensor]]:
    """``{operator of block_sparse: the same in aten}``, for ``torch.export.ExportedProgram.run_decompositions``.

    ::

        program = torch.export.export(model, (x,)).run_decompositions(resgrow.ops.decompositions())

    Weights stay packed in the program and are unpacked when it runs, which computes absent blocks, too; to export a
    dense weight instead, `resgrow.unswap` the model before.
    """
    return {
        _OPS.block_sparse_conv2d.default: _forward,
        _OPS.block_sparse_conv2d_activated.default: _activated,
        _OPS.block_sparse_conv2d_input_grad.default: _input_grad,
        _OPS.block_sparse_conv2d_weight_grad.default: _weight_grad,
    }


# The arguments that end each of them: kernel_size, stride, padding, dilation, groups.
_Settings = Any


def _forward(
    x: Tensor, values: Tensor, index: Tensor, bias: Tensor | None, outputs: int, *settings: _Settings
) -> Tensor:
    kernel_size, stride, padding, dilation, groups = settings
    weight = unpack(values, index, (outputs, x.shape[1] // groups, *kernel_size))
    return F.conv2d(x, weight, bias, list(stride), list(padding), list(dilation), groups)


def _activated(
    x: Tensor,
    values: Tensor,
    index: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    slopes: Sequence[Tensor],
    outputs: int,
    *settings: _Settings,
) -> Tensor:
    y = _forward(x, values, index, bias, outputs, *settings)
    return reference.block_sparse_activated(y, (slopes[0], slopes[1]) if slopes else None, residual)


def _input_grad(grad: Tensor, values: Tensor, index: Tensor, x_size: Sequence[int], *settings: _Settings) -> Tensor:
    kernel_size, *_, groups = settings
    weight = unpack(values, index, (grad.shape[1], x_size[1] // groups, *kernel_size))
    return _gradients(grad, grad.new_empty(x_size), weight, settings, (True, False, False))[0]


def _weight_grad(grad: Tensor, x: Tensor, index: Tensor, block: Sequence[int], *settings: _Settings) -> Tensor:
    kernel_size, *_, groups = settings
    weight = grad.new_empty((grad.shape[1], x.shape[1] // groups, *kernel_size))
    dense = _gradients(grad, x, weight, settings, (False, True, False))[1]
    return pack(dense, index, (block[0], block[1]))


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, settings: Sequence[_Settings], wanted: Sequence[bool]
) -> tuple[Tensor, ...]:
    _, stride, padding, dilation, groups = settings
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, (0, 0), groups, wanted
    )
