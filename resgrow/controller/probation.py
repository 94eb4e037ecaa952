"""A removal on probation: kept if training brings the loss back, and undone to the bit if it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from resgrow.controller.progress import level, stalled
from resgrow.surgery import Masks

# Of the patience that removals are given, in looks at held data.
LONGEST = 20
# So many looks in a row without progress end it, too: one alone can be chance.
STILL = 2


@dataclass
class Probation:
    """Attributes:
    snapshot: of the model, its optimizers and masks before the removal.
    limit: of the mean loss: what training has to come back to.
    patience: looks at held data after which it has failed, whatever the loss still does.
    looks: at held data since; still: those in a row, up to now, without progress.
    """

    snapshot: dict[str, Any]
    limit: float
    patience: int = LONGEST
    looks: int = 0
    still: int = 0

    def verdict(self, losses: Sequence[float]) -> bool | None:
        """Told of the looks at held data since the removal, the newest last: whether it stands; None while that is
        open."""
        self.looks += 1
        if len(losses) > 1 and level(losses) <= self.limit:
            return True
        left = self.patience - self.looks
        if left <= 0:
            return False
        self.still = self.still + 1 if stalled(losses, self.limit, left) else 0
        return False if self.still >= STILL else None


@torch.no_grad()
def taken(model: nn.Module, optimizers: Sequence[Optimizer], masks: Masks) -> dict[str, Any]:
    """A copy of all numbers: weights, buffers, optimizer state by parameter, masks."""
    parameters = dict(model.named_parameters())
    return {
        "model": {name: tensor.detach().clone() for name, tensor in _tensors(model).items()},
        "optimizers": [
            {name: _copied(optimizer.state[p]) for name, p in parameters.items() if p in optimizer.state}
            for optimizer in optimizers
        ],
        "masks": masks.state_dict(),
    }


@torch.no_grad()
def put_back(snapshot: Mapping[str, Any], model: nn.Module, optimizers: Sequence[Optimizer], masks: Masks) -> None:
    """All numbers as they were, in a model of the same shapes."""
    for name, tensor in _tensors(model).items():
        tensor.detach().copy_(snapshot["model"][name])
    for optimizer, states in zip(optimizers, snapshot["optimizers"], strict=True):
        for name, parameter in model.named_parameters():
            if name in states:
                optimizer.state[parameter] = _copied(states[name])
            else:
                optimizer.state.pop(parameter, None)
    masks.load_state_dict(snapshot["masks"])


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _copied(state: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.detach().clone() if isinstance(value, Tensor) else value for key, value in state.items()}
