"""The command line of the localisation experiments."""

from __future__ import annotations

from collections.abc import Sequence

from resgrow.experiments.architecture.experiment import Experiment
from resgrow.experiments.architecture.running import run_experiments
from resgrow.experiments.localise import grow, shrink

EXPERIMENTS: dict[str, Experiment] = {"grow": grow.EXPERIMENT, "shrink": shrink.EXPERIMENT}


def main(arguments: Sequence[str] | None = None) -> None:
    about = "Which layer to change: rules against trying all of them."
    run_experiments(EXPERIMENTS, "python -m resgrow.experiments.localise", about, arguments)
