"""Corrected values of the surviving weights, where scores bring them along."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn


class Compensation(Protocol):
    """What scores may carry as their attribute ``compensation``."""

    def update(self, name: str, weight: Tensor, keep: Tensor) -> Tensor:
        """The new value of parameter ``name``: zero where ``keep`` is False, corrected elsewhere."""


@torch.no_grad()
def compensated(
    model: nn.Module, compensation: Compensation, masks: Mapping[str, Tensor]
) -> list[tuple[nn.Parameter, Tensor]]:
    """Every parameter that loses elements, with its new value. The model is not changed.

    Raises:
        ValueError: a value is not finite.
    """
    pairs = []
    for name, keep in masks.items():
        parameter = model.get_parameter(name)
        if keep.all():
            continue
        value = compensation.update(name, parameter.detach(), keep.to(parameter.device))
        if not torch.isfinite(value).all():
            raise ValueError(
                f"prune: corrected weights must be finite (got NaN or infinity in {name}); give obs a larger damping, "
                "or prune with compensate=False"
            )
        pairs.append((parameter, value))
    return pairs
