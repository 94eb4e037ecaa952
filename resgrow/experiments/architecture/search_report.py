"""What the comparison of searches tells and draws, from its results alone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from matplotlib.figure import Figure

from resgrow.experiments.architecture.searchers import METHODS
from resgrow.experiments.architecture.widths import Widths
from resgrow.experiments.frame.experiment import spread, table
from resgrow.experiments.frame.runs import Result
from resgrow.report.style import DENSE, INK, SIZED, UNDONE

HEAD = (
    "method",
    "epochs",
    "seeds",
    "compute (learning runs)",
    "trials",
    "found",
    "J",
    "held-out loss",
    "neurons",
    "parameters",
    "test accuracy (%)",
    "seconds",
)
COLOURS = {"random": DENSE, "evolutionary": INK, "bayesian": UNDONE}


def tell(results: Sequence[Result]) -> str:
    """A line for each method, budget and number of epochs, means and deviations over seeds; and who was how soon."""
    runs = [result for result in results if "part" in result]  # the others are single networks
    kinds = sorted({_kind(run) for run in runs})
    lines = [_line([run for run in runs if _kind(run) == kind]) for kind in kinds]
    sentences = [
        _soon(method, epochs, runs) for epochs in sorted({run["epochs"] for run in runs}) for method in METHODS
    ]
    note = (
        "J = cross-entropy of held-out images + the coefficient x neurons. Compute: multiply-accumulates of all trials "
        "and of the last training. A search is as good as the learnt network of its seed as soon as a trial, or the "
        "last training, has no larger J."
    )
    return "\n\n".join([table(HEAD, lines), note, "\n\n".join(line for line in sentences if line)])


def _kind(run: Result) -> tuple[int, int, float]:
    """By which results are grouped and sorted."""
    return run["epochs"], (("learnt", *METHODS).index(run["part"])), run.get("factor", 1)


def _line(runs: Sequence[Result]) -> tuple[str, ...]:
    first = runs[0]
    name = first["part"] + (f", budget {first['factor']:g}" if "factor" in first else "")
    trials = spread([run["trials"] for run in runs], ".0f") if "trials" in first else ""
    return (
        name,
        str(first["epochs"]),
        str(len(runs)),
        spread([run["spent"] for run in runs]),
        trials,
        ", ".join(str(Widths(*run["found"])) for run in runs),
        spread([run["objective"] for run in runs], ".4f"),
        spread([run["val_loss"] for run in runs], ".4f"),
        spread([run["neurons"] for run in runs], ".1f"),
        spread([run["params"] for run in runs], ",.0f"),
        spread([100 * run["test_accuracy"] for run in runs]),
        spread([run["work_seconds"] for run in runs], ".0f"),
    )


def _soon(method: str, epochs: int, runs: Sequence[Result]) -> str:
    """How much compute a method needed until it was as good as the learnt network of the same seed and epochs."""
    said = []
    for goal in (run for run in runs if run["part"] == "learnt" and run["epochs"] == epochs):
        same = {"part": method, "seed": goal["seed"], "epochs": epochs, "gates": goal["gates"]}
        searches = [run for run in runs if all(run[key] == value for key, value in same.items())]
        if searches:
            needed = as_good_after(searches, goal["objective"])
            largest = max(run["factor"] for run in searches)
            said.append(f"not within {largest:g}" if needed is None else f"{needed:.2f}")
    return f"{method}, {epochs} epochs: learning runs until as good, by seed: {', '.join(said)}." if said else ""


def as_good_after(searches: Sequence[Result], objective: float) -> float | None:
    """Least compute at which one of ``searches`` had a network of at most this objective; None if none had."""
    points = [point for search in searches for point in (*search["curve"], search)]
    return min((point["spent"] for point in points if point["objective"] <= objective), default=None)


def draw(figure: Figure, results: Sequence[Result]) -> None:
    """Best J of trials over compute, thin by seed and thick in the mean; crosses: the best, trained to the end.

    Of several numbers of epochs the largest is drawn.
    """
    axes = figure.add_subplot()
    runs = [run for run in results if "part" in run]
    epochs = max((run["epochs"] for run in runs), default=0)
    runs = [run for run in runs if run["epochs"] == epochs]
    for method in METHODS:
        searches = _largest([run for run in runs if run["part"] == method])
        for search in searches:
            x = [point["spent"] for point in search["curve"]]
            axes.step(x, _falling(search), where="post", color=COLOURS[method], linewidth=0.6, alpha=0.7)
            axes.scatter(search["spent"], search["objective"], marker="x", s=24, color=COLOURS[method])
        if searches:
            axes.step(*_mean(searches), where="post", color=COLOURS[method], label=method)
    learnt = [run for run in runs if run["part"] == "learnt"]
    axes.scatter(
        [run["spent"] for run in learnt], [run["objective"] for run in learnt], color=SIZED, s=28, label="learnt"
    )
    axes.set(title=f"Least J so far, --epochs {epochs}", xlabel="compute (learning runs)", ylabel="J", yscale="log")
    axes.legend(fontsize=8)


def _largest(searches: Sequence[Result]) -> list[Result]:
    """Searches of the largest budget."""
    largest = max((run["factor"] for run in searches), default=0)
    return [run for run in searches if run["factor"] == largest]


def _falling(search: Result) -> list[float]:
    """The least objective up to each trial."""
    return list(accumulate((point["objective"] for point in search["curve"]), min))


def _mean(searches: Sequence[Result]) -> tuple[list[float], list[float]]:
    """The mean over seeds, from where each has a trial."""
    curves = [([point["spent"] for point in search["curve"]], _falling(search)) for search in searches]
    start = max(x[0] for x, _ in curves)
    grid = sorted({spent for x, _ in curves for spent in x if spent >= start})
    means = [statistics.fmean(y[np.searchsorted(x, spent, "right") - 1] for x, y in curves) for spent in grid]
    return grid, means
