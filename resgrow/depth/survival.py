"""Loss with and without each part of a model: means over training steps in which parts were left out at random."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

# Steps over which the loss's level is followed.
_LEVEL = 20
_TENSORS = ("counts", "weight", "squares", "first", "second")


class Survival:
    """Means of the loss when each of ``size`` parts survived and when it was dropped.

    Decisions are made at random beforehand, so the difference of the two means is what the part's absence costs,
    whatever else goes on. Two things keep its error small. What counts of a loss is how far it is above the level of
    the losses before, which tells nothing of this step's decisions and takes the fall of the loss out. And steps are
    forgotten, with weights ``(1 - 1 / memory)^age``, as parts matter more or less in the course of training.

    Attributes:
        counts: int64 ``(2, size)``, all observations so far: of survivals, and of drops.
    """

    def __init__(self, size: int, memory: int) -> None:
        self._decay = 1 - 1 / memory
        self._level: float | None = None
        self._losses = [0.0, 0.0]  # weighted number and sum
        self.counts = torch.zeros(2, size, dtype=torch.int64)
        # Sums of weights, of their squares, of weighted deviations and of weighted squares of these.
        self.weight, self.squares, self.first, self.second = torch.zeros(4, 2, size, dtype=torch.float64).unbind()

    def add(self, losses: Tensor, kept: Tensor, drawn: Tensor) -> None:
        """
        Args:
            losses: float64 ``(N,)``, finite.
            kept: bool ``(size, N)``, which survived. drawn: bool ``(size,)``, of which it was decided at all.
        """
        mean = float(losses.mean())
        if self._level is None:
            self._level = mean
            return
        deviations = (losses - self._level).expand(kept.shape)
        self._losses = [self._decay * self._losses[0] + 1, self._decay * self._losses[1] + mean]
        self._level += (mean - self._level) / _LEVEL
        for arm, chosen in enumerate((kept & drawn[:, None], ~kept & drawn[:, None])):
            number, own = chosen.sum(1), deviations * chosen
            self.counts[arm] += number
            self.weight[arm].mul_(self._decay).add_(number)
            self.squares[arm].mul_(self._decay**2).add_(number)
            self.first[arm].mul_(self._decay).add_(own.sum(1))
            self.second[arm].mul_(self._decay).add_(own.square().sum(1))

    def means(self) -> Tensor:
        """``(2, size)``: the mean loss with each part, and without; NaN where there is none."""
        level = self._losses[1] / self._losses[0] if self._losses[0] else math.nan
        above = self.first / self.weight
        return level + above - self.first.sum(0) / self.weight.sum(0)

    def differences(self) -> tuple[Tensor, Tensor]:
        """Means without less means with each part, ``(size,)``, and their standard errors (Welch's, weighted).

        NaN and infinity where less than two observations of either kind are remembered.
        """
        mean = self.first / self.weight
        freedom = self.weight - self.squares / self.weight
        variance = (self.second - self.weight * mean.square()).clamp_min(0) / freedom
        errors = (variance * self.squares).sqrt() / self.weight
        difference, error = mean[1] - mean[0], errors.square().sum(0).sqrt()
        # Two observations of weight 1 and nearly 1 have an effective number of 2 but for rounding.
        enough = (self.weight.square() / self.squares >= 1.5).all(0)
        return difference.where(enough, torch.nan), error.where(enough, torch.inf)

    def taken(self, sources: list[int | None]) -> Survival:
        """For other parts: what is known of those whose number is given, nothing of the others."""
        new = Survival(len(sources), 2)
        new._decay, new._level, new._losses = self._decay, self._level, list(self._losses)
        for at, source in enumerate(sources):
            if source is not None:
                for name in _TENSORS:
                    getattr(new, name)[:, at] = getattr(self, name)[:, source]
        return new

    def state_dict(self) -> dict[str, Any]:
        tensors = {name: getattr(self, name).clone() for name in _TENSORS}
        return {"decay": self._decay, "level": self._level, "losses": list(self._losses), **tensors}

    @classmethod
    def of(cls, state: dict[str, Any]) -> Survival:
        """Of a `state_dict`."""
        new = cls(state["counts"].shape[1], 2)
        new._decay, new._level, new._losses = state["decay"], state["level"], list(state["losses"])
        for name in _TENSORS:
            getattr(new, name).copy_(state[name])
        return new
