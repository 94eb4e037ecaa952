"""A module that is to be added to a model, and what new modules are made of."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from resgrow.surgery.fresh import fresh

# By these, blocks know which of a model's layers they are: caches of keys and values are kept by them.
_NUMBERS = ("layer_idx", "layer_id", "layer_number")


@dataclass(frozen=True)
class Addition:
    """``module`` is to stand right behind the child ``after`` of the model's module ``parent``.

    Attributes:
        beside: for each of its parameters the model's that it goes with, by name.
        last: names of those parameters that are zero, so that the module is the identity to the bit; none where it is
            to rounding only.
        after_sums: operations which its input goes through all the same.
    """

    parent: str
    after: str
    module: nn.Module
    beside: Mapping[str, str]
    last: tuple[str, ...] = ()
    after_sums: tuple[str, ...] = ()


def path_of(parent: str, key: str) -> str:
    return f"{parent}.{key}" if parent else key


def new_key(parent: nn.Module, after: str) -> str:
    """At the end the next number, as in a list; between two others the name of the first with a number of its own."""
    stem = after.rstrip("0123456789")
    if after == list(parent._modules)[-1] and stem != after:
        key = f"{stem}{int(after[len(stem) :]) + 1}"
        if not _taken(parent, key):
            return key
    number = 1
    while _taken(parent, f"{after}_{number}"):
        number += 1
    return f"{after}_{number}"


def copied(module: nn.Module) -> nn.Module:
    """A copy without gradients."""
    new = copy.deepcopy(module)
    for parameter in new.parameters():
        parameter.grad = None
    return new


def redraw(module: nn.Module, generator: torch.Generator | None) -> None:
    """All parameters anew, as the layers' own initialisation has them, and the running statistics of norms."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                parameter.copy_(fresh(part, name, parameter.shape, generator))
        if isinstance(part, _NormBase):
            part.reset_running_stats()


def zero(module: nn.Module, names: tuple[str, ...]) -> None:
    for name in names:
        module.get_parameter(name).zero_()


def number(module: nn.Module, model: nn.Module) -> None:
    """Where layers are numbered, the module's are the next."""
    for name in _NUMBERS:
        taken = [value for part in model.modules() if type(value := getattr(part, name, None)) is int]
        for part in module.modules():
            if type(getattr(part, name, None)) is int:
                setattr(part, name, max(taken) + 1)


def like(new: Any, layer: nn.Module, weight: Tensor) -> Any:
    """``new``, which has no values yet, on the device of ``weight``, in its dtype and memory format, and the layer's
    training flag."""
    new.to_empty(device=weight.device).to(weight.dtype).train(layer.training)
    last = weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    return new.to(memory_format=torch.channels_last) if last else new


def _taken(parent: nn.Module, key: str) -> bool:
    return key in parent._modules or hasattr(parent, key)
