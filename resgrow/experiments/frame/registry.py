"""Experiments by name. Their modules are imported when they are asked for: the command line need not wait for all."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module

from resgrow._errors import InputError
from resgrow.experiments.frame.experiment import Experiment

# The module whose EXPERIMENT it is, in the order in which a book has them.
REGISTRY = {
    "saliency-truth": "resgrow.experiments.saliency_truth.experiment",
    "ripple": "resgrow.experiments.localise.ripple",
    "architecture-learning": "resgrow.experiments.architecture.chapters",
    "cifar10": "resgrow.experiments.controller.cifar",
    "speed": "resgrow.experiments.speed.experiment",
    "capacity": "resgrow.experiments.controller.capacity",
    "robustness": "resgrow.experiments.controller.robustness",
    "overhead": "resgrow.experiments.controller.overhead",
}


def experiment(name: str) -> Experiment:
    """Raises InputError: there is none of this name."""
    check([name])
    found: Experiment = import_module(REGISTRY[name]).EXPERIMENT
    return found


def check(names: Iterable[str]) -> None:
    """Raises InputError: there is no experiment of one of these names."""
    unknown = [name for name in names if name not in REGISTRY]
    if unknown:
        raise InputError(
            f"experiment: NAME must be one of {', '.join(REGISTRY)} (got {', '.join(unknown)}); "
            "`resgrow experiment --list` tells what they ask"
        )
