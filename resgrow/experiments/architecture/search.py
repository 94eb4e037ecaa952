"""Architecture learning against searches for widths from outside, with all compute counted.

Every method minimises J = cross-entropy on held-out images + 0.005 x neurons, over LeNet-5's widths up to 20-50-500-10
and whether the third layer is merged into the last. One run of architecture learning is the unit of compute; a search
has one or two of them for its trials, each a training of a quarter as many epochs, and for the training of the best
network to the end. Compute is the multiply-accumulates of `training_macs`; the network that learns its architecture
counts at full size from start to end. Test images are used for reporting only.

Source: Srinivas & Babu, "Learning neural network architectures using backpropagation", who compare with Bayesian
optimisation (spearmint) of the same objective.
"""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any

from torch import nn

import resgrow.data
from resgrow.data import Dataset
from resgrow.experiments.architecture import search_report
from resgrow.experiments.architecture.learning import accuracy, learn, train
from resgrow.experiments.architecture.searchers import METHODS, Price, best, search
from resgrow.experiments.architecture.table import ACTIVATIONS
from resgrow.experiments.architecture.widths import LENET5, Widths, build, hold_out, training_macs
from resgrow.experiments.config import FitConfig, make_config
from resgrow.experiments.frame.data_part import first_images
from resgrow.experiments.frame.experiment import Experiment, Quick, Settings
from resgrow.experiments.frame.runs import Result, Runs
from resgrow.experiments.models import as_network, build_model
from resgrow.experiments.training import Training
from resgrow.surgery import swap_activations
from resgrow.surgery.count import count_params

# The penalty's coefficient, and with it what a neuron costs in the objective.
GATES = 5e-3
LEARN = ("width", "width", "both")
# Budgets of a search, in runs of architecture learning.
FACTORS = (1, 2)
# Of all trainings, that of LeNet-5's recipe. In a few epochs small networks get twice as far with it as with a third.
LEARNING_RATE = 3e-3
# Runs with others are other runs.
CONSTANTS = {"gates": GATES, "lr": LEARNING_RATE}
# A trial has a quarter of a training's epochs.
TRIAL_SHARE = 4
QUICK_IMAGES = 3_000
# What is known of every network, tried or trained to the end.
JUDGED = ("objective", "val_loss", "neurons", "params", "test_accuracy")


class Problem:
    """The objective for one seed and number of epochs, and the compute it takes. Networks once trained are kept."""

    def __init__(self, runs: Runs, data: Dataset, seed: int, epochs: int) -> None:
        self.runs = runs
        self.data = data
        self.held = hold_out(data)
        self.final = _config(seed, epochs)
        self.trial = _config(seed, max(1, epochs // TRIAL_SHARE))

    @cached_property
    def unit(self) -> int:
        """Compute of one run of architecture learning."""
        return training_macs(build(LENET5, self.data, 0), self.held, self.final)

    def price(self, widths: Widths) -> Price:
        model = build(widths, self.data, 0)
        return Price(training_macs(model, self.held, self.trial), training_macs(model, self.held, self.final))

    def trained(self, widths: Widths, config: FitConfig) -> Result:
        """What becomes of a network. Known by widths, seed and epochs, so that a search is resumed without training."""

        def make() -> dict[str, Any]:
            model = build(widths, self.held, config.seed)
            return self.judged(model, widths, train(model, self.held, config))

        known = {"network": widths.as_list(), "seed": config.seed, "epochs": config.epochs, **CONSTANTS}
        return self.runs.make(known, make)

    def judged(self, model: nn.Module, widths: Widths, training: Training) -> dict[str, Any]:
        """``training``: after its last epoch the loss was that of ``model``."""
        loss = training.epochs[-1].test_loss
        return {
            "objective": loss + GATES * widths.neurons,
            "val_loss": loss,
            "neurons": widths.neurons,
            "params": count_params(model),
            "test_accuracy": accuracy(model, self.data),
        }


def learnt(problem: Problem) -> dict[str, Any]:
    """One run of architecture learning, with the weights that it learnt."""
    like = build_model(problem.final, problem.held)
    words = dict(zip(ACTIVATIONS, LEARN, strict=True))
    gated = as_network(swap_activations(like, problem.held.train_x[:1], learn=words))
    found = learn(gated, problem.held, problem.final, GATES)
    first, second, third = (found.gates.widths()[name] for name in ACTIVATIONS)
    widths = Widths(first, second, None if found.gates.linear() else third)
    judged = problem.judged(found.small, widths, found.training)
    spent = training_macs(gated, problem.held, problem.final) / problem.unit
    return {"found": widths.as_list(), **judged, "spent": spent, "work_seconds": found.training.seconds}


def searched(problem: Problem, method: str, factor: float) -> dict[str, Any]:
    """A search within ``factor`` runs' worth of compute, and its best network trained to the end within the same."""
    seed = problem.final.seed
    tried: list[Result] = []

    def measure(widths: Widths) -> float:
        tried.append(problem.trained(widths, problem.trial))
        return float(tried[-1]["objective"])

    done = search(method, seed, int(factor * problem.unit), problem.price, measure)
    widths = best(done.trials).widths
    final = problem.trained(widths, problem.final)
    return {
        "found": widths.as_list(),
        **{key: final[key] for key in JUDGED},
        "spent": (done.trials[-1].spent + problem.price(widths).final) / problem.unit,
        "work_seconds": done.seconds + final["seconds"] + sum(run["seconds"] for run in tried),
        "trials": len(tried),
        "curve": [
            {"found": run["network"], **{key: run[key] for key in JUDGED}, "spent": trial.spent / problem.unit}
            for trial, run in zip(done.trials, tried, strict=True)
        ],
    }


def run(runs: Runs, settings: Settings) -> None:
    data = first_images(resgrow.data.load("mnist", settings.data_dir, False), QUICK_IMAGES if settings.quick else None)
    for seed in settings.seeds:
        problem = Problem(runs, data, seed, settings.epochs)
        for part in settings.only:
            known = {"part": part, "seed": seed, "epochs": settings.epochs, **CONSTANTS}
            if part == "learnt":
                runs.make(known, partial(learnt, problem))
                continue
            for factor in FACTORS[:1] if settings.quick else FACTORS:
                runs.make({**known, "factor": factor}, partial(searched, problem, part, factor))


def _config(seed: int, epochs: int) -> FitConfig:
    return make_config("mnist", "lenet5", budget="params=1", epochs=epochs, lr=LEARNING_RATE, seed=seed)


EXPERIMENT = Experiment(
    question="One run of architecture learning against searches for LeNet-5's widths, by compute: which finds less J = "
    f"cross-entropy of held-out images + {GATES} x neurons?",
    epochs=4,
    run=run,
    tell=search_report.tell,
    draw=search_report.draw,
    parts=("learnt", *METHODS),
    title="Searches from outside",
    quick=Quick(epochs=4, parts=("learnt", "random")),
)
