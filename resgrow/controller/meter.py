"""What a masked model costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from resgrow.surgery import ResidualUnits, Units, count_params, layer_positions
from resgrow.surgery.forward import AnyInputs


class Meter:
    """Live parameters, multiply-accumulates and milliseconds of a model whose units come and go.

    Args:
        families: the units that can go.
        wanted: kinds of cost with a limit; parameters are counted anyway, and multiply-accumulates wherever there are
            example inputs.
    """

    def __init__(
        self, model: nn.Module, families: Sequence[Units], example_inputs: AnyInputs | None, wanted: Sequence[str] = ()
    ) -> None:
        self._model = model
        # Any family that knows of time will do: it is the whole model's.
        timed = [units for units in families if not isinstance(units, ResidualUnits)] or families
        self._timed = timed[0] if "latency_ms" in wanted else None
        self._positions = None if example_inputs is None else layer_positions(model, example_inputs)

    def cost(self, masks: Mapping[str, Tensor] | None) -> dict[str, float]:
        """``{"params": ..., "macs": ..., "latency_ms": ...}`` of what ``masks`` leaves, as far as it is known."""
        absent = {name: int((~mask).sum()) for name, mask in (masks or {}).items()}
        cost = {"params": float(count_params(self._model) - sum(absent.values()))}
        if self._positions is not None:
            gone = {id(self._model.get_parameter(name)): count for name, count in absent.items()}
            weights = {name: self._model.get_submodule(name).get_parameter("weight") for name in self._positions}
            live = {name: weight.numel() - gone.get(id(weight), 0) for name, weight in weights.items()}
            cost["macs"] = float(round(sum(self._positions[name] * count for name, count in live.items())))
        if self._timed is not None:
            cost["latency_ms"] = self._timed.total(masks, "latency_ms")
        return cost
