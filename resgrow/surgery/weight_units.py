"""Single weights and blocks of weights as units."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from resgrow import ops
from resgrow._blocks import block_sums
from resgrow.surgery.latency import ModelLatency
from resgrow.surgery.units import LEAST_TIME, Units, check_scores, unreachable, without


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
        latency: ModelLatency | None = None,
    ) -> None:
        super().__init__(model, positions, latency)
        self.parameters = self.required = self.groups = tuple(names)
        self._block = block

    def _sum(self, saliency: Mapping[str, Tensor]) -> list[Tensor]:
        return [block_sums(saliency[name].detach(), self._block) for name in self.parameters]

    def costs(self, masks: Mapping[str, Tensor] | None = None, by: str = "params") -> list[Tensor]:
        if by == "latency_ms":
            return self._shares_of_time(self.live(masks))
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

    def total(self, masks: Mapping[str, Tensor] | None = None, by: str = "params") -> float:
        return self._milliseconds(self.live(masks)) if by == "latency_ms" else super().total(masks, by)

    def _saved(
        self,
        live: list[Tensor],
        free: list[Tensor],
        order: Tensor,
        costs: list[Tensor],
        masks: Mapping[str, Tensor] | None,
        by: str,
    ) -> Callable[[int], float]:
        if by != "latency_ms":
            return super()._saved(live, free, order, costs, masks, by)
        whole = self._milliseconds(live)
        return lambda count: whole - self._milliseconds(without(live, free, order[:count]))

    def _milliseconds(self, keep: Sequence[Tensor]) -> float:
        """Of the model with these blocks."""
        gone = [self._saved_in(name, _density(kept)) for name, kept in zip(self.parameters, keep, strict=True)]
        return self._needed_latency().whole - sum(gone)

    def _shares_of_time(self, live: list[Tensor]) -> list[Tensor]:
        """Equal shares of what a layer saves without all its blocks: on the way there, the first ones save nothing
        until the block-sparse layer is faster than the dense one, and who counts that never gets there."""
        least = LEAST_TIME * self._needed_latency().whole
        costs = []
        for name, there in zip(self.parameters, live, strict=True):
            ahead = self._saved_in(name, 0.0) - self._saved_in(name, _density(there))
            costs.append(there.double() * max(ahead / max(1, int(there.sum())), least))
        return costs

    def _saved_in(self, name: str, density: float) -> float:
        latency = self._needed_latency()
        layers = [alias.rpartition(".")[0] for alias in self._names[name]]
        return sum(latency.saved_by_blocks(layer, self._block, density) for layer in layers)

    def _present(self, name: str, masks: Mapping[str, Tensor] | None) -> Tensor:
        parameter = self._model.get_parameter(name)
        if masks is None or name not in masks:
            return torch.ones(parameter.shape, dtype=torch.bool, device=parameter.device)
        return masks[name].to(parameter.device)


class WeightUnits(BlockUnits):
    """Single weights: every element of a candidate, a weight or a bias, is a unit."""

    def __init__(self, model: nn.Module, names: Sequence[str], positions: Mapping[str, float] | None = None) -> None:
        super().__init__(model, names, (1, 1), positions)

    def _sum(self, saliency: Mapping[str, Tensor]) -> list[Tensor]:
        return [saliency[name].detach().clone() for name in self.parameters]

    def costs(self, masks: Mapping[str, Tensor] | None = None, by: str = "params") -> list[Tensor]:
        if by == "latency_ms":
            self._needed_latency()
        return [self._present(name, masks).float() * self._factor(name, by) for name in self.parameters]

    def _needed_latency(self) -> ModelLatency:
        raise ValueError(
            "costs: by='latency_ms' needs channels or blocks (got single weights, without which a dense layer is no "
            "faster); make units with block='channel' or block=(16, 1)"
        )

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


def _density(live: Tensor) -> float:
    return float(live.double().mean()) if live.numel() else 1.0
