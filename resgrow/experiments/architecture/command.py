"""The command line of the architecture experiments."""

from __future__ import annotations

from collections.abc import Sequence

from resgrow.experiments.architecture import classes, coefficients, depth, finetune, search, table
from resgrow.experiments.architecture.experiment import Experiment
from resgrow.experiments.architecture.running import run_experiments

EXPERIMENTS: dict[str, Experiment] = {
    "table": table.EXPERIMENT,
    "coefficients": coefficients.EXPERIMENT,
    "classes": classes.EXPERIMENT,
    "depth": depth.EXPERIMENT,
    "finetune": finetune.EXPERIMENT,
    "search": search.EXPERIMENT,
}


def main(arguments: Sequence[str] | None = None) -> None:
    run_experiments(
        EXPERIMENTS, "python -m resgrow.experiments.architecture", "Experiments with tri-state ReLUs.", arguments
    )
