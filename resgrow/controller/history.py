"""What a controller did and why."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Move:
    """One move of a controller, kept or not. Losses are mean losses per sample on data the scores did not see.

    Attributes:
        step: training steps seen when it was made.
        unit: "channel", "weight" or "block".
        removed: number of units it removes.
        predicted: rise of the loss by the damped quadratic model, the units' saliencies summed.
        actual: measured rise of the loss.
        ratio: actual / predicted.
        fraction: share of the cost the move takes.
        damping: multiple of the mean curvature in use.
        price: predicted rise of the loss per unit of cost of the dearest unit in the move.
        accepted: whether the move was kept; if not, nothing was changed.
        params: parameters present after it, had it been kept.
        macs: multiply-accumulates per sample likewise (None without example inputs).
        loss_before: mean loss before the move.
        loss_after: mean loss with the move.
    """

    step: int
    unit: str
    removed: int
    predicted: float
    actual: float
    ratio: float
    fraction: float
    damping: float
    price: float
    accepted: bool
    params: int
    macs: int | None
    loss_before: float
    loss_after: float
