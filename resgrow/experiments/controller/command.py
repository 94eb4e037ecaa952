"""The command line of the controller's experiments."""

from __future__ import annotations

from collections.abc import Sequence

from resgrow.experiments.architecture.experiment import Experiment
from resgrow.experiments.architecture.running import run_experiments
from resgrow.experiments.controller import capacity, cifar, overhead, robustness

EXPERIMENTS: dict[str, Experiment] = {
    "capacity": capacity.EXPERIMENT,
    "robustness": robustness.EXPERIMENT,
    "overhead": overhead.EXPERIMENT,
    "cifar": cifar.EXPERIMENT,
}


def main(arguments: Sequence[str] | None = None) -> None:
    about = "The controller on small networks and on ResNet-20."
    run_experiments(EXPERIMENTS, "python -m resgrow.experiments.controller", about, arguments)
