"""What the parts of a model are worth, there or not, in loss per cost: what moves are chosen by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from resgrow._text import table
from resgrow.controller.grow import Ground, Grower, Regrower, Widener
from resgrow.controller.newton import gains, mean_gradients
from resgrow.controller.shrink import Family
from resgrow.saliency import obd
from resgrow.surgery import growth_gain


@dataclass(frozen=True)
class Price:
    """Of one group of units.

    Attributes:
        unit, group: as in `resgrow.Move`.
        present, absent: number of units that are there, and that masks hold back.
        keeps: saliency per cost of the cheapest present unit: the predicted rise of the mean loss when it goes; None
            where there is none.
        brings: gain per cost of the best absent unit. Of weights and blocks it is the predicted fall of the mean loss
            by a damped Newton step; of channels `resgrow.Growth.gain`, the rate of the fall, on another scale: compare
            those with each other. None where nothing can come.
    """

    unit: str
    group: str
    present: int
    absent: int
    keeps: float | None
    brings: float | None


class Prices(tuple[Price, ...]):
    """One `Price` for each group; ``str`` is a table."""

    def __str__(self) -> str:
        rows = [(p.group, p.unit, f"{p.present:,}", f"{p.absent:,}", _number(p.keeps), _number(p.brings)) for p in self]
        return table(("group", "unit", "present", "absent", "keeps", "brings"), rows, ("group", "unit"))


def prices(families: Sequence[Family], growers: Sequence[Grower], ground: Ground) -> Prices:
    """Of all groups of all families, as the model is now."""
    found: list[Price] = []
    for family in families:
        grower = next((g for g in growers if isinstance(g, Regrower | Widener) and g.family is family), None)
        brings = _brings(grower, ground)
        units = family.units
        scores = units.scores(obd(ground.model, ground.h, ground.damping))
        lists = zip(units.groups, scores, units.costs(ground.masks, ground.by), units.live(ground.masks), strict=True)
        for name, score, cost, live in lists:
            count = int(live.sum())
            keeps = float((score / cost.clamp_min(1e-12))[live].min()) if count else None
            found.append(Price(family.unit, name, count, live.numel() - count, keeps, brings.get(name)))
    return Prices(found)


def _brings(grower: Grower | None, ground: Ground) -> dict[str, float]:
    if isinstance(grower, Regrower):
        return _regrown(grower.family, ground)
    if isinstance(grower, Widener) and ground.example is not None:
        units = grower.family.units
        costs = dict(zip(units.groups, units.costs(None, ground.by), strict=True))
        found = growth_gain(ground.model, ground.loss_fn, ground.batches, example_inputs=ground.example, units=1)
        return {
            name: float(each.gain[0] / costs[name].mean())
            for name, each in found.items()
            if name in costs and len(each)
        }
    return {}


def _regrown(family: Family, ground: Ground) -> dict[str, float]:
    units = family.units
    gradients = mean_gradients(ground.model, ground.loss_fn, ground.batches, units.parameters)
    scores = units.scores(gains(gradients, ground.h, ground.damping))
    brings: dict[str, float] = {}
    lists = zip(units.groups, scores, units.costs(None, ground.by), units.live(ground.masks), strict=True)
    for name, score, cost, live in lists:
        if not live.all():
            brings[name] = float((score / cost.clamp_min(1e-12))[~live].max())
    return brings


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2e}"
