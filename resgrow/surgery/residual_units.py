"""Residual branches as units: a branch goes with all that serves nothing else, and its stream flows past."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from resgrow.surgery.structure.residuals import ResidualBranch
from resgrow.surgery.units import Units, without


class ResidualUnits(Units):
    """Whole residual branches; each is a group of its own, with one unit.

    Groups are named after the module that a branch makes up ("layer3.1"), or by the part of it in which the branch ends
    where one has several ("encoder.layer.0.attention"). A unit's score is that of the branch's end: the saliency of the
    parameters which, zero, make the branch zero, so that it predicts what removal does. Its cost is that of all
    parameters which nothing outside of the branch reads; masks of a unit are False in all of these, upon which
    `resgrow.compact` takes the branch out. What a branch shares with others stays.

    Branches can lie inside others. The inner one is gone with the outer one, and is not paid for twice.

    Args:
        branches: of the model, as `resgrow.surgery.structure.residuals` finds them; at least one.
        positions: see `Units`.

    Attributes:
        last: for each group the names of the parameters at the branch's end.
    """

    def __init__(
        self, model: nn.Module, branches: Sequence[ResidualBranch], positions: Mapping[str, float] | None = None
    ) -> None:
        super().__init__(model, positions)
        covered = {name for branch in branches for name in branch.parameters}
        self.groups = tuple(branch.path for branch in branches)
        self.last = tuple(branch.last for branch in branches)
        self.parameters = tuple(name for name, _ in model.named_parameters() if name in covered)
        self.required = tuple(dict.fromkeys(name for last in self.last for name in last))
        self._inside = [frozenset(branch.parameters) for branch in branches]

    def _sum(self, saliency: Mapping[str, Tensor]) -> list[Tensor]:
        return [self._joined([saliency[name].detach() for name in last]) for last in self.last]

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        total = torch.stack([part.sum(dtype=torch.float64).to(self._device) for part in parts]).sum()
        exact = any(part.dtype == torch.float64 for part in parts)
        return (total if exact else total.float()).view(1)

    def costs(self, masks: Mapping[str, Tensor] | None = None, by: str = "params") -> list[Tensor]:
        amounts = self._amounts(masks, by)
        return [
            torch.tensor([sum(amounts[name] for name in inside)], dtype=torch.float64, device=self._device)
            for inside in self._inside
        ]

    def live(self, masks: Mapping[str, Tensor] | None = None) -> list[Tensor]:
        return [cost > 0 for cost in self.costs(masks)]

    def to_masks(self, keep: Sequence[Tensor]) -> dict[str, Tensor]:
        gone = self._covered(number for number, kept in enumerate(keep) if not bool(kept))
        parameters = {name: self._model.get_parameter(name) for name in self.parameters}
        return {
            name: torch.full_like(parameter, name not in gone, dtype=torch.bool)
            for name, parameter in parameters.items()
        }

    def total(self, masks: Mapping[str, Tensor] | None = None, by: str = "params") -> float:
        return sum(self._amounts(masks, by).values())

    def select(
        self,
        scores: Sequence[Tensor],
        save: float,
        masks: Mapping[str, Tensor] | None = None,
        by: str = "params",
        groups: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """As `Units.select`. What is inside of a branch that goes is not kept either."""
        keep = super().select(scores, save, masks, by, groups)
        gone = self._covered(number for number, kept in enumerate(keep) if not bool(kept))
        return [kept & (not inside <= gone) for kept, inside in zip(keep, self._inside, strict=True)]

    def _saved(
        self,
        live: list[Tensor],
        free: list[Tensor],
        order: Tensor,
        costs: list[Tensor],
        masks: Mapping[str, Tensor] | None,
        by: str,
    ) -> Callable[[int], float]:
        """Exact: what an inner branch and the outer one have in common is saved once."""
        amounts = self._amounts(masks, by)

        def saved(count: int) -> float:
            keep = without(live, free, order[:count])
            gone = (number for number, (there, kept) in enumerate(zip(live, keep, strict=True)) if bool(there & ~kept))
            return sum(amounts[name] for name in self._covered(gone))

        return saved

    def _amounts(self, masks: Mapping[str, Tensor] | None, by: str) -> dict[str, float]:
        """The live cost of each parameter."""
        present = masks or {}
        return {
            name: self._factor(name, by)
            * (int(present[name].sum()) if name in present else self._model.get_parameter(name).numel())
            for name in self.parameters
        }

    def _covered(self, units: Iterable[int]) -> frozenset[str]:
        """Parameters of these units."""
        return frozenset().union(*(self._inside[number] for number in units))

    @property
    def _device(self) -> torch.device:
        return self._model.get_parameter(self.parameters[0]).device
