"""What a masked model costs."""

from __future__ import annotations

from torch import Tensor, nn

from resgrow.surgery import Masks, Units, count_macs, count_params


class Meter:
    """Live parameters and multiply-accumulates of a model whose units come and go."""

    def __init__(self, model: nn.Module, units: Units, example_inputs: Tensor | tuple[Tensor, ...] | None) -> None:
        self.units = units
        self.dense = {"params": float(count_params(model))}
        if example_inputs is not None:
            self.dense["macs"] = float(count_macs(model, example_inputs))
        # What units do not cover costs the same whatever they do.
        self._rest = {by: cost - units.total(None, by) for by, cost in self.dense.items()}

    def cost(self, masks: Masks | dict[str, Tensor] | None) -> dict[str, float]:
        """``{"params": ..., "macs": ...}`` of what ``masks`` leaves; without example inputs no ``macs``."""
        return {by: rest + self.units.total(masks, by) for by, rest in self._rest.items()}
