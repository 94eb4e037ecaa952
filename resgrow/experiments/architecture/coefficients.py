"""What the penalty's coefficients do: open neurons of LeNet-5's third layer while they are learnt.

``l3``, the price of a neuron, decides how many stay. ``l1``, what makes gates binary, decides how long the architecture
keeps changing: the paper's rule is ``l1 = 2 l3``. Only the third layer learns its width, on a third of MNIST.

Source: Srinivas & Babu, "Learning neural network architectures using backpropagation", figure 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

import resgrow.data
from resgrow.data import Dataset
from resgrow.experiments.architecture.learning import accuracy, learn
from resgrow.experiments.config import FitConfig, make_config
from resgrow.experiments.frame.data_part import first_images, with_classes
from resgrow.experiments.frame.experiment import Experiment, Quick, Settings, spread, table
from resgrow.experiments.frame.runs import Result, Runs
from resgrow.experiments.models import as_network, build_model
from resgrow.penalties import GateCoefficients
from resgrow.surgery import swap_activations

IMAGES, QUICK_IMAGES = 20_000, 2_000
# (l3, l1 / l3)
PRICES = ((5e-4, 2.0), (1e-3, 2.0), (2e-3, 2.0), (4e-3, 2.0))
BINDINGS = ((1e-3, 1.1), (1e-3, 2.0), (1e-3, 4.0), (1e-3, 8.0))
_THIRD = "8"


def learn_third(price: float, binding: float, config: FitConfig, data: Dataset) -> dict[str, Any]:
    """Open neurons every quarter of an epoch, and the accuracy in the end."""
    words = {"2": "neither", "5": "neither", _THIRD: "width"}
    gated = as_network(swap_activations(build_model(config, data), data.train_x[:1], learn=words))
    coefficients = replace(GateCoefficients.of(price), binary_width=binding * price)
    found = learn(gated, data, config, coefficients)
    return {
        "steps": [point["step"] for point in found.curve],
        "curve": [point["widths"][_THIRD] for point in found.curve],
        "neurons": found.gates.widths()[_THIRD],
        "settled": settled([point["widths"][_THIRD] for point in found.curve]),
        "accuracy": accuracy(found.small, data),
    }


def settled(widths: Sequence[int], slack: float = 0.05) -> float:
    """From which share of the training on all widths lie within ``slack`` of the last one (at least one neuron)."""
    last = widths[-1]
    moving = [i for i, width in enumerate(widths) if abs(width - last) > max(1.0, slack * last)]
    return (moving[-1] + 1) / len(widths) if moving else 0.0


def run(runs: Runs, settings: Settings) -> None:
    whole = first_images(resgrow.data.load("mnist", settings.data_dir, False), QUICK_IMAGES if settings.quick else None)
    data = with_classes(whole, range(len(whole.classes)), min(IMAGES, len(whole.train_y)))
    for seed in settings.seeds:
        config = make_config("mnist", "lenet5", budget="params=1", epochs=settings.epochs, lr=1e-3, seed=seed)
        for price, binding in dict.fromkeys((*PRICES, *BINDINGS)):
            known = {"l3": price, "l1 / l3": binding, "seed": seed, "epochs": settings.epochs}
            runs.make(known, partial(learn_third, price, binding, config, data))


def _pick(results: Sequence[Result], price: float, binding: float) -> list[Result]:
    return [run for run in results if (run["l3"], run["l1 / l3"]) == (price, binding)]


def tell(results: Sequence[Result]) -> str:
    rows = []
    for price, binding in dict.fromkeys((*PRICES, *BINDINGS)):
        runs = _pick(results, price, binding)
        if runs:
            neurons = spread([run["neurons"] for run in runs], ".1f")
            when = spread([100 * run["settled"] for run in runs], ".0f")
            right = spread([100 * run["accuracy"] for run in runs])
            rows.append((f"{price:g}", f"{binding:g}", runs[0]["epochs"], len(runs), neurons, when, right))
    return table(("l3", "l1 / l3", "epochs", "seeds", "neurons", "settled after (% of training)", "accuracy (%)"), rows)


def draw(figure: Figure, results: Sequence[Result]) -> None:
    left, right = figure.subplots(1, 2, sharey=True)
    _lines(left, results, PRICES, "price of a neuron", "l3 = {0:g}")
    _lines(right, results, BINDINGS, "strength of the binarising term", "l1 = {1:g} l3")
    left.set_ylabel("open neurons of the third layer")


def _lines(
    axes: Axes, results: Sequence[Result], settings: Sequence[tuple[float, float]], title: str, label: str
) -> None:
    for number, (price, binding) in enumerate(settings):
        for i, run in enumerate(_pick(results, price, binding)):
            name = label.format(price, binding) if i == 0 else None
            axes.plot(run["steps"], run["curve"], color=f"C{number}", linewidth=1, label=name)
    axes.set(title=title, xlabel="step", yscale="log")
    if axes.get_lines():
        axes.legend(fontsize=8)


EXPERIMENT = Experiment(
    question="What do the coefficients of the gates' penalty do to the number of neurons, over time?",
    epochs=8,
    run=run,
    tell=tell,
    draw=draw,
    title="The coefficients",
    quick=Quick(epochs=2),
)
