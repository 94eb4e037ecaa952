"""OBD along a path of deletions: what a weight costs when it is its turn to go.

Deletions interact. Saliencies taken once, on the full network, underestimate what deleting most of it costs, and
the right damping changes as it empties. So weights are deleted stage by stage in a copy, curvature is taken anew
after each stage, and each stage takes the damping and power whose deletions are *measured* to hurt least.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resgrow.curvature.batches import Batch
from resgrow.curvature.damping import weight_names
from resgrow.curvature.evaluate import mean_loss
from resgrow.curvature.heads import LossFn
from resgrow.curvature.progress import Meter
from resgrow.ops import select_mask
from resgrow.saliency.damping import obd

# Each stage keeps this share of the weights that the one before left.
KEEP = 0.75
# The path ends when this share of the weights is left; the survivors are ranked by the last curvature.
LEAST = 0.02
# Damping moves by this factor at most from one stage to the next, within these bounds; powers are tried at each.
FACTOR, WEAKEST, STRONGEST = 3.0, 0.01, 10.0
POWERS = (1.0, 0.5)


@dataclass(frozen=True)
class Stage:
    """One stage of the path.

    Attributes:
        sparsity: share of all weights deleted after it.
        damping: the multiple of the mean curvature that was taken.
        power: the power of the damped curvature that was taken.
        losses: mean loss after the stage's deletions under each (damping, power) tried.
    """

    sparsity: float
    damping: float
    power: float
    losses: Mapping[tuple[float, float], float]


def densities(model: nn.Module) -> list[float]:
    """The share of all weights that is left after each stage.

    Weights that are exactly zero are gone already: deleting them again would tell nothing about the settings.
    """
    weights = [p for p in model.parameters() if p.requires_grad and p.dim() >= 2]
    left = sum(int(w.count_nonzero()) for w in weights) / max(1, sum(w.numel() for w in weights))
    stages = [left * KEEP]
    while stages[-1] * KEEP >= LEAST:
        stages.append(stages[-1] * KEEP)
    return stages


def along_path(
    model: nn.Module,
    loss_fn: LossFn,
    probe: Sequence[Batch],
    curvature_of: Callable[[nn.Module], Mapping[str, Tensor]],
    meter: Meter,
) -> tuple[dict[str, Tensor], list[Stage]]:
    """Damped OBD scores, each as of the stage at which its weight was deleted.

    Scores never fall from one stage to the next (a later deletion counts more than the dearest of the stage before), so
    one threshold reproduces the network of any stage, and the scores of a set sum to about the loss it costs. Biases,
    gains and gates are not deleted; theirs are of the full network.

    Args:
        model: only read; deletions happen in a copy.
        probe: batches on which every setting is tried.
        curvature_of: model -> diagonal curvature, see ``resgrow.curvature``.
        meter: told of every stage.
    """
    path = _Path(copy.deepcopy(model), loss_fn, probe)
    for density in densities(model):
        path.advance(curvature_of(path.model), density)
        meter.batch()
    return path.scores, path.stages


class _Path:
    """The copy that empties, what is left of it, and the scores so far."""

    def __init__(self, model: nn.Module, loss_fn: LossFn, probe: Sequence[Batch]) -> None:
        self.model, self.loss_fn, self.probe = model, loss_fn, probe
        self.scores: dict[str, Tensor] = {}
        self.stages: list[Stage] = []
        self._alive: dict[str, Tensor] = {}
        self._floor = 0.0

    def advance(self, h: Mapping[str, Tensor], density: float) -> None:
        """One stage: delete down to ``density`` under the best of the settings tried."""
        if not self._alive:
            self._alive = {name: self.model.get_parameter(name) != 0 for name in weight_names(h)}
        tried = {}
        for setting in itertools.product(self._dampings(), POWERS):
            scores = obd(self.model, h, *setting)
            keep = self._select(scores, density)
            tried[setting] = self._loss(keep), scores, keep
        damping, power = best = min(tried, key=lambda setting: tried[setting][0])
        self._record(*tried[best][1:])
        losses = {setting: loss for setting, (loss, _, _) in tried.items()}
        self.stages.append(Stage(1 - density, damping, power, losses))

    def _dampings(self) -> list[float]:
        last = self.stages[-1].damping if self.stages else 1.0
        return sorted({min(STRONGEST, max(WEAKEST, last * factor)) for factor in (1 / FACTOR, 1.0, FACTOR)})

    def _select(self, scores: Mapping[str, Tensor], density: float) -> dict[str, Tensor]:
        # Scores are >= 0, so that what is gone already comes first.
        ranked = [scores[name].masked_fill(~alive, -1.0) for name, alive in self._alive.items()]
        total = sum(score.numel() for score in ranked)
        return dict(zip(self._alive, select_mask(ranked, total - round(density * total)), strict=True))

    def _loss(self, keep: Mapping[str, Tensor]) -> float:
        weights = {name: self.model.get_parameter(name).detach() * mask for name, mask in keep.items()}
        return mean_loss("saliency", self.model, self.loss_fn, self.probe, weights)

    def _record(self, scores: Mapping[str, Tensor], keep: Mapping[str, Tensor]) -> None:
        """Take over the scores of all that was alive, and delete what goes."""
        if not self.scores:
            self.scores = dict(scores)
        dearest = self._floor
        for name, alive in self._alive.items():
            # In order also below the floor: a threshold may fall between the deletions of one stage.
            raised = scores[name].clamp_min(self._floor) + 0.01 * scores[name].clamp_max(self._floor)
            self.scores[name] = torch.where(alive, raised, self.scores[name])
            gone = alive & ~keep[name]
            if gone.any():
                # The next stage starts just above, or a threshold between the two could not tell them apart.
                above = raised[gone].max().nextafter(raised.new_tensor(torch.inf))
                dearest = max(dearest, float(above))
            with torch.no_grad():
                self.model.get_parameter(name).mul_(keep[name])
        self._floor = dearest
        self._alive = dict(keep)
