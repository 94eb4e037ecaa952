"""Damped Optimal Brain Damage."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def weight_names(tensors: Mapping[str, Tensor]) -> list[str]:
    """The entries that are weights rather than biases, gains or gates: those with two dimensions or more."""
    return [name for name, tensor in tensors.items() if tensor.dim() >= 2]


def mean_curvature(h: Mapping[str, Tensor]) -> float:
    """Mean of ``h`` over all weights of all layers together: the unit of damping.

    One number for the whole model: damping each layer by its own mean would make layers incomparable.
    """
    weights = [h[name] for name in weight_names(h)] or list(h.values())
    return sum(float(t.double().sum()) for t in weights) / max(1, sum(t.numel() for t in weights))


def obd(model: nn.Module, h: Mapping[str, Tensor], damping: float) -> dict[str, Tensor]:
    """``1/2 (h + d) w^2`` with ``d = damping * mean_curvature(h)`` (LeCun, Denker & Solla 1990, eq. 3, damped).

    The predicted rise of the mean loss when an element goes. At a trained optimum softmax saturates and the
    curvature of most weights is nearly zero, so that undamped OBD predicts far too little for deleting many at once;
    damping spans the range from classical OBD (``d = 0``) to magnitude pruning (``d -> infinity``).

    ``h`` as from ``resgrow.curvature``; scores have its shapes and dtypes.
    """
    d = damping * mean_curvature(h)
    parameters = dict(model.named_parameters())
    return {name: 0.5 * (value + d) * parameters[name].detach().square() for name, value in h.items()}
