"""Weights deleted one by one and in growing sets: what criteria predict that costs, and what it does cost."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import resgrow
from resgrow.experiments.saliency_truth.networks import Net
from resgrow.saliency import LOSS

# Shares of all weights that sets consist of.
SHARES = (0.01, 0.02, 0.05, *(round(0.1 * i, 1) for i in range(1, 10)), 0.95)
# A rise of the loss below this, predicted and measured, is none.
FLOOR = 1e-4
FACTOR = 2.0

HESSIAN, GGN, STEPS, PATH = "hessian", "ggn", "ggn, stepwise", "damped, along a path"
# Optimal Brain Damage, undamped, but for the path, whose stages choose their damping. Both it and "stepwise" take
# curvature anew after each of their steps.
CRITERIA: dict[str, dict[str, Any]] = {
    HESSIAN: {"curvature": "hessian", "damping": 0.0},
    GGN: {"curvature": "ggn", "damping": 0.0},
    STEPS: {"curvature": "ggn", "damping": 0.0},
    "ggn-mc": {"curvature": "ggn-mc", "damping": 0.0},
    "lecun": {"curvature": "lecun", "damping": 0.0},
    "fisher": {"method": "fisher"},
    PATH: {"curvature": "ggn", "damping": "auto"},
    "magnitude": {"method": "magnitude"},
}

Point = tuple[float, float | None, float]


def scores(net: Net, criterion: str) -> tuple[dict[str, Tensor], bool]:
    """Of the weights that are deleted, float64, and whether their sums are in units of the loss."""
    found = resgrow.saliency(net.model, net.loss_fn, (net.x, net.y), **CRITERIA[criterion])
    return {name: found[name].double() for name in net.weights}, found.unit == LOSS


def chosen(net: Net, per_layer: int, seed: int) -> dict[str, list[int]]:
    """Some weights of each layer, drawn evenly, by their places in the flattened tensors."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randperm(weight.numel(), generator=generator)[:per_layer].tolist()
        for name, weight in net.weights.items()
    }


def rises(net: Net, places: Mapping[str, Sequence[int]]) -> list[float]:
    """What deleting each of these alone costs, measured."""
    found = []
    for name, indices in places.items():
        for index in indices:
            weight = net.weights[name].clone()
            weight.view(-1)[index] = 0
            found.append(net.loss({name: weight}) - net.dense)
    return found


def at(score: Mapping[str, Tensor], places: Mapping[str, Sequence[int]]) -> list[float]:
    """What is predicted of them, in the same order."""
    return [float(score[name].flatten()[index]) for name, indices in places.items() for index in indices]


def growing(net: Net, score: Mapping[str, Tensor], in_loss: bool) -> list[Point]:
    """(share, predicted, measured rise) of deleting the weights of the lowest scores; without prediction: None."""
    order, sums = _in_order(score)
    points = list[Point]()
    for share in SHARES:
        left, count = _without(net.weights, order, share)
        points.append((share, float(sums[count - 1]) if in_loss else None, net.loss(left) - net.dense))
    return points


def stepwise(net: Net) -> list[Point]:
    """As `growing` by "ggn", but with the curvature of the network that each step left, and adding what it deletes."""
    points, predicted = list[Point](), 0.0
    left = copy.deepcopy(net.model)
    for share in SHARES:
        found = resgrow.saliency(left, net.loss_fn, (net.x, net.y), **CRITERIA[GGN])
        # What is deleted already comes first: its own score is 0, as are those of dead weights.
        score = {name: found[name].masked_fill(left.get_parameter(name) == 0, -1.0) for name in net.weights}
        order, _ = _in_order(score)
        sums = torch.cat([found[name].flatten() for name in net.weights])[order].cumsum(0)
        weights, count = _without(net.weights, order, share)
        predicted += float(sums[count - 1])
        with torch.no_grad():
            for name, weight in weights.items():
                left.get_parameter(name).copy_(weight)
        points.append((share, predicted, net.loss(weights) - net.dense))
    return points


def _in_order(score: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Places of all weights from the lowest to the highest, and the sums of their scores in this order."""
    every = torch.cat([each.flatten() for each in score.values()])
    order = every.argsort(stable=True)
    return order, every[order].cumsum(0)


def _without(weights: Mapping[str, Tensor], order: Tensor, share: float) -> tuple[dict[str, Tensor], int]:
    """All weights, the first of these places deleted, and how many."""
    count = max(1, round(share * len(order)))
    keep = torch.ones(len(order), dtype=torch.bool)
    keep[order[:count]] = False
    parts = keep.split([weight.numel() for weight in weights.values()])
    left = {name: w * part.view_as(w) for (name, w), part in zip(weights.items(), parts, strict=True)}
    return left, count


def holds(points: Sequence[Point]) -> float:
    """The largest share up to which no set's rise differs from its prediction by more than `FACTOR`; 0: the first does.

    A rise that is negative differs from any prediction above `FLOOR`.
    """
    last = 0.0
    for share, predicted, measured in points:
        if predicted is None or not _alike(predicted, measured):
            break
        last = share
    return last


def _alike(predicted: float, measured: float) -> bool:
    if max(abs(predicted), abs(measured)) < FLOOR:
        return True
    low, high = sorted((predicted, measured))
    return 0 < high <= FACTOR * low


class Truth:
    """A network with the measured rises of single weights, which all criteria are compared with."""

    def __init__(self, net: Net, per_layer: int, seed: int) -> None:
        self.net = net
        self._places = chosen(net, per_layer, seed)
        self._rises: list[float] | None = None

    def judge(self, criterion: str) -> dict[str, Any]:
        """Everything of one criterion, as plain numbers."""
        score, in_loss = scores(self.net, criterion)
        if self._rises is None:
            self._rises = rises(self.net, self._places)
        points = stepwise(self.net) if criterion == STEPS else growing(self.net, score, in_loss)
        return {
            "loss": self.net.dense,
            "weights": sum(weight.numel() for weight in self.net.weights.values()),
            "in_loss": in_loss,
            "pairs": list(zip(at(score, self._places), self._rises, strict=True)),
            "sets": points,
            "holds": holds(points) if in_loss else None,
        }
