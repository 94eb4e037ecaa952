"""What a masked model costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from resgrow.surgery import Masks, Units, count_macs, count_params


class Meter:
    """Live parameters, multiply-accumulates and milliseconds of a model whose units come and go.

    Args:
        by: the costs wanted, among "params", "macs" and "latency_ms"; by default parameters and, with example inputs,
            multiply-accumulates. Milliseconds are measured only where they are among them.

    Raises:
        ValueError: an unknown cost, or one that example inputs are missing for.
    """

    def __init__(
        self,
        model: nn.Module,
        units: Units,
        example_inputs: Tensor | tuple[Tensor, ...] | None,
        by: Sequence[str] | None = None,
    ) -> None:
        self.units = units
        wanted = by if by is not None else ("params",) if example_inputs is None else ("params", "macs")
        whole: dict[str, Callable[[], float]] = {
            "params": lambda: count_params(model),
            "macs": lambda: count_macs(model, () if example_inputs is None else example_inputs),
            "latency_ms": lambda: units.total(None, "latency_ms"),
        }
        if unknown := [cost for cost in wanted if cost not in whole]:
            raise ValueError(f"Meter: costs must be among {', '.join(whole)} (got {unknown})")
        if example_inputs is None and (needy := [cost for cost in wanted if cost != "params"]):
            raise ValueError(f"Meter: {', '.join(needy)} need example_inputs (got none); pass one batch of inputs")
        self.dense = {cost: float(whole[cost]()) for cost in wanted}
        # What units do not cover costs the same whatever they do.
        self._rest = {cost: amount - units.total(None, cost) for cost, amount in self.dense.items()}

    def cost(self, masks: Masks | dict[str, Tensor] | None) -> dict[str, float]:
        """``{cost: amount}`` of what ``masks`` leaves, of the costs that are wanted."""
        return {cost: rest + self.units.total(masks, cost) for cost, rest in self._rest.items()}
