"""Damped Optimal Brain Damage."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from resgrow.curvature.damping import mean_curvature


def obd(model: nn.Module, h: Mapping[str, Tensor], damping: float, power: float = 1.0) -> dict[str, Tensor]:
    """``1/2 (max(h, 0) + d)^power m^(1 - power) w^2`` with ``m = mean_curvature(h)`` and ``d = damping * m``.

    The predicted rise of the mean loss when an element goes: LeCun, Denker & Solla 1990, eq. 3, for ``d = 0`` and
    ``power = 1``. At a trained optimum softmax saturates and the curvature of most weights is nearly zero, so that
    undamped OBD predicts far too little for deleting many at once. Two knobs draw curvature towards its mean, one
    by addition and one geometrically; ``d -> infinity`` and ``power -> 0`` both order like magnitude.

    Negative curvature counts as none: it promises that the loss falls when an element goes, but only as far as the
    quadratic model holds, and two such elements can be each other's saddle.

    ``h`` as from ``resgrow.curvature``; scores have its shapes and dtypes, and are >= 0.
    """
    mean = mean_curvature(h)
    parameters = dict(model.named_parameters())
    scores = {}
    for name, value in h.items():
        damped = value.clamp_min(0) + damping * mean
        shrunk = damped if power == 1 else damped.pow(power) * mean ** (1 - power)
        scores[name] = 0.5 * shrunk * parameters[name].detach().square()
    return scores
