"""Tensors of other sizes, and where a model has them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

# Where an index has no source.
NEW = -1


def gathered(tensor: Tensor, dims: Mapping[int, Tensor], value: float = 0) -> Tensor:
    """By its sources along each dimension, ``value`` where there is none; in the tensor's memory format."""
    result = tensor
    for dim, source in dims.items():
        index = source.to(tensor.device)
        result = result.index_select(dim, index.clamp_min(0))
        missing = (index == NEW).nonzero().flatten()
        if len(missing):
            result = result.index_fill(dim, missing, value)
    if tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last):
        result = result.contiguous(memory_format=torch.channels_last)
    return result


def assign(parameter: nn.Parameter, data: Tensor) -> None:
    """Data of another shape.

    While a graph is alive, as that of a loss which is still in a variable, torch keeps the node that adds up the
    parameter's gradient, and the next backward would fail for the shape that the node remembers. Only data of another
    dtype (or device) makes it forget the node.
    """
    parameter.data = data.new_empty(0, dtype=torch.float32 if data.dtype == torch.float16 else torch.float16)
    parameter.data = data


def owners(model: nn.Module) -> dict[str, list[tuple[nn.Module, str]]]:
    """Where each parameter and buffer stands, by every one of its names; shared ones stand in several places."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    names: dict[str, int] = {}
    seen: set[tuple[int, str]] = set()
    for path, module in model.named_modules(remove_duplicate=False):
        for attribute, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is None:
                continue
            names[f"{path}.{attribute}" if path else attribute] = id(tensor)
            if (id(module), attribute) not in seen:
                seen.add((id(module), attribute))
                places.setdefault(id(tensor), []).append((module, attribute))
    return {name: places[key] for name, key in names.items()}
