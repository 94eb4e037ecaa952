"""Does the depth that is learnt depend on the depth at the start? Plain fully connected networks on MNIST.

Hidden layers of 100 neurons each, 6 to 15 layers in all; widths and depths of all of them are learnt. In the end every
run of linear layers is merged (each merger saves parameters here); the layers that are left are those of the network
found.

Source: Srinivas & Babu, "Learning neural network architectures using backpropagation", table 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from statistics import fmean
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

import resgrow.data
from resgrow.data import Dataset
from resgrow.experiments.architecture.learning import accuracy, deviation, learn, train
from resgrow.experiments.config import FitConfig, make_config
from resgrow.experiments.frame.data_part import first_images
from resgrow.experiments.frame.experiment import Experiment, Quick, Settings, spread, table
from resgrow.experiments.frame.runs import Result, Runs
from resgrow.report.style import SIZED
from resgrow.surgery import swap_activations
from resgrow.surgery.count import count_params

DEPTHS = (6, 8, 10, 12, 15)
QUICK_DEPTHS, QUICK_IMAGES = (6, 10), 12_000
WIDTH = 100
GATES = 5e-3


def plain_network(layers: int, data: Dataset, seed: int) -> nn.Sequential:
    """So many linear layers with ReLUs between them, weights after He et al. (2015): deep ones do not train else."""
    sizes = [data.train_x[0].numel(), *[WIDTH] * (layers - 1), len(data.classes)]
    parts: list[nn.Module] = [nn.Flatten()]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for i, (before, after) in enumerate(pairwise(sizes)):
            layer = nn.Linear(before, after)
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
            parts += [nn.ReLU(), layer] if i else [layer]
    return nn.Sequential(*parts)


def depth_of(model: nn.Module) -> int:
    """Linear layers."""
    return sum(isinstance(module, nn.Linear) for module in model.modules())


def learn_depth(layers: int, config: FitConfig, data: Dataset) -> dict[str, Any]:
    gated = swap_activations(plain_network(layers, data, config.seed), data.train_x[:1])
    found = learn(gated, data, config, GATES)
    return {
        "found": depth_of(found.small),
        "widths": [m.out_features for m in found.small.modules() if isinstance(m, nn.Linear)],
        "params": count_params(found.small),
        "accuracy": accuracy(found.small, data),
        "deviation": deviation(gated, data),
    }


def train_plain(layers: int, config: FitConfig, data: Dataset) -> dict[str, Any]:
    """The control: the network at the start, without gates."""
    model = plain_network(layers, data, config.seed)
    training = train(model, data, config)
    return {"params": count_params(model), "accuracy": training.epochs[-1].test_accuracy}


def run(runs: Runs, settings: Settings) -> None:
    data = first_images(resgrow.data.load("mnist", settings.data_dir, False), QUICK_IMAGES if settings.quick else None)
    for seed in settings.seeds:
        config = make_config("mnist", "lenet5", budget="params=1", epochs=settings.epochs, lr=1e-3, seed=seed)
        for layers in QUICK_DEPTHS if settings.quick else DEPTHS:
            for what, make in (("learnt", learn_depth), ("plain", train_plain)):
                if what in settings.only:
                    known = {"what": what, "layers": layers, "seed": seed, "epochs": settings.epochs}
                    runs.make(
                        known | ({"gates": GATES} if what == "learnt" else {}), partial(make, layers, config, data)
                    )


def _pick(results: Sequence[Result], what: str, epochs: int, layers: int | None = None) -> list[Result]:
    found = [run for run in results if (run["what"], run["epochs"]) == (what, epochs)]
    return [run for run in found if layers in (None, run["layers"])]


def _epochs(results: Sequence[Result]) -> list[int]:
    return sorted({run["epochs"] for run in results})


def tell(results: Sequence[Result]) -> str:
    rows = []
    for epochs in _epochs(results):
        for layers in DEPTHS:
            learnt, plain = (_pick(results, what, epochs, layers) for what in ("learnt", "plain"))
            errors = [spread([100 - 100 * r["accuracy"] for r in runs]) if runs else "" for runs in (learnt, plain)]
            if learnt:
                found = ", ".join(str(run["found"]) for run in learnt)
                size = spread([run["params"] for run in learnt], ",.0f")
                mean = f"{fmean(run['found'] for run in learnt):.1f}"
                rows.append((epochs, layers, len(learnt), found, mean, size, *errors))
    head = (
        *("epochs", "layers at the start", "seeds", "layers found, each seed", "mean", "parameters", "error (%)"),
        "error without gates (%)",
    )
    worst = max((run["deviation"] for run in results if "deviation" in run), default=0.0)
    return f"{table(head, rows)}\n\nMerged against gated network, float64: at most {worst:.1e} (relative)."


def draw(figure: Figure, results: Sequence[Result]) -> None:
    for axes, epochs in zip(np.atleast_1d(figure.subplots(1, len(_epochs(results)))), _epochs(results), strict=True):
        learnt = _pick(results, "learnt", epochs)
        for seed in sorted({run["seed"] for run in learnt}):
            runs = sorted((run for run in learnt if run["seed"] == seed), key=lambda run: run["layers"])
            axes.plot([r["layers"] for r in runs], [r["found"] for r in runs], "o-", markersize=3, color=SIZED)
        axes.set(title=f"Depth found, {epochs} epochs", xlabel="layers at the start", ylabel="layers found")
        axes.set_ylim(bottom=0)


EXPERIMENT = Experiment(
    question="Does the depth that is learnt depend on the depth at the start?",
    epochs=4,
    run=run,
    tell=tell,
    draw=draw,
    parts=("learnt", "plain"),
    title="Depth",
    quick=Quick(epochs=3),
)
