"""Multiply-accumulates of torch's operations: torch's own table of flops, and what it leaves out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

# Of an operation's arguments and result to its multiply-accumulates.
Macs = Callable[[Sequence[Any], Mapping[str, Any], Any], float]

_aten = torch.ops.aten
# A table is no proof that all is in it: names that say that an operation multiplies matrices.
_PRODUCT = re.compile(r"mm(_|$)|conv|attention|rnn|linear(_|$)|matmul|multi_head|encoder_layer")
_FREE = re.compile(r"upsample|bilinear")
_OWN = ("aten", "prim", "prims", "resgrow")


def macs_of(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> float | None:
    """Of one call of an operation; None for one that has no row: elementwise, or unknown (see `is_unknown`)."""
    rule = _RULES.get(func._schema.name) if hasattr(func, "_schema") else None
    if rule is not None:
        return rule(args, kwargs, out)
    flops = flop_registry.get(getattr(func, "_overloadpacket", func))
    return None if flops is None else flops(*args, **kwargs, out_val=out) / 2


def is_unknown(func: Any) -> bool:
    """Whether an operation without a row may well have products: of another library, or one that sounds like it."""
    if not hasattr(func, "_schema"):
        return True  # operations that take functions
    space, _, name = func._schema.name.partition("::")
    return space not in _OWN or (space == "aten" and bool(_PRODUCT.search(name)) and not _FREE.search(name))


def _matrix_vector(matrix: int) -> Macs:
    return lambda args, kwargs, out: args[matrix].numel()


def _as_torch_counts(packet: Any) -> Macs:
    """The formula of another operation whose arguments begin alike."""
    return lambda args, kwargs, out: flop_registry[packet](*args, **kwargs, out_val=out) / 2


def _without_first(packet: Any) -> Macs:
    return lambda args, kwargs, out: flop_registry[packet](*args[1:3], out_val=out) / 2


def _block_sparse(args: Sequence[Any], kwargs: Mapping[str, Any], out: Tensor) -> float:
    """Every present block at every position of the output; where one hangs over the edge, with what hangs over."""
    return args[1].numel() * out.numel() / max(out.shape[1], 1)


def _trilinear(args: Sequence[Any], kwargs: Mapping[str, Any], out: Tensor) -> float:
    """``nn.Bilinear``: x1, W, x2, the first of shape (N, I)."""
    return prod(args[0].shape[:-1]) * args[1].numel()


def _linear(args: Sequence[Any], kwargs: Mapping[str, Any], out: Tensor) -> float:
    return prod(args[0].shape[:-1]) * args[1].numel()


def _rnn_layer(args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> float:
    """oneDNN's LSTM, a layer and direction at a time: input (T, N, I), the weights of input and state."""
    return prod(args[0].shape[:2]) * (args[1].numel() + args[2].numel())


def _cudnn_rnn(args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> float:
    """All layers and directions: input (T, N, I) in either order, a list of weights and biases."""
    return prod(args[0].shape[:2]) * sum(weight.numel() for weight in args[1] if weight.dim() > 1)


def _deformable(args: Sequence[Any], kwargs: Mapping[str, Any], out: Tensor) -> float:
    return args[1].numel() * out.numel() / out.shape[1]


_RULES: dict[str, Macs] = {
    "aten::mv": _matrix_vector(0),
    "aten::addmv": _matrix_vector(1),
    "aten::dot": _matrix_vector(0),
    "aten::vdot": _matrix_vector(0),
    "aten::addbmm": _without_first(_aten.bmm),
    "aten::_addmm_activation": _without_first(_aten.mm),
    "aten::_int_mm": _as_torch_counts(_aten.mm),
    "aten::linear": _linear,
    "aten::_trilinear": _trilinear,
    "aten::mkldnn_rnn_layer": _rnn_layer,
    "aten::_cudnn_rnn": _cudnn_rnn,
    "aten::_scaled_dot_product_flash_attention_for_cpu": _as_torch_counts(_aten._scaled_dot_product_flash_attention),
    "aten::_scaled_dot_product_fused_attention_overrideable": _as_torch_counts(
        _aten._scaled_dot_product_flash_attention
    ),
    "resgrow::block_sparse_conv2d": _block_sparse,
    "resgrow::block_sparse_conv2d_activated": _block_sparse,
    "torchvision::deform_conv2d": _deformable,
}
