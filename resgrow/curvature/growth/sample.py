"""Positions that stand for all positions of a layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Drawn:
    """Values ``(n, r, O)`` at positions ``drawn (n, r)`` of ``n`` samples, or at all of them where that is None."""

    values: Tensor
    drawn: Tensor | None

    def part(self, start: int, stop: int) -> Drawn:
        """Of some of the samples."""
        return Drawn(self.values[start:stop], None if self.drawn is None else self.drawn[start:stop])

    def seen(self, view: Tensor) -> Tensor:
        """Of ``view (n, D, *positions)`` what is at these positions, ``(D, n r)``."""
        if self.drawn is None:
            return view.transpose(0, 1).flatten(1)
        samples = torch.arange(len(view), device=view.device)[:, None]
        return view[(samples, slice(None), *places(self.drawn, view.shape[2:]))].flatten(0, 1).T


class Draws:
    """Positions of one pass over data: each layer has random numbers of its own, which are the same in every pass.

    Args:
        most: of each sample; None: all.
    """

    def __init__(self, most: int | None) -> None:
        self.most = most
        self._generators: dict[nn.Module, torch.Generator] = {}

    def of(self, layer: nn.Module, samples: int, positions: int, device: torch.device) -> Tensor | None:
        """``(samples, most)`` of a layer's positions, no sample's twice; None for all."""
        if self.most is None or positions <= self.most:
            return None
        generator = self._generators.setdefault(layer, torch.Generator().manual_seed(0))
        order = torch.rand(samples, positions, generator=generator).argsort(1)
        return order[:, : self.most].to(device)


def at(values: Tensor, drawn: Tensor | None) -> Tensor:
    """``(n, r, ...)`` of values ``(n, Q, ...)``."""
    if drawn is None:
        return values
    return values[torch.arange(len(values), device=values.device)[:, None], drawn]


def places(drawn: Tensor, shape: Sequence[int]) -> tuple[Tensor, ...]:
    """Coordinates of positions, numbered with the last dimension of their shape running fastest."""
    return torch.unravel_index(drawn, torch.Size(shape))
