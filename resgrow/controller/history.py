"""What a controller did and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Move:
    """One move of a controller, kept or not. Losses are mean losses per sample on data the scores did not see.

    Attributes:
        step: training steps seen when it was made.
        kind: "shrink"; "regrow" (masked weights or blocks come back), "widen" or "deepen"; "restore", where everything
            is as it was before a removal, from which training did not recover.
        unit: "weight", "block", "channel" (also heads and neurons) or "residual" (a residual block).
        where: how many units of which group or layer, by its name.
        count: number of units in all.
        predicted: change of the loss that the quadratic model promises: a rise where units go (their damped saliencies
            summed), a fall, below zero, where they come (that of a damped Newton step).
        actual: measured change of the loss.
        ratio: actual / predicted.
        fraction: share of the cost that the move takes or adds.
        damping: multiple of the mean curvature in use.
        price: predicted change of the loss per unit of cost, without its sign: of the dearest unit that goes, or of all
            together that come.
        by: the kind of cost it was made for: "params", "macs" or "latency_ms".
        accepted: whether the move was kept; if not, nothing was changed.
        cost: of the model after it, had it been kept: "params", and "macs" and "latency_ms" as far as they are known.
        loss_before: mean loss before the move.
        loss_after: mean loss with the move.
    """

    step: int
    kind: str
    unit: str
    where: dict[str, int]
    count: int
    predicted: float
    actual: float
    ratio: float
    fraction: float
    damping: float
    price: float
    by: str
    accepted: bool
    cost: dict[str, float]
    loss_before: float
    loss_after: float

    @property
    def grows(self) -> bool:
        return self.kind != "shrink"


def restored(removal: Move, step: int, before: float, after: float, cost: dict[str, float]) -> Move:
    """What a removal has taken is there again, as training did not recover from it; predicted is nothing."""
    return replace(
        removal,
        step=step,
        kind="restore",
        predicted=0.0,
        actual=after - before,
        ratio=0.0,
        accepted=True,
        cost=cost,
        loss_before=before,
        loss_after=after,
    )


def reversals(history: Iterable[Move]) -> int:
    """How often a group that had grown shrank next, or the other way around, over the moves that were kept.

    Parts of one step that change places, and what is restored, are no reversals.
    """
    moves = [move for move in history if move.accepted]
    paid = {move.step for move in moves if move.grows and move.kind != "restore"}
    paid &= {move.step for move in moves if not move.grows}
    last: dict[str, bool] = {}
    count = 0
    for move in moves:
        if move.kind == "restore":
            for name in move.where:
                last.pop(name, None)
        elif move.step not in paid:
            count += sum(last.get(name, move.grows) != move.grows for name in move.where)
            last |= dict.fromkeys(move.where, move.grows)
    return count


def where(names: Iterable[str], counts: Iterable[int]) -> dict[str, int]:
    """By name, without what has none."""
    return {name: count for name, count in zip(names, counts, strict=True) if count}
