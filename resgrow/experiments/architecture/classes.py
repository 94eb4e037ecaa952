"""Harder data, larger networks? LeNet-5's widths are learnt on 2 to 10 classes of MNIST, all else being equal.

All three layers learn their widths; the number of images and of steps is the same whatever the number of classes, so
that nothing but the problem grows.

Source: Srinivas & Babu, "Learning neural network architectures using backpropagation", figure 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure
from scipy.stats import spearmanr

import resgrow.data
from resgrow.data import Dataset
from resgrow.experiments.architecture.experiment import Experiment, Settings, spread, table
from resgrow.experiments.architecture.learning import accuracy, learn
from resgrow.experiments.architecture.part import with_classes
from resgrow.experiments.architecture.runs import Result, Runs
from resgrow.experiments.config import FitConfig, make_config
from resgrow.experiments.models import as_network, build_model
from resgrow.report.style import DENSE, SIZED
from resgrow.surgery import swap_activations

IMAGES = 10_000
CLASSES = tuple(range(2, 11))
GATES = 4e-3
_ACTIVATIONS = ("2", "5", "8")


def learn_widths(config: FitConfig, data: Dataset) -> dict[str, Any]:
    gated = as_network(swap_activations(build_model(config, data), data.train_x[:1], learn="width"))
    found = learn(gated, data, config, GATES)
    widths = [found.gates.widths()[name] for name in _ACTIVATIONS]
    return {"widths": widths, "neurons": sum(widths), "accuracy": accuracy(found.small, data)}


def run(runs: Runs, settings: Settings) -> None:
    whole = resgrow.data.load("mnist", settings.data_dir, False)
    for seed in settings.seeds:
        config = make_config("mnist", "lenet5", budget="params=1", epochs=settings.epochs, lr=1e-3, seed=seed)
        for classes in CLASSES[: len(whole.classes) - 1]:
            data = with_classes(whole, range(classes), min(IMAGES, len(whole.train_y) // len(whole.classes) * classes))
            known = {"classes": classes, "seed": seed, "epochs": settings.epochs, "gates": GATES}
            runs.make(known, partial(learn_widths, config, data))


def rank_correlations(results: Sequence[Result], layer: int) -> dict[int, float]:
    """Spearman's, of classes with open neurons of the layer, for each seed with three or more runs."""
    found = {}
    for seed in sorted({run["seed"] for run in results}):
        runs = [run for run in results if run["seed"] == seed]
        if len(runs) > 2:
            found[seed] = float(spearmanr([r["classes"] for r in runs], [r["widths"][layer] for r in runs]).statistic)
    return found


def tell(results: Sequence[Result]) -> str:
    rows = []
    for classes in CLASSES:
        runs = [run for run in results if run["classes"] == classes]
        if runs:
            widths = [spread([run["widths"][layer] for run in runs], ".1f") for layer in range(3)]
            error = spread([100 - 100 * run["accuracy"] for run in runs])
            rows.append((classes, len(runs), *widths, error))
    head = ("classes", "seeds", "first layer", "second layer", "third layer", "error (%)")
    third = ", ".join(f"{value:.2f}" for value in rank_correlations(results, 2).values())
    return f"{table(head, rows)}\n\nSpearman's rank correlation of classes and third-layer neurons, each seed: {third}."


def draw(figure: Figure, results: Sequence[Result]) -> None:
    left, right = figure.subplots(1, 2)
    for seed in sorted({run["seed"] for run in results}):
        runs = [run for run in results if run["seed"] == seed]
        left.plot([r["classes"] for r in runs], [r["widths"][2] for r in runs], "o-", markersize=3, color=SIZED)
        right.plot(
            [r["classes"] for r in runs], [100 - 100 * r["accuracy"] for r in runs], "o-", markersize=3, color=DENSE
        )
    left.set(title="third-layer neurons", xlabel="classes")
    right.set(title="test error (%)", xlabel="classes")


EXPERIMENT = Experiment(
    question="Do harder problems get larger networks: neurons learnt on 2 to 10 classes of MNIST?",
    epochs=6,
    run=run,
    tell=tell,
    draw=draw,
)
