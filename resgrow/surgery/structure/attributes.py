"""What layers say of their own sizes, read off their tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from resgrow.nn.tristate_relu import TriStateReLU


def described(module: nn.Module) -> dict[str, Any]:
    """Attributes that tell sizes, as the tensors now have them; nothing for layers that are not known."""
    for kind, describe in _KINDS:
        if isinstance(module, kind):
            return describe(module)
    return {}


def _transposed(layer: Any) -> dict[str, Any]:
    inputs = layer.weight.shape[0]
    groups = max(1, inputs * layer.groups // layer.in_channels)
    return {"in_channels": inputs, "out_channels": layer.weight.shape[1] * groups, "groups": groups}


def _convolution(layer: Any) -> dict[str, Any]:
    """Groups go whole, so that each keeps the outputs that it had."""
    outputs, inputs = layer.weight.shape[:2]
    groups = max(1, outputs * layer.groups // layer.out_channels) if layer.groups > 1 else 1
    return {"out_channels": outputs, "in_channels": inputs * groups, "groups": groups}


def _linear(layer: Any) -> dict[str, Any]:
    return {"out_features": layer.weight.shape[0], "in_features": layer.weight.shape[1]}


def _norm(layer: Any) -> dict[str, Any]:
    tensor = layer.weight if layer.weight is not None else layer.running_mean
    return {} if tensor is None else {"num_features": len(tensor)}


def _group_norm(layer: Any) -> dict[str, Any]:
    if layer.weight is None:
        return {}
    channels = len(layer.weight)
    return {"num_channels": channels, "num_groups": channels * layer.num_groups // layer.num_channels}


_KINDS: tuple[tuple[type[nn.Module], Callable[[Any], dict[str, Any]]], ...] = (
    (_ConvTransposeNd, _transposed),
    (_ConvNd, _convolution),
    (nn.Linear, _linear),
    (_NormBase, _norm),
    (nn.GroupNorm, _group_norm),
    (nn.Embedding, lambda layer: {"embedding_dim": layer.weight.shape[1]}),
    (nn.PReLU, lambda layer: {"num_parameters": len(layer.weight)}),
    (TriStateReLU, lambda layer: {"num_channels": len(layer.w)}),
)
