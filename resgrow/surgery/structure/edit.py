"""Other sizes for a model's tensors, in place: with gradients, optimizer state and what layers say of themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from resgrow.surgery.structure.attributes import described

# Where an index has no source.
NEW = -1
# Name of a parameter or buffer -> dimension -> for each new index the old one, or NEW.
Sources = Mapping[str, Mapping[int, Tensor]]
Fill = Callable[[str, Tensor], Tensor]


@dataclass
class Edit:
    """Changes to a model and to the optimizers that hold its parameters, which can be taken back.

    Parameters stay the objects that they are: whoever holds one, an optimizer, a list for clipping, a hook, goes on
    with it. New entries of optimizer state and of gradients are zero.
    """

    model: nn.Module
    optimizers: Sequence[Optimizer] = ()
    _undo: list[Callable[[], None]] = field(default_factory=list)

    def reindex(self, sources: Sources, fill: Fill | None = None) -> None:
        """Gather every tensor by its sources.

        Args:
            fill: called with (name, values) for tensors with new entries, which are zero; returns what to put in.
        """
        owners = _owners(self.model)
        for name, dims in sources.items():
            for module, attribute in owners[name][:1]:
                tensor = getattr(module, attribute)
                new = gathered(tensor.detach(), dims)
                if fill is not None and any(bool((source == NEW).any()) for source in dims.values()):
                    new = fill(name, new)
                if isinstance(tensor, nn.Parameter):
                    self._resize(tensor, new, dims)
                else:
                    for owner, key in owners[name]:
                        self._set_buffer(owner, key, new)
        touched = {id(module): module for name in sources for module, _ in owners[name]}
        for module in touched.values():
            self.set_attributes(module, described(module))

    def set_attributes(self, module: nn.Module, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            old = getattr(module, name)
            if old != value:
                self._undo.append(partial(setattr, module, name, old))
                setattr(module, name, value)

    def set_values(self, parameter: nn.Parameter, values: Tensor) -> None:
        """Other numbers of the same shape."""
        old = parameter.detach().clone()

        def back() -> None:
            parameter.data.copy_(old)

        self._undo.append(back)
        parameter.data.copy_(values)

    def add_parameter(self, module: nn.Module, name: str, parameter: nn.Parameter, beside: nn.Parameter) -> None:
        """One more for a module that has None in its place; optimizers get it in the groups of ``beside``."""
        groups = [group["params"] for optimizer in self.optimizers for group in optimizer.param_groups]
        joined = [group for group in groups if any(held is beside for held in group)]

        def back() -> None:
            setattr(module, name, None)
            for group in joined:
                group[:] = [held for held in group if held is not parameter]
            for optimizer in self.optimizers:
                optimizer.state.pop(parameter, None)

        self._undo.append(back)
        setattr(module, name, parameter)
        for group in joined:
            group.append(parameter)

    def undo(self) -> None:
        """Everything as it was before, to the bit."""
        while self._undo:
            self._undo.pop()()

    def _resize(self, parameter: nn.Parameter, new: Tensor, dims: Mapping[int, Tensor]) -> None:
        old_shape, old, grad = parameter.shape, parameter.data, parameter.grad
        states = [(o.state[parameter], dict(o.state[parameter])) for o in self.optimizers if parameter in o.state]

        def back() -> None:
            parameter.grad = None
            _assign(parameter, old)
            parameter.grad = grad
            for state, entries in states:
                state.clear()
                state.update(entries)

        self._undo.append(back)
        parameter.grad = None
        _assign(parameter, new)
        if grad is not None:
            parameter.grad = gathered(grad, dims)
        for state, entries in states:
            for key, entry in entries.items():
                if isinstance(entry, Tensor) and entry.shape == old_shape and entry.dim():
                    state[key] = gathered(entry, dims)

    def _set_buffer(self, module: nn.Module, name: str, new: Tensor) -> None:
        old = module._buffers[name]
        self._undo.append(partial(module._buffers.__setitem__, name, old))
        module._buffers[name] = new


def _assign(parameter: nn.Parameter, data: Tensor) -> None:
    """Data of another shape.

    While a graph is alive, as that of a loss which is still in a variable, torch keeps the node that adds up the
    parameter's gradient, and the next backward would fail for the shape that the node remembers. Only data of another
    dtype (or device) makes it forget the node.
    """
    parameter.data = data.new_empty(0, dtype=torch.float32 if data.dtype == torch.float16 else torch.float16)
    parameter.data = data


def gathered(tensor: Tensor, dims: Mapping[int, Tensor]) -> Tensor:
    """By its sources along each dimension, zero where there is none; in the tensor's memory format."""
    result = tensor
    for dim, source in dims.items():
        index = source.to(tensor.device)
        result = result.index_select(dim, index.clamp_min(0))
        missing = (index == NEW).nonzero().flatten()
        if len(missing):
            result = result.index_fill(dim, missing, 0)
    if tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last):
        result = result.contiguous(memory_format=torch.channels_last)
    return result


def _owners(model: nn.Module) -> dict[str, list[tuple[nn.Module, str]]]:
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
