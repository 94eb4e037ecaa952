"""Damped Optimal Brain Damage."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def weight_names(tensors: Mapping[str, Tensor]) -> list[str]:
    """The entries that are weights rather than biases, gains or gates: those with two dimensions or more."""
    return [name for name, tensor in tensors.items() if tensor.dim() >= 2]


def mean_curvature(h: Mapping[str, Tensor]) -> float:
    """Mean of ``max(h, 0)`` over all weights of all layers together: the unit of damping.

    One number for the whole model: damping each layer by its own mean would make layers incomparable.
    """
    weights = [h[name] for name in weight_names(h)] or list(h.values())
    return sum(float(t.clamp_min(0).double().sum()) for t in weights) / max(1, sum(t.numel() for t in weights))


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
