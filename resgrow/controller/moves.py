"""Trials as moves of the history."""

from __future__ import annotations

from resgrow.controller.history import Move
from resgrow.controller.trust import Trust
from resgrow.controller.workshop import Grown, Scene, Shrunk


def shrink_move(step: int, scene: Scene, shrunk: Shrunk, by: str, kept: bool, trust: Trust, before: float) -> Move:
    """Of a removal; ``before`` is the loss that it started from."""
    removal = shrunk.removal
    actual = shrunk.after - before
    return Move(
        step=step,
        kind="shrink",
        unit=removal.unit,
        where=removal.where,
        count=removal.count,
        predicted=removal.predicted,
        actual=actual,
        ratio=actual / max(removal.predicted, 1e-12),
        fraction=removal.saved / scene.cost[by],
        damping=trust.damping,
        price=removal.price,
        by=by,
        accepted=kept,
        cost=shrunk.cost,
        loss_before=before,
        loss_after=shrunk.after,
    )


def grow_move(step: int, scene: Scene, grown: Grown, by: str, kept: bool, trust: Trust) -> Move:
    """Of growth."""
    sprout, fall = grown.sprout, grown.step.fall
    return Move(
        step=step,
        kind=sprout.kind,
        unit=sprout.unit,
        where=sprout.where,
        count=sprout.count,
        predicted=-fall,
        actual=grown.after - scene.before,
        ratio=(scene.before - grown.after) / max(fall, 1e-12),
        fraction=grown.added / scene.cost[by],
        damping=trust.damping,
        price=fall / max(grown.added, 1e-12),
        by=by,
        accepted=kept,
        cost=grown.cost,
        loss_before=scene.before,
        loss_after=grown.after,
    )
