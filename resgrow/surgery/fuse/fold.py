"""Arithmetic of fusion: a norm goes into the layer before it, an activation becomes slopes. All results are new."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from resgrow.nn import BlockSparseConv2d, BlockSparseLinear, FusedConv2d, FusedLinear, TriStateReLU
from resgrow.nn.fused import Slopes

Sparse = BlockSparseConv2d | BlockSparseLinear
Norm = nn.BatchNorm1d | nn.BatchNorm2d
_KINDS: dict[type[nn.Module], Any] = {BlockSparseConv2d: FusedConv2d, BlockSparseLinear: FusedLinear}


@torch.no_grad()
def folded_conv(layer: nn.Conv2d, norm: Norm) -> nn.Conv2d:
    """``norm(layer(x))`` in evaluation mode as one convolution."""
    result = copy.deepcopy(layer)
    scale, shift = affine(norm)
    result.weight = nn.Parameter((layer.weight * scale.view(-1, 1, 1, 1)).to(layer.weight.dtype))
    result.bias = nn.Parameter(_folded_bias(layer.bias, scale, shift).to(layer.weight.dtype))
    return result


@torch.no_grad()
def fused_layer(layer: Sparse, norm: Norm | None, activation: nn.Module | None, in_place: bool) -> nn.Module:
    """``activation(norm(layer(x)) + residual)`` in evaluation mode as one layer, see :class:`resgrow.nn.FusedConv2d`.

    ``in_place``: the addition is ``+=``.
    """
    values, bias = (layer.values, layer.bias) if norm is None else _folded(layer, norm)
    slopes = None if activation is None else _slopes(activation, values, layer.shape[0])
    batched = norm is not None or isinstance(activation, TriStateReLU)
    fused: nn.Module = _KINDS[type(layer)](layer, values, bias, slopes, batched, in_place)
    return fused


def _folded(layer: Sparse, norm: Norm) -> tuple[Tensor, Tensor]:
    scale, shift = affine(norm)
    block_out = layer.block[0]
    rows = scale.new_ones(-(-layer.shape[0] // block_out) * block_out)  # blocks may hang over the last output
    rows[: layer.shape[0]] = scale
    values = layer.values * rows.view(-1, 1, block_out)[layer.index[0].long()]
    return values.to(layer.values), _folded_bias(layer.bias, scale, shift).to(layer.values)


def _slopes(activation: nn.Module, like: Tensor, outputs: int) -> Slopes:
    """By what an activation multiplies numbers ``>= 0`` and ``< 0``, each ``(outputs,)``."""
    positive, negative = like.new_ones(outputs), like.new_zeros(outputs)
    if isinstance(activation, TriStateReLU):
        positive = (activation.w >= 0.5).to(positive)
        negative = positive * (activation.d >= 0.5).to(positive)
    return positive, negative


def affine(norm: Norm) -> tuple[Tensor, Tensor]:
    """The norm as ``scale x + shift``, in float64: folded weights are rounded once."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias


def _folded_bias(bias: Tensor | None, scale: Tensor, shift: Tensor) -> Tensor:
    return shift if bias is None else bias * scale + shift
