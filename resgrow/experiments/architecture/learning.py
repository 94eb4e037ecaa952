"""One run of architecture learning: weights and gates trained together, the network found, and that trained afresh."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from resgrow.data import Dataset
from resgrow.experiments.config import GATE_TRAVEL, FitConfig
from resgrow.experiments.measure import evaluate
from resgrow.experiments.models import as_network
from resgrow.experiments.training import Training, make_optimizer, steps_per_epoch, total_steps
from resgrow.penalties import GateCoefficients, Gates
from resgrow.surgery import compact, merge_linear, settle_gates


@dataclass(frozen=True)
class Learnt:
    """What came of it.

    ``gated``: the network with its gates. ``small``: without them, closed channels removed and linear layers merged
    where that saves. ``curve``: {"step", "widths", "linear"} every quarter of an epoch. ``epochs``: of the training.
    """

    gated: nn.Module
    gates: Gates
    small: nn.Module
    curve: list[dict[str, Any]]
    training: Training


def learn(gated: nn.Module, data: Dataset, config: FitConfig, coefficients: float | GateCoefficients) -> Learnt:
    """Trains the network and its gates as ``config`` says; ``coefficients``: of the gates' penalty."""
    gates = Gates(gated)
    optimizer = make_optimizer(gates.param_groups(2 * GATE_TRAVEL / total_steps(config, data)), config)
    gates.attach(optimizer)
    curve: list[dict[str, Any]] = []
    every = max(1, steps_per_epoch(len(data.train_y), config.batch_size) // 4)

    def after_step(step: int, batch: object) -> None:
        if (step + 1) % every == 0:
            curve.append({"step": step + 1, "widths": gates.widths(), "linear": list(gates.linear())})

    training = Training("sized", gated, optimizer, data, config)
    training.run(
        params=lambda: 0,
        on_step=lambda *_: None,
        on_epoch=lambda _: None,
        penalty=lambda: gates.penalty(coefficients),
        after_step=after_step,
    )
    return Learnt(gated, gates, smaller(gated, data.train_x[:1]), curve, training)


def train(model: nn.Module, data: Dataset, config: FitConfig) -> Training:
    """Trains the network as it is."""
    training = Training("dense", model, make_optimizer(model.parameters(), config), data, config)
    training.run(params=lambda: 0, on_step=lambda *_: None, on_epoch=lambda _: None)
    return training


def renewed(model: nn.Module, seed: int) -> nn.Module:
    """The same architecture with new weights."""
    again = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in again.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
                module.reset_parameters()
    return as_network(again.train())


def smaller(gated: nn.Module, example: Tensor) -> nn.Module:
    """Closed channels removed, linear layers merged where that saves, and the gates gone."""
    return settle_gates(merge_linear(compact(gated, example), example).model)


@torch.no_grad()
def deviation(gated: nn.Module, data: Dataset) -> float:
    """Of the smaller network's outputs, made and run in float64, relative to the largest output."""
    x = data.test_x[:256].double()
    exact = copy.deepcopy(gated).double().eval()
    a, b = (model.eval()(x) for model in (exact, smaller(exact, x[:1])))
    return float((a - b).abs().max() / a.abs().max())


def accuracy(model: nn.Module, data: Dataset) -> float:
    """On the test images, in [0, 1]."""
    return evaluate(as_network(model), data.test_x, data.test_y)[1]
