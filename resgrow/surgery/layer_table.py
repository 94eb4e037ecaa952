"""Layers as JSON and back: one explicit row for each type, nothing is looked up by name elsewhere.

A layer is the name of its row and its config, ``{constructor argument: JSON value}``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from resgrow.nn import (
    BasicBlock,
    BlockSparseConv2d,
    BlockSparseLinear,
    Residual,
    ResNet,
    Shift,
    TriStateReLU,
    Zero,
    Zeros,
)


@dataclass(frozen=True)
class Row:
    """How one layer type is described and built.

    ``config`` names constructor arguments that are attributes of the same name; ``bias`` is stored as whether there is
    one. Layers are built from these by ``make`` (by default the type itself), containers from their children by
    ``join``. Layers whose tensors are stored in another form than the one they are held in have ``stored``, which
    gives it, and are built from config and these tensors by ``restore``.
    """

    kind: type[nn.Module]
    config: tuple[str, ...] = ()
    make: Callable[..., nn.Module] | None = None
    join: Callable[[dict[str, nn.Module]], nn.Module] | None = None
    stored: Callable[[Any], dict[str, Tensor | None]] | None = None
    restore: Callable[..., nn.Module] | None = None


def _batch_norm(kind: type[nn.Module]) -> Callable[..., nn.Module]:
    # A gain without a bias is an argument in newer torch only.
    def make(bias: bool, **config: Any) -> nn.Module:
        layer = kind(**config)
        if not bias:
            layer.register_parameter("bias", None)
        return layer

    return make


def _module_list(children: dict[str, nn.Module]) -> nn.ModuleList:
    modules = nn.ModuleList()
    for key, child in children.items():
        modules.add_module(key, child)
    return modules


def _dense(layer: BlockSparseConv2d | BlockSparseLinear) -> dict[str, Tensor | None]:
    return {"weight": layer.to_dense().weight, "bias": layer.bias, "mask": layer.mask}


_CONV = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "bias",
    "padding_mode",
)
_NORM = ("num_features", "eps", "momentum", "affine", "track_running_stats", "bias")
_MAX_POOL = ("kernel_size", "stride", "padding", "dilation", "return_indices", "ceil_mode")
_AVG_POOL = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
_EMBEDDING = ("num_embeddings", "embedding_dim", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")

ROWS: dict[str, Row] = {
    "Sequential": Row(nn.Sequential, join=lambda children: nn.Sequential(OrderedDict(children))),
    "ModuleList": Row(nn.ModuleList, join=_module_list),
    "ResNet": Row(ResNet, join=lambda children: ResNet(**children)),  # type: ignore[arg-type]
    "BasicBlock": Row(BasicBlock, join=lambda children: BasicBlock(**children)),  # type: ignore[arg-type]
    "Conv1d": Row(nn.Conv1d, _CONV),
    "Residual": Row(Residual, join=lambda children: Residual(**children)),
    "Conv2d": Row(nn.Conv2d, _CONV),
    "Conv3d": Row(nn.Conv3d, _CONV),
    "ConvTranspose1d": Row(nn.ConvTranspose1d, (*_CONV, "output_padding")),
    "ConvTranspose2d": Row(nn.ConvTranspose2d, (*_CONV, "output_padding")),
    "ConvTranspose3d": Row(nn.ConvTranspose3d, (*_CONV, "output_padding")),
    "Linear": Row(nn.Linear, ("in_features", "out_features", "bias")),
    "Embedding": Row(nn.Embedding, _EMBEDDING),
    "BatchNorm1d": Row(nn.BatchNorm1d, _NORM, make=_batch_norm(nn.BatchNorm1d)),
    "BatchNorm2d": Row(nn.BatchNorm2d, _NORM, make=_batch_norm(nn.BatchNorm2d)),
    "BatchNorm3d": Row(nn.BatchNorm3d, _NORM, make=_batch_norm(nn.BatchNorm3d)),
    "LayerNorm": Row(nn.LayerNorm, ("normalized_shape", "eps", "elementwise_affine", "bias")),
    "GroupNorm": Row(nn.GroupNorm, ("num_groups", "num_channels", "eps", "affine")),
    "ReLU": Row(nn.ReLU, ("inplace",)),
    "ReLU6": Row(nn.ReLU6, ("inplace",)),
    "LeakyReLU": Row(nn.LeakyReLU, ("negative_slope", "inplace")),
    "PReLU": Row(nn.PReLU, ("num_parameters",)),
    "GELU": Row(nn.GELU, ("approximate",)),
    "SiLU": Row(nn.SiLU, ("inplace",)),
    "ELU": Row(nn.ELU, ("alpha", "inplace")),
    "Hardswish": Row(nn.Hardswish, ("inplace",)),
    "Hardsigmoid": Row(nn.Hardsigmoid, ("inplace",)),
    "Sigmoid": Row(nn.Sigmoid),
    "Tanh": Row(nn.Tanh),
    "Softmax": Row(nn.Softmax, ("dim",)),
    "TriStateReLU": Row(TriStateReLU, ("num_channels", "learn", "inplace")),
    "MaxPool2d": Row(nn.MaxPool2d, _MAX_POOL),
    "AvgPool2d": Row(nn.AvgPool2d, _AVG_POOL),
    "AdaptiveAvgPool2d": Row(nn.AdaptiveAvgPool2d, ("output_size",)),
    "Flatten": Row(nn.Flatten, ("start_dim", "end_dim")),
    "Dropout": Row(nn.Dropout, ("p", "inplace")),
    "Identity": Row(nn.Identity),
    "Shift": Row(Shift, ("shape",), make=lambda shape: Shift(torch.zeros(shape))),
    "Zero": Row(Zero),
    "Zeros": Row(Zeros, ("results", "features", "dim")),
    "BlockSparseConv2d": Row(
        BlockSparseConv2d,
        ("block", "stride", "padding", "dilation", "groups"),
        stored=_dense,
        restore=BlockSparseConv2d,
    ),
    "BlockSparseLinear": Row(BlockSparseLinear, ("block",), stored=_dense, restore=BlockSparseLinear),
}
_NAMES = {row.kind: name for name, row in ROWS.items()}


# What constructors raise for arguments they do not take.
_REFUSALS = (TypeError, ValueError, RuntimeError, LookupError, AttributeError, ArithmeticError, AssertionError)


def layer_of(module: nn.Module) -> str | None:
    """The name of a module's row, if its type (exactly; subclasses may behave otherwise) has one."""
    return _NAMES.get(type(module))


