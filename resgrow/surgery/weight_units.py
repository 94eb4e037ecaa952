"""Single weights and blocks of weights as units."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from resgrow import ops
from resgrow._blocks import block_sums
from resgrow.surgery.units import Units, check_scores, unreachable


class BlockUnits(Units):
    """Blocks of ``bo`` output by ``bi`` input channels of one kernel tap; ragged at the upper edges.

    Groups are the candidate weights; a weight ``(O, I, *k)`` has units ``(ceil(O / bo), ceil(I / bi), *k)``.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        block: tuple[int, int],
        positions: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(model, positions)
        self.parameters = self.required = self.groups = tuple(names)
        self._block = block

    def _sum(self, saliency: Mapping[str, Tensor]) -> list[Tensor]:
        return [block_sums(saliency[name].detach(), self._block) for name in self.parameters]

    def costs(self, masks: Mapping[str, Tensor] | None = None, by: str = "params") -> list[Tensor]:
        present = [self._present(name, masks) for name in self.parameters]
        return [
            block_sums(mask.float(), self._block) * self._factor(name, by)
            for name, mask in zip(self.parameters, present, strict=True)
        ]

    def live(self, masks: Mapping[str, Tensor] | None = None) -> list[Tensor]:
        return [block_sums(self._present(name, masks).float(), self._block) > 0 for name in self.parameters]

    def to_masks(self, keep: Sequence[Tensor]) -> dict[str, Tensor]:
        masks = {}
        for name, kept in zip(self.parameters, keep, strict=True):
            rows, columns = self._model.get_parameter(name).shape[:2]
            spread = kept.repeat_interleave(self._block[0], 0)[:rows]
            masks[name] = spread.repeat_interleave(self._block[1], 1)[:, :columns]
        return masks

    def _present(self, name: str, masks: Mapping[str, Tensor] | None) -> Tensor:
        parameter = self._model.get_parameter(name)
        if masks is None or name not in masks:
            return torch.ones(parameter.shape, dtype=torch.bool, device=parameter.device)
        return masks[name].to(parameter.device)


class WeightUnits(BlockUnits):
    """Single weights: every element of a candidate weight is a unit."""

    def __init__(self, model: nn.Module, names: Sequence[str], positions: Mapping[str, float] | None = None) -> None:
        super().__init__(model, names, (1, 1), positions)

    def live(self, masks: Mapping[str, Tensor] | None = None) -> list[Tensor]:
        return [self._present(name, masks).clone() for name in self.parameters]

    def to_masks(self, keep: Sequence[Tensor]) -> dict[str, Tensor]:
        return dict(zip(self.parameters, keep, strict=True))

    def select(
        self,
        scores: Sequence[Tensor],
        save: float,
        masks: Mapping[str, Tensor] | None = None,
        by: str = "params",
        groups: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """As `Units.select`. All weights cost one parameter, so by="params" needs no sort, only a k-th smallest."""
        if by != "params":
            return super().select(scores, save, masks, by, groups)
        keep = self.live(masks)
        check_scores(scores, keep)
        if save <= 0:
            return keep
        chosen = [index for index in range(len(keep)) if groups is None or index in groups]
        dtype = torch.float64 if any(scores[index].dtype == torch.float64 for index in chosen) else torch.float32
        pool = [scores[index].to(dtype).masked_fill(~keep[index], -math.inf) for index in chosen]
        live = self._count(keep, groups)
        dead = sum(keep[index].numel() for index in chosen) - live
        if math.ceil(save) > live:
            raise ValueError(unreachable(save, live, by))
        for index, kept in zip(chosen, ops.select_mask(pool, dead + math.ceil(save)), strict=True):
            keep[index] = kept
        return keep

    def savable(
        self,
        scores: Sequence[Tensor],
        masks: Mapping[str, Tensor] | None = None,
        by: str = "params",
        groups: Sequence[int] | None = None,
    ) -> float:
        if by != "params":
            return super().savable(scores, masks, by, groups)
        return float(self._count(self.live(masks), groups))

    def _count(self, live: Sequence[Tensor], groups: Sequence[int] | None) -> int:
        return sum(int(there.sum()) for index, there in enumerate(live) if groups is None or index in groups)
