"""What goes: the units with the least saliency per cost, of all families of units together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from resgrow.controller.history import where
from resgrow.surgery import Units

Scores = list[Tensor]
# Of what single units cost once survivors make up for them, relative to their saliency.
LEAST = 0.3


@dataclass(frozen=True)
class Family:
    """Units of one kind, as "channel" or "weight"."""

    unit: str
    units: Units


@dataclass(frozen=True)
class Removal:
    """Units to remove.

    Attributes:
        masks: of all parameters of the family, with what is absent already.
        where, count: how many of which group, and in all.
        predicted: rise of the mean loss, the units' scores summed.
        price: score per cost of the dearest of them.
        saved: what is asked for.
    """

    unit: str
    masks: dict[str, Tensor]
    where: dict[str, int]
    count: int
    predicted: float
    price: float
    saved: float


def cheapest(
    families: Sequence[Family],
    score: Callable[[Family], Scores],
    save: float,
    masks: Mapping[str, Tensor],
    by: str,
    resting: Collection[str] = (),
) -> Removal | None:
    """The removal of the smallest predicted rise among the families', each of which is asked to save as much.

    A family that cannot save as much gives all that it can; None where no family has anything to give.

    Args:
        score: scores of a family's units, one tensor for each group.
        resting: names of groups that stay as they are for now.
    """
    best: Removal | None = None
    for family in families:
        removal = _removal(family, score(family), save, masks, by, resting)
        if removal is not None and (best is None or _rank(removal) < _rank(best)):
            best = removal
    return best


def _rank(removal: Removal) -> float:
    return removal.predicted / removal.saved


def _removal(
    family: Family,
    scores: Scores,
    save: float,
    masks: Mapping[str, Tensor],
    by: str,
    resting: Collection[str],
) -> Removal | None:
    units = family.units
    free = [number for number, name in enumerate(units.groups) if name not in resting]
    most = units.savable(scores, masks, by, free) if free else 0.0
    saved = min(save, most)
    if saved <= 0:
        return None
    keep = units.select(scores, saved, masks, by, free)
    gone = [there & ~kept for there, kept in zip(units.live(masks), keep, strict=True)]
    counts = [int(out.sum()) for out in gone]
    if not any(counts):
        return None
    prices = [
        (score[out] / price[out].clamp_min(1e-12)).max()
        for score, price, out in zip(scores, units.costs(masks, by), gone, strict=True)
        if out.any()
    ]
    return Removal(
        family.unit,
        together(masks, units.to_masks(keep)),
        where(units.groups, counts),
        sum(counts),
        sum(float(score[out].sum()) for score, out in zip(scores, gone, strict=True)),
        float(torch.stack(prices).max()),
        saved,
    )


def together(masks: Mapping[str, Tensor], more: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Masks of ``more``'s parameters in which only what is present in both is present."""
    return {name: mask & masks[name] if name in masks else mask for name, mask in more.items()}


def confirmed(
    family: Family,
    scores: Scores,
    masks: Mapping[str, Tensor],
    by: str,
    count: int,
    rise: Callable[[Mapping[str, Tensor]], float],
) -> Scores:
    """Scores of which those of the ``count`` cheapest live units are replaced by the measured rise of the loss.

    Args:
        rise: of the loss with these masks.
    """
    units = family.units
    live, costs = units.live(masks), units.costs(masks, by)
    prices = torch.cat([(s / c.clamp_min(1e-12)).masked_fill(~t, torch.inf).flatten().double().cpu()
                        for s, c, t in zip(scores, costs, live, strict=True)])  # fmt: skip
    result = [score.clone() for score in scores]
    sizes = [score.numel() for score in scores]
    for flat in prices.argsort(stable=True)[:count].tolist():
        if prices[flat] == torch.inf:
            break
        group, at = _place(sizes, flat)
        keep = [there.clone() for there in live]
        keep[group].view(-1)[at] = False
        result[group].view(-1)[at] = max(0.0, rise(together(masks, units.to_masks(keep))))
    return result


def calibrated(scores: Scores, measured: Scores) -> Scores:
    """``measured``, with what was not measured in it on its scale: times the ratio of both, in the group or over all.

    The ratio is at least `LEAST`: the cheapest units, which are those that are measured, often turn out to cost
    nothing, and that says nothing of the others.

    Args:
        scores: before some of them were measured.
    """
    differs = [score != found for score, found in zip(scores, measured, strict=True)]

    def ratio(groups: Sequence[int]) -> float | None:
        before = sum(float(scores[group][differs[group]].sum()) for group in groups)
        after = sum(float(measured[group][differs[group]].sum()) for group in groups)
        return max(LEAST, after / before) if before > 0 else None

    everywhere = ratio(range(len(scores)))
    factors = [ratio([group]) for group in range(len(scores))]
    return [
        torch.where(new, found, found * (everywhere if factor is None else factor)) if everywhere is not None else found
        for found, new, factor in zip(measured, differs, factors, strict=True)
    ]


def _place(sizes: Sequence[int], flat: int) -> tuple[int, int]:
    group = 0
    while flat >= sizes[group]:
        flat -= sizes[group]
        group += 1
    return group, flat
