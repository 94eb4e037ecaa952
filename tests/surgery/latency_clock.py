"""A clock by which layers take what a formula says, so that predictions can be compared with the truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from resgrow.surgery.forward import Example
from resgrow.surgery.latency import layer as layers

PER_CALL, PER_PRODUCT, PER_ACTIVATION = 3e-5, 1e-9, 2e-8  # seconds
REFERENCE = 1e-3


def layer_seconds(call: layers.LayerCall) -> float:
    """Linear in each width: interpolation is exact."""
    inputs, outputs = call.weight
    taps = 1
    for size in dict(call.settings).get("kernel_size", ()):
        taps *= size
    return PER_CALL + PER_PRODUCT * inputs * outputs * taps * call.positions


def true_seconds(model: nn.Module, *args: torch.Tensor) -> float:
    """Of all calls of layers, and of the activations that come out of them."""
    calls = [each for made in layers.layer_calls("test", model, Example(args)).values() for each in made]
    return sum(layer_seconds(call) + PER_ACTIVATION * call.positions * call.weight[1] for call in calls)


class Clock:
    """Stands in for the measurements of `resgrow.surgery.latency`.

    Attributes:
        models, layers: how often the whole model was measured, and layers one by one.
        drift: by which the machine is slower when layers are measured.
    """

    def __init__(self) -> None:
        self.models = 0
        self.layers = 0
        self.drift = 1.0

    def timed(self, calls: Sequence[Callable[[], object]], device: torch.device, patience: float) -> list[float]:
        first: Any = calls[0]
        if isinstance(calls[-1], partial) and not isinstance(first.func, nn.Conv2d | nn.Linear):
            self.models += 1
            return [true_seconds(first.func, *first.args), *(self._layer(call) for call in calls[1:])]
        self.layers += 1
        return [self.drift * self._layer(first), self.drift * REFERENCE]

    @staticmethod
    def _layer(call: Any) -> float:
        (made,) = layers.layer_calls("test", call.func, Example(call.args)).values()
        return layer_seconds(made[0])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(layers, "timed", made.timed)
    return made
