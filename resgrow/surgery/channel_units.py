"""Channels as units: a channel goes from its producer, its norm and its consumers at once; so does a head."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor, nn

from resgrow.surgery.channel_latency import ChannelLatency
from resgrow.surgery.latency import ModelLatency
from resgrow.surgery.structure import Group
from resgrow.surgery.units import Units, without


class ChannelUnits(Units):
    """Channels, neurons or heads with everything coupled to them; one group per `Group`, named after its first place.

    A channel covers its row of the producer's weight, its bias, the norm's gain and bias, a tri-state gate, and the
    consumers' columns; in other models whatever its places say. Each group always keeps one unit.

    Args:
        groups: their places are parameters of the model, by ``model.named_parameters()``; each index of each dimension
            belongs to one unit at most.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[Group],
        positions: Mapping[str, float] | None = None,
        latency: ModelLatency | None = None,
    ) -> None:
        super().__init__(model, positions, latency)
        self.groups = tuple(group.places[0].name.removesuffix(".weight") for group in groups)
        self._sizes = [group.size for group in groups]
        self._inside = [frozenset(place.name for place in group.places) for group in groups]
        self._covers = _covers(model, groups)
        self.parameters = tuple(self._covers)
        self.required = tuple(name for name, cover in self._covers.items() if len(cover.shape) > 1)
        self._whole: dict[str, Tensor] = {}

    def _sum(self, saliency: Mapping[str, Tensor]) -> list[Tensor]:
        used = [name for name in self._covers if name in saliency]
        exact = any(saliency[name].dtype == torch.float64 for name in used)
        sums = self._zeros()
        for name in used:
            cover = self._covers[name]
            cover.add_sums(cover.table(saliency[name].detach()), sums)
        return self._split(sums if exact else sums.float())

    def costs(self, masks: Mapping[str, Tensor] | None = None, by: str = "params") -> list[Tensor]:
        if by == "latency_ms":
            live = self.live(masks)
            each = self._by_width.costs(_with_nobody(live).cpu())
            return [there.double() * cost for there, cost in zip(live, each, strict=True)]
        if not masks:
            return self._split(self._whole_costs(by).clone())
        costs = self._zeros()
        for name, cover in self._covers.items():
            part = torch.zeros_like(costs)
            if name in masks:
                cover.add_sums(cover.table(masks[name].to(costs.device)), part)
            else:
                part += cover.sizes(len(part)).to(part.device)
            costs += part * self._factor(name, by)
        return self._split(costs)

    def live(self, masks: Mapping[str, Tensor] | None = None) -> list[Tensor]:
        return [cost > 0 for cost in self.costs(masks, "params")]

    def to_masks(self, keep: Sequence[Tensor]) -> dict[str, Tensor]:
        kept = _with_nobody(keep)
        return {
            name: cover.present(kept.to(self._model.get_parameter(name).device)) for name, cover in self._covers.items()
        }

    def total(self, masks: Mapping[str, Tensor] | None = None, by: str = "params") -> float:
        if by == "latency_ms":
            return self._by_width.total(_with_nobody(self.live(masks)).cpu())
        present = masks or {}
        return sum(
            self._factor(name, by) * (int(present[name].sum()) if name in present else prod(cover.shape))
            for name, cover in self._covers.items()
        )

    def _free(self, price: Tensor, live: Tensor) -> Tensor:
        """All live units but the most expensive: without any nothing behind the group could learn."""
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
        """Exact: where units cross, as rows and columns of one weight do, what they share is saved once."""
        if by == "latency_ms":
            whole = self._by_width.total(_with_nobody(live).cpu())
            return lambda count: whole - self._by_width.total(_with_nobody(without(live, free, order[:count])).cpu())
        touched = frozenset().union(*(names for names, spare in zip(self._inside, free, strict=True) if spare.any()))
        parts = []
        for name in sorted(touched):
            cover, factor = self._covers[name], self._factor(name, by)
            mask = (masks or {}).get(name)
            parts.append((cover, factor, None if mask is None else cover.table(mask.to(order.device))))

        def left(keep: list[Tensor]) -> float:
            kept = _with_nobody(keep).double()
            amounts = [cover.left(kept, table) * factor for cover, factor, table in parts]
            return float(torch.stack(amounts).sum()) if amounts else 0.0

        before = left(live)
        return lambda count: before - left(without(live, free, order[:count]))

    @cached_property
    def _by_width(self) -> ChannelLatency:
        owners: dict[str, dict[int, Tensor]] = {}
        for name, cover in self._covers.items():
            layers = [alias.rpartition(".") for alias in self._names[name]]
            along = dict(zip(cover.dims, cover.owners, strict=True))
            owners |= {layer: along for layer, _, attribute in layers if attribute == "weight"}
        return ChannelLatency(self._needed_latency(), owners, self._sizes)

    def _zeros(self) -> Tensor:
        """One for each unit, and one for what belongs to none."""
        device = self._model.get_parameter(self.parameters[0]).device
        return torch.zeros(sum(self._sizes) + 1, dtype=torch.float64, device=device)

    def _split(self, values: Tensor) -> list[Tensor]:
        return list(values[:-1].split(self._sizes))

    def _whole_costs(self, by: str) -> Tensor:
        """What each unit costs in the full model: depends on shapes alone, and is asked for group by group."""
        if by not in self._whole:
            costs = self._zeros().cpu()
            for name, cover in self._covers.items():
                costs += cover.sizes(len(costs)) * self._factor(name, by)
            self._whole[by] = costs
        return self._whole[by].to(self._zeros().device)


