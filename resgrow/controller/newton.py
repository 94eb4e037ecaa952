"""The step that new weights, which are zero, make at once: that of the damped quadratic model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resgrow.curvature.batches import Batch
from resgrow.curvature.damping import mean_curvature
from resgrow.curvature.evaluate import mean_loss
from resgrow.curvature.growth import weight_gradients
from resgrow.curvature.heads import LossFn, head_of

# The diagonal knows nothing of how new weights act together: the whole step can be several times too long.
SCALES = (1.0, 0.5, 0.25, 0.125)


@dataclass(frozen=True)
class Step:
    """Attributes:
    values: of the parameters with the step made.
    fall: of the mean loss, as predicted: ``(2 s - s^2) sum_k g_k^2 / (2 (h_k + d))`` for the step's scale ``s``.
    """

    values: dict[str, Tensor]
    fall: float


def gains(gradients: Mapping[str, Tensor], h: Mapping[str, Tensor], damping: float) -> dict[str, Tensor]:
    """``1/2 g^2 / (max(h, 0) + d)``, ``d = damping * mean_curvature(h)``: the fall of the mean loss that a Newton step
    of each weight alone promises. Zero where both gradient and curvature are."""
    return {name: 0.5 * _damped(gradients[name], h, name, damping).mul(gradients[name]) for name in gradients}


def newton_step(
    model: nn.Module,
    loss_fn: LossFn,
    batches: Sequence[Batch],
    entries: Mapping[str, Tensor],
    h: Mapping[str, Tensor],
    damping: float,
) -> Step | None:
    """``-s g / (max(h, 0) + d)`` in ``entries``, with the scale ``s`` that lowers the loss on ``batches`` most.

    Args:
        entries: bool, which weights of which parameters; they are zero and independent of each other to the model.
        h: curvature of all parameters.

    Returns:
        None where no scale lowers the loss.
    """
    weights = {name: model.get_parameter(name) for name in entries}
    gradients = _gradients(model, loss_fn, batches, weights)
    steps = {name: -_damped(g, h, name, damping) * entries[name].to(g.device) for name, g in gradients.items()}
    promised = sum(-0.5 * float((gradients[name] * step).sum(dtype=torch.float64)) for name, step in steps.items())
    best, lowest = None, mean_loss("Controller", model, loss_fn, batches)
    for scale in SCALES:
        values = {name: weight.detach() + (scale * steps[name]).to(weight.dtype) for name, weight in weights.items()}
        loss = mean_loss("Controller", model, loss_fn, batches, values)
        if loss < lowest:
            best, lowest = Step(values, (2 * scale - scale * scale) * promised), loss
        elif best is not None:
            break
    return best


def mean_gradients(
    model: nn.Module, loss_fn: LossFn, batches: Sequence[Batch], names: Sequence[str]
) -> dict[str, Tensor]:
    """Gradients of the mean loss in eval mode."""
    return _gradients(model, loss_fn, batches, {name: model.get_parameter(name) for name in names})


def _gradients(
    model: nn.Module, loss_fn: LossFn, batches: Sequence[Batch], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    found = weight_gradients("Controller", model, head_of("Controller", loss_fn), batches, weights)
    return {name: gradient.to(weights[name].dtype) for name, gradient in found.items()}


def _damped(gradient: Tensor, h: Mapping[str, Tensor], name: str, damping: float) -> Tensor:
    """``g / (max(h, 0) + d)``."""
    stiff = h[name].clamp_min(0) + damping * mean_curvature(h)
    return torch.where(stiff > 0, gradient / stiff, 0.0)
