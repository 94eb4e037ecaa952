"""Parameters that join optimizers, or leave them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

# Handles of hooks keep a reference to these very dictionaries, so another module takes them over as they are.
_HOOKS = (
    "_backward_pre_hooks",
    "_backward_hooks",
    "_is_full_backward_hook",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


def take_over_hooks(new: nn.Module, old: nn.Module) -> None:
    for name in _HOOKS:
        setattr(new, name, getattr(old, name))


class Members:
    """The parameters of some optimizers, as they are when this is made: `back` brings them back."""

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self._optimizers = optimizers
        self._before = [(group, list(group["params"])) for each in optimizers for group in each.param_groups]
        self._joined: list[nn.Parameter] = []
        self._left: list[tuple[Optimizer, nn.Parameter, dict[str, Any]]] = []

    def join(self, parameter: nn.Parameter, beside: nn.Parameter) -> None:
        """In the groups that ``beside`` is in. Its state is that of a parameter which has not been stepped."""
        self._joined.append(parameter)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                if any(held is beside for held in group["params"]):
                    group["params"].append(parameter)
                    state = _first_state(optimizer, group, parameter, optimizer.state.get(beside, {}))
                    if state is not None:
                        optimizer.state[parameter] = state

    def leave(self, parameter: nn.Parameter) -> None:
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["params"][:] = [held for held in group["params"] if held is not parameter]
            if parameter in optimizer.state:
                self._left.append((optimizer, parameter, optimizer.state.pop(parameter)))

    def back(self) -> None:
        for group, parameters in self._before:
            group["params"][:] = parameters
        for optimizer in self._optimizers:
            for parameter in self._joined:
                optimizer.state.pop(parameter, None)
        for optimizer, parameter, state in self._left:
            optimizer.state[parameter] = state


def _first_state(
    optimizer: Optimizer, group: dict[str, Any], parameter: nn.Parameter, beside: dict[str, Any]
) -> dict[str, Any] | None:
    """What an optimizer of torch must have of a parameter before its first step; most need nothing."""
    if isinstance(optimizer, torch.optim.Adagrad):
        # It makes the state of all parameters in the beginning.
        total = torch.full_like(parameter, group["initial_accumulator_value"], memory_format=torch.preserve_format)
        return {"step": torch.tensor(0.0), "sum": total.detach()}
    if isinstance(optimizer, torch.optim.SGD) and group["fused"] and beside.get("momentum_buffer") is not None:
        # The fused kernel takes momenta of all parameters or of none.
        return {"momentum_buffer": torch.zeros_like(parameter).detach()}
    return None
