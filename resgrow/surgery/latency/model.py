"""Milliseconds of a whole model by the widths and densities of its layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial

from torch import nn

from resgrow.surgery.forward import Example
from resgrow.surgery.latency.density import DensityCurve
from resgrow.surgery.latency.layer import LayerCall, layer_calls, layer_time, model_seconds
from resgrow.surgery.latency.surface import Surface

Widths = tuple[float, float]


class ModelLatency:
    """Predicted milliseconds of a forward pass in evaluation mode, on the example's batch, by what layers have left.

    The model and each of its Conv2d and Linear layers that is called as a module are measured in turns, once, for which
    weights and inputs of all layers are held a second time. With fewer channels a layer takes the share of its time
    that `Surface` gives. What is left of the model's time belongs to everything else (norms, activations, additions,
    pooling, attention's products, layers of other kinds, Python) and is taken for proportional to the channels times
    positions that come out of all layers. Of LeNet-5, ResNet-20 and ResNet-18 without a fifth to half of their channels
    that was 4 % off in the median and 22 % at most (half a millisecond of LeNet-5 at batch 1, which is mostly Python);
    taken for constant 6.5 % and 72 %, see ``benchmarks/results/2026-11-30-cpu-latency-model.md``. Where layers take
    longer one by one than all together, their times are scaled down to the model's.

    Nothing is measured before the first question. Layers' times by width and density are kept in the cache of
    `resgrow.surgery.measure`; the model's own time is measured by every object. The number of threads, devices,
    dtypes and memory formats are those at the first question; autocast is off.

    Raises (from any question):
        ValueError: the model does not run on the example, or is on neither CPU nor CUDA.
        TypeError: it returns no tensor.
    """

    def __init__(self, model: nn.Module, example: Example) -> None:
        self._model = model
        self._example = example

    @property
    def full(self) -> dict[str, tuple[int, int]]:
        """``{layer: (inputs, outputs)}``, dimensions 1 and 0 of its weight, of the layers that ran."""
        return {name: layer.calls[0].weight for name, layer in self._measured.layers.items()}

    @property
    def whole(self) -> float:
        """Milliseconds of the model as it is."""
        return self._measured.whole

    def milliseconds(self, widths: Mapping[str, Widths]) -> float:
        """Of the model with these layers so wide, and others as they are. Never falls with a width.

        Args:
            widths: ``{layer: (inputs, outputs)}``, dimensions 1 and 0 of its weight.
        """
        gone = [
            self.layer(name, full) - self.layer(name, widths[name])
            for name, full in self.full.items()
            if name in widths
        ]
        return self.whole - sum(gone)

    def layer(self, name: str, widths: Widths, smooth: bool = False) -> float:
        """Of one layer and of what belongs to its outputs; ``smooth`` as `Surface.seconds` has it."""
        layer = self._measured.layers[name]
        inputs, outputs = widths
        alone = sum(
            seconds * surface.seconds(inputs, outputs, smooth) / surface.seconds(*call.weight)
            for call, seconds, surface in zip(layer.calls, layer.alone, layer.surfaces, strict=True)
        )
        return alone + layer.around * max(outputs, 0.0) / layer.calls[0].weight[1]

    def saved_by_blocks(self, name: str, block: tuple[int, int], density: float) -> float:
        """Milliseconds less where this share of a layer's blocks is present, and `swap` chooses the faster form."""
        layer = self._measured.layers.get(name)
        if layer is None or density >= 1:
            return 0.0
        curves = self._measured.curves
        if (name, block) not in curves:
            largest = max(layer.calls, key=lambda call: call.positions)
            curves[name, block] = DensityCurve.of(self._model, name, largest, block)
        return sum(layer.alone) * (1 - curves[name, block].share(density))

    @cached_property
    def _measured(self) -> _Measured:
        calls = layer_calls("latency", self._model, self._example)
        distinct = list(dict.fromkeys(call for each in calls.values() for call in each))
        whole, *seconds = model_seconds(self._model, self._example, distinct)
        alone = dict(zip(distinct, seconds, strict=True))
        together = sum(alone[call] for each in calls.values() for call in each)
        carried = sum(call.positions * call.weight[1] for each in calls.values() for call in each)
        scale = 1e3 * min(1.0, whole / together) if together else 0.0
        rest = max(0.0, whole - together) * 1e3 / carried if carried else 0.0
        surfaces = {call: _surface(call) for call in distinct}
        layers = {
            name: _Layer(
                each,
                [scale * alone[call] for call in each],
                [surfaces[call] for call in each],
                rest * sum(call.positions * call.weight[1] for call in each),
            )
            for name, each in calls.items()
        }
        return _Measured(1e3 * whole, layers, {})


@dataclass(frozen=True)
class _Layer:
    """``alone``: milliseconds of each call; ``around``: of what belongs to the outputs of all."""

    calls: list[LayerCall]
    alone: list[float]
    surfaces: list[Surface]
    around: float


@dataclass(frozen=True)
class _Measured:
    whole: float
    layers: dict[str, _Layer]
    curves: dict[tuple[str, tuple[int, int]], DensityCurve]


def _surface(call: LayerCall) -> Surface:
    return Surface(call.weight, (1, call.group_outputs), partial(layer_time, call))
