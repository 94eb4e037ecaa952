"""Milliseconds of a model by which units of its channel groups are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from resgrow.surgery.latency import ModelLatency
from resgrow.surgery.units import LEAST_TIME

Owners = Mapping[int, Tensor]


class ChannelLatency:
    """Args:
    latency: of the model.
    owners: ``{layer: {dimension of its weight: int64, the unit that each index belongs to}}`` on the CPU; units are
        numbered through all groups, and the number after the last one stands for nobody.
    sizes: units of each group.
    """

    def __init__(self, latency: ModelLatency, owners: Mapping[str, Owners], sizes: Sequence[int]) -> None:
        self._latency = latency
        full = latency.full
        self._layers = [_Layer(name, full[name], owners[name]) for name in full if name in owners]
        self._sizes = list(sizes)
        # Units of a group are alike, so that the mean of what they hold of a layer is what each of them holds.
        self._shares = [layer.shares(self._sizes) for layer in self._layers]

    def total(self, kept: Tensor) -> float:
        """Of the model with these units (bool, one for each and True for nobody)."""
        return self._latency.milliseconds({layer.name: layer.widths(kept) for layer in self._layers})

    def costs(self, kept: Tensor) -> list[float]:
        """What one present unit of each group would save by itself, averaged over the step of the time it stands on."""
        saved = [0.0] * len(self._sizes)
        for layer, shares in zip(self._layers, self._shares, strict=True):
            inputs, outputs = layer.widths(kept)
            touched = [group for group, share in enumerate(shares) if any(share)]
            before = self._latency.layer(layer.name, (inputs, outputs), smooth=True) if touched else 0.0
            for group in touched:
                fewer = (inputs - shares[group][0], outputs - shares[group][1])
                saved[group] += before - self._latency.layer(layer.name, fewer, smooth=True)
        return [max(amount, LEAST_TIME * self._latency.whole) for amount in saved]


@dataclass(frozen=True)
class _Layer:
    name: str
    full: tuple[int, int]
    owners: Owners

    def widths(self, kept: Tensor) -> tuple[float, float]:
        """``(inputs, outputs)`` of the layer with these units."""
        inputs, outputs = (
            float(kept[self.owners[dim]].sum()) if dim in self.owners else float(full)
            for dim, full in zip((1, 0), self.full, strict=True)
        )
        return inputs, outputs

    def shares(self, sizes: Sequence[int]) -> list[tuple[float, float]]:
        """Inputs and outputs that one unit of each group holds."""
        held = []
        for dim in (1, 0):
            counts = torch.bincount(self.owners.get(dim, torch.empty(0, dtype=torch.long)), minlength=sum(sizes) + 1)
            held.append([float(part.double().mean()) for part in counts[:-1].split(list(sizes))])
        return list(zip(*held, strict=True))
