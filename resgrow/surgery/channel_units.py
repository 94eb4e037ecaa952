"""Channels as units: a channel goes from its producer, its norm and its consumers at once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resgrow.surgery.groups import ChannelGroup, Slot, slots
from resgrow.surgery.units import Units, without


class ChannelUnits(Units):
    """Channels with everything coupled to them; one group per `ChannelGroup`, named after its producer.

    A channel covers its row of the producer's weight, its bias, the norm's gain and bias, a tri-state gate, and the
    consumers' columns. Each group always keeps one channel.
    """

    def __init__(
        self, model: nn.Module, groups: Sequence[ChannelGroup], positions: Mapping[str, float] | None = None
    ) -> None:
        super().__init__(model, positions)
        self.groups = tuple(group.producer for group in groups)
        self._sizes = [group.size for group in groups]
        self._slots = [slots(model, group) for group in groups]
        numbered = [(index, slot) for index, places in enumerate(self._slots) for slot in places]
        self._rows = {slot.parameter: index for index, slot in numbered if slot.dim == 0}
        self._columns = {slot.parameter: (index, slot.repeat) for index, slot in numbered if slot.dim == 1}
        covered = [slot.parameter for _, slot in numbered]
        self.parameters = tuple(dict.fromkeys(covered))
        weights = [f"{group.producer}.weight" for group in groups]
        readers = [f"{reader.name}.weight" for group in groups for reader in group.consumers]
        self.required = tuple(dict.fromkeys(weights + readers))

    def _sum(self, saliency: Mapping[str, Tensor]) -> list[Tensor]:
        sums = []
        for size, places in zip(self._sizes, self._slots, strict=True):
            parts = [
                _per_channel(saliency[slot.parameter].detach(), slot, size)
                for slot in places
                if slot.parameter in saliency
            ]
            sums.append(torch.stack(parts).sum(0))
        return sums

    def costs(self, masks: Mapping[str, Tensor] | None = None, by: str = "params") -> list[Tensor]:
        tables = {name: self._table(name, masks, by) for name in self.parameters}
        return [torch.stack([tables[slot.parameter].along(slot) for slot in places]).sum(0) for places in self._slots]

    def live(self, masks: Mapping[str, Tensor] | None = None) -> list[Tensor]:
        return [cost > 0 for cost in self.costs(masks, "params")]

    def to_masks(self, keep: Sequence[Tensor]) -> dict[str, Tensor]:
        masks = {}
        for name in self.parameters:
            parameter = self._model.get_parameter(name)
            masks[name] = torch.ones(parameter.shape, dtype=torch.bool, device=parameter.device)
        for kept, places in zip(keep, self._slots, strict=True):
            for slot in places:
                mask = masks[slot.parameter]
                shape = [1] * mask.dim()
                shape[slot.dim] = -1
                mask &= kept.to(mask.device).repeat_interleave(slot.repeat).view(shape)
        return masks

    def total(self, masks: Mapping[str, Tensor] | None = None, by: str = "params") -> float:
        return sum(float(self._table(name, masks, by).counts.sum()) for name in self.parameters)

    def _free(self, price: Tensor, live: Tensor) -> Tensor:
        """All live channels but the most expensive: without any channel nothing behind the group could learn."""
        free = live.clone()
        if live.any():
            free[price.masked_fill(~live, -torch.inf).argmax()] = False
        return free

    def _saved(
        self,
        live: list[Tensor],
        free: list[Tensor],
        order: Tensor,
        costs: list[Tensor],
        masks: Mapping[str, Tensor] | None,
        by: str,
    ) -> Callable[[int], float]:
        """Exact: where a layer loses rows and columns, their crossings are saved once, not twice."""
        tables = [self._table(name, masks, by) for name in self.parameters]
        before = sum(float(table.counts.sum()) for table in tables)

        def saved(count: int) -> float:
            keep = without(live, free, order[:count])
            return before - sum(table.left(keep) for table in tables)

        return saved

    def _table(self, name: str, masks: Mapping[str, Tensor] | None, by: str) -> "_Table":
        parameter = self._model.get_parameter(name)
        rows, columns = self._rows.get(name), self._columns.get(name)
        mask = None if masks is None else masks.get(name)
        shape = parameter.shape
        outer, inner = shape[0], shape[1] if len(shape) > 1 else 1
        if mask is None:
            taps = parameter.numel() // (outer * inner)
            counts = torch.full((outer, inner), float(taps), dtype=torch.float64, device=parameter.device)
        else:
            counts = mask.to(parameter.device).reshape(outer, inner, -1).sum(2, dtype=torch.float64)
        if columns is not None:
            counts = counts.unflatten(1, (-1, columns[1])).sum(2)
        return _Table(counts * self._factor(name, by), rows, None if columns is None else columns[0])


@dataclass(frozen=True)
class _Table:
    """Live cost of one parameter by (its row, its input channel) and the groups that these belong to, if any."""

    counts: Tensor
    rows: int | None
    columns: int | None

    def along(self, slot: Slot) -> Tensor:
        return self.counts.sum(1 - slot.dim)

    def left(self, keep: Sequence[Tensor]) -> float:
        counts = self.counts
        if self.rows is not None:
            counts = counts[keep[self.rows]]
        if self.columns is not None:
            counts = counts[:, keep[self.columns]]
        return float(counts.sum())


def _per_channel(x: Tensor, slot: Slot, size: int) -> Tensor:
    """Sums of ``x`` over everything but the slot's dimension: ``(size,)``, half precision to float32."""
    x = x if x.dtype == torch.float64 else x.float()
    return x.movedim(slot.dim, 0).reshape(size, -1).sum(1)
