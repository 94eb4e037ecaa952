"""What can come: masked weights and blocks, units of a layer, residual blocks. Each is put in for a trial."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from resgrow.controller.history import where
from resgrow.controller.newton import gains, mean_gradients
from resgrow.controller.shrink import Family
from resgrow.curvature.batches import Batch
from resgrow.curvature.growth import Growth
from resgrow.curvature.heads import LossFn
from resgrow.surgery import Masks, growth_gain
from resgrow.surgery.company import Company
from resgrow.surgery.deepen.model import deepened
from resgrow.surgery.forward import Example
from resgrow.surgery.structure import Edit
from resgrow.surgery.widen import widened

INITS = ("tiny", "gradmax", "random")
_TINY_COST = 1e-12


@dataclass(frozen=True)
class Sprout:
    """New weights that are there, all zero where others or the output see them.

    Attributes:
        kind, unit, where, count: as in `resgrow.Move`.
        edit: takes them out again.
        entries: bool, for each parameter those of its weights that are to make a step.
        changed: names of parameters whose curvature has to be taken anew.
    """

    kind: str
    unit: str
    where: dict[str, int]
    count: int
    edit: Edit
    entries: dict[str, Tensor]
    changed: frozenset[str] = frozenset()


@dataclass
class Ground:
    """What growth works on.

    Attributes:
        batches: to estimate on.
        h: curvature of all parameters, as they are before anything grows.
        size: cost that may be added.
        by: kind of cost.
        resting: groups that stay as they are for now.
        only: where given, only candidates of these names.
    """

    model: nn.Module
    loss_fn: LossFn
    optimizers: Sequence[Optimizer]
    followers: Sequence[nn.Module]
    masks: Masks
    batches: list[Batch]
    h: Mapping[str, Tensor]
    damping: float
    size: float
    by: str
    generator: torch.Generator
    example: Example | None = None
    resting: Collection[str] = frozenset()
    only: Collection[str] | None = None

    @property
    def company(self) -> Company:
        return Company(self.optimizers, self.followers, [self.masks])


class Grower(Protocol):
    """One kind of growth."""

    def sprouts(self, ground: Ground) -> Iterator[Sprout]:
        """Candidates, one after the other; each is taken out by the caller before it asks for the next."""


@dataclass(frozen=True)
class Regrower:
    """Masked weights or blocks: those of the largest gain per cost."""

    family: Family

    def sprouts(self, ground: Ground) -> Iterator[Sprout]:
        units, masks = self.family.units, ground.masks
        live = units.live(masks)
        if all(bool(there.all()) for there in live):
            return
        gradients = mean_gradients(ground.model, ground.loss_fn, ground.batches, units.parameters)
        scores = units.scores(gains(gradients, ground.h, ground.damping))
        chosen = _best(scores, units.costs(None, ground.by), live, ground.size)
        counts = [int(new.sum()) for new in chosen]
        if not any(counts):
            return
        wanted = units.to_masks([there | new for there, new in zip(live, chosen, strict=True)])
        new = {name: mask | masks[name] for name, mask in wanted.items()}
        entries = {name: mask & ~masks[name] for name, mask in new.items() if bool((mask & ~masks[name]).any())}
        edit = ground.company.edit(ground.model)
        edit.set_masks(masks, {**masks, **new})
        yield Sprout("regrow", self.family.unit, where(units.groups, counts), sum(counts), edit, entries)


def _best(scores: Sequence[Tensor], costs: Sequence[Tensor], live: Sequence[Tensor], size: float) -> list[Tensor]:
    """Absent units of the largest score per cost, as many as cost no more than ``size`` together."""
    flat = torch.cat([cost.flatten() for cost in costs]).double()
    absent = ~torch.cat([there.flatten() for there in live])
    prices = torch.cat([score.flatten() for score in scores]).double() / flat.clamp_min(_TINY_COST)
    order = prices.masked_fill(~absent, -torch.inf).sort(descending=True, stable=True).indices
    order = order[: int((absent & (prices > 0)).sum())]
    order = order[flat[order].cumsum(0) <= size]
    chosen = torch.zeros_like(absent)
    chosen[order] = True
    return [part.view_as(there) for part, there in zip(chosen.split([t.numel() for t in live]), live, strict=True)]


@dataclass(frozen=True)
class Widener:
    """Units of the layer with the largest gain per cost, `resgrow.growth_gain`'s, with what makes them from there.

    Attributes:
        init: of `resgrow.widen`; gains are TINY's whatever it is. Random units need none: where no layer has any, they
            come where a unit costs least.
    """

    family: Family
    init: str

    def sprouts(self, ground: Ground) -> Iterator[Sprout]:
        found = self._choice(ground)
        if found is None:
            return
        name, count, growth = found
        options: dict[str, Any] = {"init": self.init, "generator": ground.generator}
        if self.init != "random":
            options |= {"loss_fn": ground.loss_fn, "data": ground.batches, "known": growth}
        assert ground.example is not None
        done = widened(ground.model, name, count, ground.example, ground.company, **options)
        entries = {key: _marked(ground.model.get_parameter(key), at) for key, at in done.columns.items()}
        changed = frozenset(key for key, _ in ground.model.named_parameters())
        yield Sprout("widen", self.family.unit, {name: count}, count, done.edit, entries, changed)

    def _choice(self, ground: Ground) -> tuple[str, int, Growth] | None:
        """The layer, how many units, and what they could be."""
        units = self.family.units
        live = units.live(ground.masks)
        costs = units.costs(None, ground.by) if ground.by != "latency_ms" else units.costs(ground.masks, ground.by)
        each = {name: max(float(cost.mean()), _TINY_COST) for name, cost in zip(units.groups, costs, strict=True)}
        width = {name: int(there.sum()) for name, there in zip(units.groups, live, strict=True)}
        assert ground.example is not None
        # A layer is doubled at most: the gains of more units than it has are far from their sum.
        most = {name: max(1, min(int(ground.size / each[name]), width[name])) for name in each}
        largest = max(most.values(), default=1)
        found = growth_gain(ground.model, ground.loss_fn, ground.batches, example_inputs=ground.example, units=largest)
        best: tuple[float, float, str, int] | None = None
        for name, growth in found.items():
            there = max(1, len(growth)) if self.init == "random" else len(growth)
            if name in each and name not in ground.resting and there:
                count = min(there, most[name])
                price = float(growth.gain[:count].sum()) / (count * each[name])
                if best is None or (price, -each[name]) > best[:2]:
                    best = price, -each[name], name, count
        return None if best is None else (*best[2:], found[best[2]])


@dataclass
class Deepener:
    """Residual blocks: one more in each place that can have one.

    Attributes:
        refused: places that have turned out not to take one.
    """

    refused: set[str] = field(default_factory=set)

    def sprouts(self, ground: Ground) -> Iterator[Sprout]:
        assert ground.example is not None
        for name, init in self._places(ground.model):
            if name in self.refused or name in ground.resting or (ground.only is not None and name not in ground.only):
                continue
            try:
                done = deepened(
                    ground.model, name, ground.example, ground.company, init=init, generator=ground.generator
                )
            except (ValueError, RuntimeError):
                self.refused.add(name)
                continue
            entries = {key: torch.ones_like(ground.model.get_parameter(key), dtype=torch.bool) for key in done.last}
            changed = frozenset(key for key, _ in ground.model.named_parameters() if key.startswith(f"{done.path}."))
            yield Sprout("deepen", "residual", {name: 1}, 1, done.edit, entries, changed)

    @staticmethod
    def _places(model: nn.Module) -> list[tuple[str, str]]:
        """Stages, and layers in an `nn.Sequential`, with how to deepen them."""
        found: list[tuple[str, str]] = []
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.ModuleList) or (isinstance(module, nn.Sequential) and name):
                found.append((name, "zero"))
            if isinstance(module, nn.Sequential):
                layers = [key for key, child in module.named_children() if isinstance(child, nn.Linear | nn.Conv2d)]
                found += [(f"{name}.{key}" if name else key, "residual") for key in layers[:-1] or layers]
        return found


def _marked(parameter: Tensor, at: Mapping[int, Tensor]) -> Tensor:
    marked = torch.zeros(parameter.shape, dtype=torch.bool, device=parameter.device)
    for dim, index in at.items():
        marked.index_fill_(dim, index.to(parameter.device), True)
    return marked
