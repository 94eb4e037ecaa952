"""What ``ripple`` found: a row per layer, and the table of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from resgrow._text import table


@dataclass(frozen=True)
class LayerRipple:
    """One layer. None: not asked for, or not to be had (`Ripple.notes` says why).

    Attributes:
        name: its first one in the model; empty for the model itself.
        kind: its class.
        params: elements of its own parameters; shared ones are those of the first layer that has them.
        macs: multiply-accumulates per sample, as `resgrow.profile` counts them.
        analytic: expected rise of the mean loss, to second order.
        measured: mean rise of the mean loss over random perturbations.
        error: standard error of that mean over pairs of perturbations; None for a single pair.
        reach: relative change of the model's output.
        gain: ``rho+`` of the first new units together, see `resgrow.growth_gain`; None where the layer cannot grow so.
        downstream: relative change of the output of each layer that notices, its own first.
    """

    name: str
    kind: str
    params: int
    macs: int | None
    analytic: float
    measured: float | None
    error: float | None
    reach: float | None
    gain: float | None
    downstream: Mapping[str, float]


@dataclass(frozen=True)
class Ripple:
    """Made by `resgrow.ripple`; print it for a table.

    Attributes:
        layers: in the order of the model's modules.
        sigma: relative size of the perturbations.
        loss: the mean loss without any.
        curvature: method of the analytic ripple.
        draws: pairs of perturbations behind each measured ripple.
        directions: random directions behind each reach.
        units: new units behind each gain.
        notes: what could not be had as asked for, and why.
    """

    layers: tuple[LayerRipple, ...]
    sigma: float
    loss: float
    curvature: str
    draws: int
    directions: int
    units: int
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> LayerRipple:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    def to_rows(self) -> list[dict[str, Any]]:
        """A dictionary of plain numbers per layer, for CSV; without ``downstream``."""
        return [
            {key: value for key, value in layer.items() if key != "downstream"} for layer in self.as_dict()["layers"]
        ]

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON; `resgrow.report.draw_ripple` draws it."""
        return asdict(self)

    def __repr__(self) -> str:
        return f"Ripple({len(self.layers)} layers, sigma {self.sigma:g}, loss {self.loss:.4g})"

    def __str__(self) -> str:
        columns: dict[str, Callable[[LayerRipple], str]] = {
            "layer": lambda layer: layer.name or "(model)",
            "kind": lambda layer: layer.kind,
            "params": lambda layer: f"{layer.params:,}",
            "MACs": lambda layer: "" if layer.macs is None else f"{layer.macs:,}",
            "analytic": lambda layer: _signed(layer.analytic),
            "measured": lambda layer: _signed(layer.measured),
            "±": lambda layer: "" if layer.error is None else f"{layer.error:.1e}",
            "reach": lambda layer: "" if layer.reach is None else f"{100 * layer.reach:.2f} %",
            "gain": lambda layer: "" if layer.gain is None else f"{layer.gain:.3g}",
        }
        shown = {
            title: cells for title, show in columns.items() if any(cells := [show(layer) for layer in self.layers])
        }
        rows = list(zip(*shown.values(), strict=True))
        return "\n".join([table(list(shown), rows, ("layer", "kind")), self._footer(), *self.notes])

    def _footer(self) -> str:
        parts = [f"loss {self.loss:.4g}", f"sigma {self.sigma:g}", f"curvature {self.curvature}"]
        parts += [f"{self.draws} pair{'s' * (self.draws > 1)} of draws"] if self.draws else []
        parts += [f"{self.directions} direction{'s' * (self.directions > 1)}"] if self.directions else []
        gains = any(layer.gain is not None for layer in self.layers)
        parts += [f"gain of {self.units} unit{'s' * (self.units > 1)}"] if gains else []
        return ", ".join(parts)


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.2e}"
