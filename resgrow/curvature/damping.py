"""Damping: curvature drawn towards its mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from resgrow._modes import eval_mode
from resgrow.curvature.batches import Batch, call
from resgrow.curvature.evaluate import mean_loss
from resgrow.curvature.heads import LossFn, head_of
from resgrow.curvature.request import inverse

# Damping "auto" deletes this many random sets, each of this share of all weights, and measures on this many samples.
SETS, SHARE, PROBE_SAMPLES = 6, 0.03, 2048
# With a hundred times the mean nearly every entry is the same number, and more damping changes nothing but the scale.
STRONGEST = 100.0


def weight_names(tensors: Mapping[str, Tensor]) -> list[str]:
    """The entries that are weights rather than biases, gains or gates: those with two dimensions or more."""
    return [name for name, tensor in tensors.items() if tensor.dim() >= 2]


def mean_curvature(h: Mapping[str, Tensor]) -> float:
    """Mean of ``max(h, 0)`` over all weights of all layers together: the unit of damping.

    One number for the whole model: damping each layer by its own mean would make layers incomparable.
    """
    weights = [h[name] for name in weight_names(h)] or list(h.values())
    return sum(float(t.clamp_min(0).sum(dtype=torch.float64)) for t in weights) / max(
        1, sum(t.numel() for t in weights)
    )


def measured_damping(
    model: nn.Module,
    loss_fn: LossFn,
    h: Mapping[str, Tensor],
    probe: Sequence[Batch],
    generator: torch.Generator,
) -> float:
    """The multiple ``d`` of ``m = mean_curvature(h)`` under which the quadratic model predicts what deletions cost.

    For random sets ``S`` of weights, the rise of the mean loss when they are set to zero is measured and compared with
    ``sum_S -g_k w_k + 1/2 (h_k + d m) w_k^2``. In ``d`` this is linear, so least squares over the sets has a closed
    form. What ``h`` leaves out, off-diagonal curvature and higher orders, goes into ``d``, which is at least 0 and at
    most ``STRONGEST``; 0 where ``m`` is 0.

    Costs one forward and backward pass and ``SETS + 1`` forward passes over ``probe``, in eval mode.
    """
    names = weight_names(h) or list(h)
    weights = {name: model.get_parameter(name).detach() for name in names}
    gradient = _gradient(model, loss_fn, probe, names)
    before, mean = mean_loss("curvature", model, loss_fn, probe), mean_curvature(h)
    products = squares = 0.0
    for _ in range(SETS):
        gone = {name: w * _random_set(w, generator) for name, w in weights.items()}
        kept = {name: w - gone[name] for name, w in weights.items()}
        rise = mean_loss("curvature", model, loss_fn, probe, kept) - before
        predicted = sum(float((0.5 * h[name] * w - gradient[name]).mul(w).sum()) for name, w in gone.items())
        unit = 0.5 * mean * sum(float(w.square().sum()) for w in gone.values())
        products += unit * (rise - predicted)
        squares += unit**2
    return min(STRONGEST, max(0.0, products / squares)) if squares else 0.0


def _random_set(weight: Tensor, generator: torch.Generator) -> Tensor:
    draws = torch.rand(weight.shape, generator=generator, device=generator.device)
    return (draws < SHARE).to(weight.device)


def _gradient(model: nn.Module, loss_fn: LossFn, probe: Sequence[Batch], names: Sequence[str]) -> dict[str, Tensor]:
    """Gradient of the mean loss over ``probe`` in eval mode."""
    head = head_of("curvature", loss_fn)
    parameters = [model.get_parameter(name) for name in names]
    sums, total = [torch.zeros_like(p) for p in parameters], 0.0
    with torch.enable_grad(), eval_mode(model):
        for inputs, target in probe:
            output = call(model, inputs)
            total += head.total(output.detach(), target)
            found = torch.autograd.grad(head.loss(output, target), parameters, allow_unused=True)
            for entry, gradient in zip(sums, found, strict=True):
                if gradient is not None:
                    entry.add_(gradient)
    return {name: entry * inverse("curvature", total) for name, entry in zip(names, sums, strict=True)}