def is_leaf(name: str) -> bool:
    """Whether layers of a row are their config and tensors of the shapes that it implies, and nothing else."""
    return ROWS[name].join is None and ROWS[name].stored is None


def config_of(module: nn.Module) -> dict[str, Any]:
    """The config of a module whose type has a row."""
    return {argument: _value(module, argument) for argument in ROWS[_NAMES[type(module)]].config}


def build(
    name: Any,
    config: Any,
    path: str,
    children: Mapping[str, nn.Module] | None = None,
    tensors: Mapping[str, Tensor | None] | None = None,
) -> nn.Module:
    """The layer of a row, with fresh weights on the device that is the default, or with the stored ones.

    Args:
        path: where it is going to stand, for messages.
        children: for containers. tensors: for layers that have `Row.stored`.

    Raises:
        ValueError: an unknown row, or arguments the layer does not take.
    """
    row = row_of(name, config, path)
    try:
        arguments = {argument: _tuples(value) for argument, value in config.items()}
        if row.join is not None:
            return row.join(dict(children or {}))
        if children:
            raise ValueError(f"it cannot hold {sorted(children)}")
        if row.restore is not None:
            return row.restore(**arguments, **(tensors or {}))
        return (row.make or row.kind)(**arguments)
    except _REFUSALS as error:
        where = path or "the top"
        raise ValueError(f"load: {name} at {where} cannot be built ({error}); the description is damaged") from error


def row_of(name: Any, config: Any, path: str) -> Row:
    """The row of a description.

    Raises:
        ValueError: there is none, or the config has other entries.
    """
    where = path or "the top"
    row = ROWS.get(name) if isinstance(name, str) else None
    if row is None:
        raise ValueError(f"load: layers must be of a known type (got {short(name)} at {where}); update resgrow")
    if not isinstance(config, dict) or set(config) != set(row.config):
        raise ValueError(f"load: a {name} must have config {list(row.config)} (got {short(config)} at {where})")
    return row


def short(value: Any) -> str:
    """A value for a message."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _value(module: nn.Module, argument: str) -> Any:
    value = getattr(module, argument)
    return value is not None if argument == "bias" else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
