"""Which layers have a ripple, and random changes of their weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Layer:
    """A module with trainable parameters of its own.

    Attributes:
        name: its first one in the model.
        module: itself.
        size: elements of its own parameters, also of those that are not trained.
        weights: its own trainable parameters, detached, by their names in the model.
    """

    name: str
    module: nn.Module
    size: int
    weights: Mapping[str, Tensor]

    def direction(self, generator: torch.Generator) -> dict[str, Tensor]:
        """``w z`` for each weight, ``z`` standard normal."""
        return {
            name: w * torch.randn(w.shape, generator=generator, device=generator.device).to(w)
            for name, w in self.weights.items()
        }

    def moved(self, direction: Mapping[str, Tensor], by: float) -> dict[str, Tensor]:
        """The weights, ``by`` times a direction further."""
        return {name: w + by * direction[name] for name, w in self.weights.items()}


def layers_of(model: nn.Module, all_parameters: bool) -> list[Layer]:
    """In the order of ``model.named_modules()``; a parameter that layers share is the first one's.

    Args:
        all_parameters: also modules whose own parameters all have less than two dimensions.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = []
    for path, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False) if id(p) in names]
        weights = {names.pop(id(p)): p for p in own}
        trained = {name: p.detach() for name, p in weights.items() if p.requires_grad}
        if trained and (all_parameters or any(p.dim() > 1 for p in weights.values())):
            found.append(Layer(path, module, sum(p.numel() for p in own), trained))
    return found
