"""``settle_gates``: tri-state ReLUs that have become ordinary activations."""

from __future__ import annotations

import copy

import torch
from torch import nn

from resgrow.nn import TriStateReLU


@torch.no_grad()
def settle_gates(model: nn.Module) -> nn.Module:
    """A copy of the model with plain activations in the place of each `TriStateReLU` that has no closed channels.

    ``nn.ReLU`` where the depth gate is closed, ``nn.Identity`` where it is open: the same function, without gates.
    Layers with closed channels stay: `resgrow.compact` removes those first. What they shared along a residual stream
    they have each for themselves then, so that the model can be saved. The model is left alone.
    """
    settled = copy.deepcopy(model)
    if isinstance(settled, TriStateReLU):
        return _settled(settled)
    for parent in list(settled.modules()):
        for name, child in parent.named_children():
            if isinstance(child, TriStateReLU):
                setattr(parent, name, _settled(child))
    return settled


def _settled(gate: TriStateReLU) -> nn.Module:
    if not bool((gate.w >= 0.5).all()):
        gate.w = nn.Parameter(gate.w.detach().clone(), gate.w.requires_grad)
        return gate
    linear = bool(gate.d >= 0.5)
    activation: nn.Module = nn.Identity() if linear else nn.ReLU(inplace=gate.inplace)
    return activation.train(gate.training)
