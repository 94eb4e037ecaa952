"""Damped Optimal Brain Damage, and the choice of its damping by measurement.

At a trained optimum softmax saturates and the curvature ``h`` of most weights is nearly zero, so that undamped OBD
predicts far too little for deleting many weights at once. The damped score ``1/2 (h + d) w^2`` spans the range from
classical OBD (``d = 0``) to magnitude pruning (``d -> infinity``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from resgrow.curvature.batches import Batch
from resgrow.curvature.evaluate import mean_loss
from resgrow.curvature.heads import LossFn
from resgrow.ops import select_mask

MULTIPLES = (0.1, 0.3, 1.0, 3.0, 10.0)
TEMPERATURES = (1.0, 2.0, 4.0)
PROBES = (0.8, 0.9, 0.95)


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

    The predicted rise of the mean loss when an element goes. ``h`` as from ``resgrow.curvature``; scores have its
    shapes and dtypes.
    """
    d = damping * mean_curvature(h)
    parameters = dict(model.named_parameters())
    return {name: 0.5 * (value + d) * parameters[name].detach().square() for name, value in h.items()}


@dataclass(frozen=True)
class Trial:
    """One setting tried for ``damping="auto"`` and what it led to.

    Attributes:
        damping: multiple of the mean curvature.
        temperature: of the softmax under which the curvature was taken.
        losses: mean loss with the lowest-scoring 80, 90 and 95 % of all weights deleted.
    """

    damping: float
    temperature: float
    losses: tuple[float, ...]

    @property
    def cost(self) -> float:
        """Mean log loss over the probes: every sparsity counts with its relative change."""
        return sum(math.log(max(loss, 1e-12)) for loss in self.losses) / len(self.losses)


def choose(
    model: nn.Module,
    loss_fn: LossFn,
    probe: Sequence[Batch],
    curvature_at: Callable[[float], Mapping[str, Tensor]],
    temperatures: Sequence[float],
) -> tuple[dict[str, Tensor], list[Trial]]:
    """The damped scores whose deletions hurt least, by trial on ``probe``; the best trial comes first in the list.

    Damping is chosen at the first temperature, then the other temperatures are tried with that damping. The model
    is only read: deletions happen in copies of its weights.
    """
    best: tuple[Trial, dict[str, Tensor]] | None = None
    trials = []
    for temperature in temperatures:
        h = curvature_at(temperature)
        for damping in MULTIPLES if best is None or temperature == temperatures[0] else (best[0].damping,):
            scores = obd(model, h, damping)
            trial = Trial(damping, temperature, tuple(_losses(model, loss_fn, probe, scores)))
            trials.append(trial)
            if best is None or trial.cost < best[0].cost:
                best = trial, scores
    assert best is not None
    return best[1], sorted(trials, key=lambda trial: trial.cost)


def _losses(model: nn.Module, loss_fn: LossFn, probe: Sequence[Batch], scores: Mapping[str, Tensor]) -> Iterator[float]:
    """Mean loss on ``probe`` after one-shot global deletion at each of ``PROBES``."""
    names = weight_names(scores)
    ranked = [scores[name] for name in names]
    weights = dict(model.named_parameters())
    total = sum(t.numel() for t in ranked)
    for sparsity in PROBES:
        keep = select_mask(ranked, round(sparsity * total))
        pruned = {name: weights[name] * mask for name, mask in zip(names, keep, strict=True)}
        yield mean_loss("saliency", model, loss_fn, probe, pruned)
