"""Curvature kept up to date while a model trains, at a bounded share of the work."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from resgrow.curvature import curvature
from resgrow.curvature.batches import Batch
from resgrow.curvature.heads import LossFn

# What a pass over a batch takes, in training steps on it: measured between 1.0 and 1.2.
PASS = 1.2
# Half of what the estimate knows is from the last 6.6 passes.
DECAY = 0.9
# So many passes that never saw a weight matter say that it does not.
BELIEVED = 8


class RunningCurvature:
    """An exponential average of the curvature of single batches, each parameter's own.

    ``h_t = decay h_(t-1) + (1 - decay) c_t``, divided by ``1 - decay^t`` as it starts at zero. A parameter that
    surgery has given another shape starts anew.

    Args:
        method, temperature: of `resgrow.curvature`.
        share: of the training work that passes may take; a pass then comes every ``PASS / share`` steps.
        generator: of random vectors.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        method: str,
        temperature: float,
        share: float,
        generator: torch.Generator,
    ) -> None:
        self.model, self.loss_fn = model, loss_fn
        self.options: dict[str, Any] = {"method": method, "temperature": temperature, "generator": generator}
        self.every = max(1, math.ceil(PASS / share))
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}
        self._steps = 0

    def step(self, batch: Batch) -> None:
        """One training step was made on ``batch``: a pass over it where one is due."""
        self._steps += 1
        if self._steps % self.every == 0:
            self.add([batch])

    def add(self, batches: Sequence[Batch]) -> None:
        """A pass over ``batches``. Raises as `resgrow.curvature`, with nothing changed."""
        found = self.once(batches)
        known = self._known()
        for name, entry in found.items():
            old = self._sums[name] if name in known else torch.zeros_like(entry)
            weight = self._weights[name] if name in known else 0.0
            self._sums[name] = old.mul_(DECAY).add_(entry, alpha=1 - DECAY)
            self._weights[name] = DECAY * weight + 1 - DECAY
        for name in self._sums.keys() - found.keys():
            del self._sums[name], self._weights[name]

    def once(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Curvature of these batches alone."""
        return curvature(self.model, self.loss_fn, batches, **self.options)

    def adopt(self, found: Mapping[str, Tensor]) -> None:
        """Curvature of parameters that have just changed stands for all that was known of them."""
        for name, entry in found.items():
            self._sums[name], self._weights[name] = entry * (1 - DECAY), 1 - DECAY

    def value(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """``{parameter name: tensor like it}``; what nothing is known of yet comes from a pass over ``batches``."""
        if any(p.requires_grad and name not in self._known() for name, p in self.model.named_parameters()):
            self.add(batches)
        return {name: total / self._weights[name] for name, total in self._sums.items()}

    def unseen(self, name: str) -> Tensor | None:
        """Where the curvature of a parameter is exactly zero, after passes enough to believe it; None before."""
        total = self._sums.get(name)
        return None if total is None or self._weights[name] < 1 - DECAY**BELIEVED else total == 0

    def _known(self) -> set[str]:
        shapes = {name: p.shape for name, p in self.model.named_parameters() if p.requires_grad}
        return {name for name, total in self._sums.items() if shapes.get(name) == total.shape}

    def state_dict(self) -> dict[str, Any]:
        return {
            "steps": self._steps,
            "every": self.every,
            "sums": {name: total.clone() for name, total in self._sums.items()},
            "weights": dict(self._weights),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        device = {name: p.device for name, p in self.model.named_parameters()}
        self._sums = {name: total.to(device[name], copy=True) for name, total in state["sums"].items()}
        self._weights, self._steps, self.every = dict(state["weights"]), int(state["steps"]), int(state["every"])
