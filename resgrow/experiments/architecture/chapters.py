"""Learning architectures by backpropagation: the paper's tables and curves, and what they are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from resgrow.experiments.architecture import classes, coefficients, depth, finetune, search, table
from resgrow.experiments.frame.chapters import of_chapters
from resgrow.experiments.frame.experiment import spread
from resgrow.experiments.frame.runs import Result

# Points of accuracy that a network may lose and still be called as good.
SLACK = 0.5


def answer(results: Mapping[str, Sequence[Result]]) -> str:
    return f"{_widths(results.get('table', ()))} {_depths(results.get('depth', ()))}"


def _widths(runs: Sequence[Result]) -> str:
    """Of the largest number of epochs, the row that keeps the most: is it small, and as good?"""
    epochs = max((run["epochs"] for run in runs), default=0)
    last = [run for run in runs if run["epochs"] == epochs]
    dense = [run for run in last if run["row"] == "dense"]
    learnt = _best_row([run for run in last if run["row"] in table.ROWS])
    if not dense or not learnt:
        return "Not known yet whether a smaller LeNet-5 is learnt that is as good."
    own, whole = ([100 * run["accuracy"] for run in part] for part in (learnt, dense))
    size = fmean(run["params"] for run in learnt) / dense[0]["params"]
    good = fmean(own) >= fmean(whole) - SLACK
    afresh = spread([100 * run["scratch_accuracy"] for run in learnt])
    return (
        f"{'Yes' if good else 'No'}: {100 * size:.1f} % of LeNet-5's parameters are learnt, with {spread(own)} % of "
        f"the test images right against its {spread(whole)} % ({afresh} % for the same network trained afresh)."
    )


def _best_row(runs: Sequence[Result]) -> list[Result]:
    rows = [[run for run in runs if run["row"] == name] for name in table.ROWS]
    return max((own for own in rows if own), key=lambda own: fmean(run["accuracy"] for run in own), default=[])


def _depths(runs: Sequence[Result]) -> str:
    """Do depths that are found differ less than those at the start?"""
    learnt = [run for run in runs if run["what"] == "learnt"]
    starts = sorted({run["layers"] for run in learnt})
    if len(starts) < 2:
        return "Nor is it known whether the depth that is learnt depends on the depth at the start."
    ends = [fmean(run["found"] for run in learnt if run["layers"] == layers) for layers in (starts[0], starts[-1])]
    less = abs(ends[1] - ends[0]) < (starts[-1] - starts[0]) / 2
    return (
        f"The depth that is found depends {'little' if less else 'much'} on that at the start: {ends[0]:.1f} layers "
        f"are left of {starts[0]}, and {ends[1]:.1f} of {starts[-1]}."
    )


EXPERIMENT = of_chapters(
    {
        "table": table.EXPERIMENT,
        "classes": classes.EXPERIMENT,
        "coefficients": coefficients.EXPERIMENT,
        "depth": depth.EXPERIMENT,
        "search": search.EXPERIMENT,
        "finetune": finetune.EXPERIMENT,
    },
    title="Architecture learning",
    question="Do gates that are trained with the weights learn networks that are small and good?",
    control="The network without gates, SVD of its largest layer, what was found trained afresh from new weights, "
    "searches for widths at equal compute, and channels removed by magnitude.",
    answer=answer,
)
