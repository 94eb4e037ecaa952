"""Harder data, larger networks? LeNet-5's widths are learnt on 2 to 10 classes of MNIST, all else being equal.

All three layers learn their widths; the number of images and of steps is the same whatever the number of classes, so
that nothing but the problem grows.

Source: Srinivas & Babu, "Learning neural network architectures using backpropagation", figure 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure
from scipy.stats import spearmanr

import resgrow.data
from resgrow.data import Dataset
from resgrow.experiments.architecture.learning import accuracy, learn
from resgrow.experiments.config import FitConfig, make_config
from resgrow.experiments.frame.data_part import first_images, with_classes
from resgrow.experiments.frame.experiment import Experiment, Quick, Settings, spread, table
from resgrow.experiments.frame.runs import Result, Runs
from resgrow.experiments.models import as_network, build_model
from resgrow.report.style import SIZED, UNDONE
from resgrow.surgery import swap_activations

IMAGES = 10_000
CLASSES = tuple(range(2, 11))
# A low price of a neuron leaves room for differences; at a high one all networks are small.
PRICES = (1e-3, 4e-3)
QUICK_IMAGES, QUICK_CLASSES = 2_000, (2, 6, 10)
_ACTIVATIONS = ("2", "5", "8")


def learn_widths(price: float, config: FitConfig, data: Dataset) -> dict[str, Any]:
    gated = as_network(swap_activations(build_model(config, data), data.train_x[:1], learn="width"))
    found = learn(gated, data, config, price)
    widths = [found.gates.widths()[name] for name in _ACTIVATIONS]
    return {"widths": widths, "neurons": sum(widths), "accuracy": accuracy(found.small, data)}


def run(runs: Runs, settings: Settings) -> None:
    whole = first_images(resgrow.data.load("mnist", settings.data_dir, False), QUICK_IMAGES if settings.quick else None)
    images, numbers = (QUICK_IMAGES, QUICK_CLASSES) if settings.quick else (IMAGES, CLASSES)
    numbers = tuple(number for number in numbers if number <= len(whole.classes))
    for seed in settings.seeds:
        config = make_config("mnist", "lenet5", budget="params=1", epochs=settings.epochs, lr=1e-3, seed=seed)
        for price, classes in product(PRICES, numbers):
            data = with_classes(whole, range(classes), min(images, len(whole.train_y) // len(whole.classes) * classes))
            known = {"classes": classes, "seed": seed, "epochs": settings.epochs, "gates": price}
            runs.make(known, partial(learn_widths, price, config, data))


def rank_correlation(runs: Sequence[Result], layer: int) -> float:
    """Spearman's, of classes with the layer's open neurons; means over seeds, where there are several."""
    classes = sorted({run["classes"] for run in runs})
    widths = [fmean(run["widths"][layer] for run in runs if run["classes"] == count) for count in classes]
    return float(spearmanr(classes, widths).statistic)


def _by_price(results: Sequence[Result]) -> dict[float, list[Result]]:
    prices = sorted({run["gates"] for run in results})
    return {price: [run for run in results if run["gates"] == price] for price in prices}


def _by_seed(runs: Sequence[Result]) -> list[list[Result]]:
    seeds = sorted({run["seed"] for run in runs})
    return [sorted((run for run in runs if run["seed"] == seed), key=lambda run: run["classes"]) for seed in seeds]


def tell(results: Sequence[Result]) -> str:
    rows, said = [], []
    for price, runs in _by_price(results).items():
        for classes in CLASSES:
            group = [run for run in runs if run["classes"] == classes]
            if group:
                widths = [spread([run["widths"][layer] for run in group], ".1f") for layer in range(3)]
                error = spread([100 - 100 * run["accuracy"] for run in group])
                rows.append((f"{price:g}", classes, len(group), *widths, error))
        each = ", ".join(f"{rank_correlation(own, 2):.2f}" for own in _by_seed(runs) if len(own) > 2)
        said.append(f"l3 = {price:g}: by seed {each}; of the means {rank_correlation(runs, 2):.2f}.")
    head = ("l3", "classes", "seeds", "first layer", "second layer", "third layer", "error (%)")
    about = "Spearman's rank correlation of classes and third-layer neurons, "
    return f"{table(head, rows)}\n\n{about}{' '.join(said)}"


def draw(figure: Figure, results: Sequence[Result]) -> None:
    left, right = figure.subplots(1, 2)
    for number, (price, runs) in enumerate(_by_price(results).items()):
        for i, own in enumerate(_by_seed(runs)):
            classes, label = [run["classes"] for run in own], f"l3 = {price:g}" if i == 0 else None
            style: Any = {"marker": "o", "markersize": 3, "linewidth": 1, "color": (SIZED, UNDONE)[number % 2]}
            left.plot(classes, [run["widths"][2] for run in own], label=label, **style)
            right.plot(classes, [100 - 100 * run["accuracy"] for run in own], **style)
    left.set(title="third-layer neurons", xlabel="classes", ylim=(0, None))
    right.set(title="test error (%)", xlabel="classes")
    left.legend(fontsize=8)


EXPERIMENT = Experiment(
    question="Do harder problems get larger networks: neurons learnt on 2 to 10 classes of MNIST?",
    epochs=6,
    run=run,
    tell=tell,
    draw=draw,
    title="Harder problems",
    quick=Quick(epochs=3),
)