@dataclass(frozen=True)
class _Cover:
    """What units cover of one parameter of this shape: the dimensions ``dims``, at least one.

    ``owners``: for each of these, int64 ``(size,)``, the units that its indices belong to; the number after the last
    unit's stands for nobody. ``crossing``: pairs of positions in ``dims`` with a unit in both, as a layer has that
    reads and feeds the same residual stream.
    """

    shape: tuple[int, ...]
    dims: tuple[int, ...]
    owners: tuple[Tensor, ...]
    crossing: frozenset[tuple[int, int]]

    def table(self, x: Tensor) -> Tensor:
        """Sums of a tensor of the parameter's shape over all other dimensions: float64, with ``dims`` left."""
        rest = [dim for dim in range(x.dim()) if dim not in self.dims]
        return x.sum(rest, dtype=torch.float64) if rest else x.double()

    def add_sums(self, table: Tensor, sums: Tensor) -> None:
        """Adds to ``sums``, one number for each unit and one for nobody, what units have in a table.

        Elements in several dimensions of a unit are added once.
        """
        for at, owner in enumerate(self.owners):
            own = table
            for before in range(at):
                if (before, at) in self.crossing:
                    own = own.masked_fill(self._along(self.owners[before], before) == self._along(owner, at), 0)
            others = [dim for dim in range(own.dim()) if dim != at]
            sums.index_add_(0, owner.to(sums.device), own.sum(others) if others else own)

    def sizes(self, count: int) -> Tensor:
        """`add_sums` of a table of ones, in closed form: float64 ``(count,)``, on the CPU."""
        spared = torch.ones(count, dtype=torch.float64)
        for owner in self.owners:
            spared *= len(owner) - torch.bincount(owner, minlength=count)
        whole = prod(self.shape[dim] for dim in self.dims)
        return (whole - spared) * (prod(self.shape) // whole)

    def left(self, kept: Tensor, table: Tensor | None) -> Tensor:
        """What is left of a table, or of all elements, with these units (0. or 1., ``(units + 1,)``): a scalar."""
        there = [kept[owner.to(kept.device)] for owner in self.owners]
        if table is None:
            taps = prod(self.shape) // prod(self.shape[dim] for dim in self.dims)
            return torch.stack([each.sum() for each in there]).prod() * taps
        for each in reversed(there):
            table = table @ each
        return table

    def present(self, kept: Tensor) -> Tensor:
        """A bool mask of the parameter's shape: the elements all of whose units are kept."""
        mask = torch.ones(self.shape, dtype=torch.bool, device=kept.device)
        for dim, owner in zip(self.dims, self.owners, strict=True):
            shape = [1] * len(self.shape)
            shape[dim] = -1
            mask &= kept[owner.to(kept.device)].view(shape)
        return mask

    def _along(self, owner: Tensor, at: int) -> Tensor:
        return owner.view([-1 if position == at else 1 for position in range(len(self.dims))])


def _covers(model: nn.Module, groups: Sequence[Group]) -> dict[str, _Cover]:
    """By parameter, in the order in which groups name them. Units are numbered through all groups."""
    nobody = sum(group.size for group in groups)
    found: dict[str, dict[int, Tensor]] = {}
    first = 0
    for group in groups:
        numbers = torch.arange(first, first + group.size)
        for place in group.places:
            dims = found.setdefault(place.name, {})
            size = model.get_parameter(place.name).shape[place.dim]
            owner = dims.setdefault(place.dim, torch.full((size,), nobody))
            owner[place.index] = numbers[:, None].expand_as(place.index)
        first += group.size
    return {name: _cover(tuple(model.get_parameter(name).shape), dims, nobody) for name, dims in found.items()}


def _cover(shape: tuple[int, ...], found: dict[int, Tensor], nobody: int) -> _Cover:
    dims = tuple(sorted(found))
    owners = tuple(found[dim] for dim in dims)
    crossing = {
        (one, other)
        for other in range(len(dims))
        for one in range(other)
        if bool(torch.isin(owners[one][owners[one] != nobody], owners[other]).any())
    }
    return _Cover(shape, dims, owners, frozenset(crossing))


def _with_nobody(keep: Sequence[Tensor]) -> Tensor:
    """One bool for each unit, and one for nobody, whose indices stay."""
    return torch.cat([*keep, torch.ones(1, dtype=torch.bool, device=keep[0].device)])
