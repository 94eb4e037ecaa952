"""Predicted against measured change of the loss, by criteria, networks and states: the figure of the OBD paper.

LeCun, Denker & Solla, "Optimal Brain Damage" (1990), figures 1 and 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from statistics import fmean, median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resgrow.experiments.frame.experiment import Experiment, Quick, Row, Settings, spread, table
from resgrow.experiments.frame.lacks import Lacks
from resgrow.experiments.frame.runs import Result, Runs
from resgrow.experiments.saliency_truth.agreement import log_pearson, rank, ratio
from resgrow.experiments.saliency_truth.deletions import CRITERIA, FACTOR, FLOOR, GGN, HESSIAN, PATH, STEPS, Truth
from resgrow.experiments.saliency_truth.networks import NETWORKS, trained
from resgrow.report.style import DENSE, INK, SIZED, UNDONE

PER_LAYER, QUICK_PER_LAYER = 100, 30
# Spearman's correlation that counts as right, and as right in part.
RIGHT, PARTLY = 0.9, 0.6
COLOURS = {GGN: SIZED, STEPS: INK, "magnitude": DENSE, "fisher": UNDONE}


@lru_cache(maxsize=1)
def truth(network: str, state: str, seed: int, epochs: int, data_dir: str | None, per_layer: int) -> Truth:
    return Truth(trained(network, state, seed, epochs, data_dir), per_layer, seed)


def run(runs: Runs, settings: Settings) -> None:
    per_layer = QUICK_PER_LAYER if settings.quick else PER_LAYER
    with Lacks() as lacks:
        for seed in settings.seeds:
            for network in settings.only:
                with lacks.part():
                    for state in NETWORKS[network].states:
                        _judge_all(runs, settings, network, state, seed, per_layer)


def _judge_all(runs: Runs, settings: Settings, network: str, state: str, seed: int, per_layer: int) -> None:
    given = (network, state, seed, settings.epochs, settings.data_dir, per_layer)
    known = {"network": network, "state": state, "seed": seed, "epochs": settings.epochs, "per_layer": per_layer}
    for criterion in CRITERIA:
        if criterion != HESSIAN or NETWORKS[network].hessian:
            runs.make({**known, "criterion": criterion}, partial(_judge, given, criterion))


def _judge(given: tuple[str, str, int, int, str | None, int], criterion: str) -> dict[str, Any]:
    return truth(*given).judge(criterion)


def rows(results: Sequence[Result]) -> dict[str, list[Row]]:
    """Each run's figures, and the growing sets behind the drawing."""
    known = ("network", "state", "seed", "criterion")
    return {
        "singles": [
            {
                **{key: run[key] for key in known},
                "loss": run["loss"],
                "spearman": rank(run["pairs"]),
                "pearson_of_logs": log_pearson(run["pairs"]),
                "measured_over_predicted": ratio(run["pairs"]) if run["in_loss"] else None,
                "holds_up_to": run["holds"],
            }
            for run in results
        ],
        "sets": [
            {**{key: run[key] for key in known}, "share": share, "predicted": predicted, "measured": measured}
            for run in results
            for share, predicted, measured in run["sets"]
        ],
    }


def tell(results: Sequence[Result]) -> str:
    told = []
    for network, state in dict.fromkeys((run["network"], run["state"]) for run in results):
        own = [run for run in results if (run["network"], run["state"]) == (network, state)]
        losses = {run["seed"]: run["loss"] for run in own}
        told.append(f"**{network}, {state}**: {own[0]['weights']:,} weights, loss {spread([*losses.values()], '.3g')}.")
        told.append(_table(own))
    said = (
        "Single weights: Spearman's correlation of predicted and measured rise, Pearson's of their logarithms, and the "
        "median of measured over predicted, the latter two where both are positive. Sets: the weights of the lowest "
        f"scores, together; a prediction holds as long as it and the measured rise differ by less than a factor "
        f"of {FACTOR:g} (or are both below {FLOOR:g}); `{STEPS}` and `{PATH}` take curvature anew after each step. "
        "`trained`: by Adam, as it is. `minimum`: with smoothed labels, to the minimum of that loss, which is what "
        "Optimal Brain Damage assumes. Mean and standard deviation over seeds."
    )
    return "\n\n".join([said, *told])


def _table(own: Sequence[Result]) -> str:
    head = ("criterion", "Spearman", "Pearson of logs", "measured / predicted", "holds up to (% of weights)")
    lines = []
    for criterion in CRITERIA:
        each = [run for run in own if run["criterion"] == criterion]
        if not each:
            continue
        in_loss = each[0]["in_loss"]
        lines.append(
            (
                criterion,
                _mean(each, lambda run: rank(run["pairs"])),
                _mean(each, lambda run: log_pearson(run["pairs"])),
                _mean(each, lambda run: ratio(run["pairs"]), ".3g") if in_loss else "",
                _mean(each, lambda run: 100 * run["holds"], ".0f") if in_loss else "",
            )
        )
    return table(head, lines)


def _mean(of: Sequence[Result], value: Callable[[Result], float], form: str = ".2f") -> str:
    found = [x for x in map(value, of) if math.isfinite(x)]
    return spread(found, form) if found else "unknown"


def answer(results: Sequence[Result]) -> str:
    by = {name: [run for run in results if run["criterion"] == name] for name in CRITERIA}
    if not by[GGN]:
        return "Not known yet. No network's saliencies by exact curvature have been compared with what deleting costs."
    order = {name: fmean(found) for name, own in by.items() if (found := _ranks(own))}
    verdict = "Yes" if order[GGN] >= RIGHT else "In part" if order[GGN] >= PARTLY else "No"
    others = ", ".join(f"{name} {order[name]:.2f}" for name in order if name not in (GGN, STEPS))
    steps = f", and up to {_held(by[STEPS])} if curvature is taken anew after each step" if by[STEPS] else ""
    return (
        f"{verdict}, of single weights: saliencies by exact curvature order them as deleting does with a Spearman "
        f"correlation of {order[GGN]:.2f} ({others}), mean over {len(by[GGN])} networks. Of sets, their sum is within "
        f"a factor of {FACTOR:g} up to {_held(by[GGN])} of the weights in the median{steps}."
    )


def _ranks(own: Sequence[Result]) -> list[float]:
    return [value for run in own if math.isfinite(value := rank(run["pairs"]))]


def _held(own: Sequence[Result]) -> str:
    shares = [100 * run["holds"] for run in own]
    return f"{median(shares):.0f} % ({min(shares):.0f} to {max(shares):.0f})"


def draw(figure: Figure, results: Sequence[Result]) -> None:
    """A row for each network in its last state, first seed: single weights, and growing sets."""
    networks = list(dict.fromkeys(run["network"] for run in results))
    figure.set_figheight(3.4 * len(networks))
    places: Any = figure.subplots(len(networks), 2, squeeze=False)
    for (left, right), network in zip(places, networks, strict=True):
        own = [run for run in results if run["network"] == network]
        first = [run for run in own if (run["state"], run["seed"]) == (own[-1]["state"], own[0]["seed"])]
        _draw_singles(left, first)
        _draw_sets(right, first)


def _draw_singles(axes: Axes, runs: Sequence[Result]) -> None:
    ends = []
    for run in runs:
        if run["criterion"] in (GGN, "fisher"):
            pairs = [pair for pair in run["pairs"] if min(pair) > 0]
            predicted, measured = zip(*pairs, strict=True) if pairs else ((), ())
            axes.plot(predicted, measured, ".", markersize=4, color=COLOURS[run["criterion"]], label=run["criterion"])
            ends += [*measured]
    if ends:
        axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color=INK, linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel="predicted rise of the loss", ylabel="measured")
    axes.set_title(f"{runs[0]['network']}, {runs[0]['state']}: single weights")
    axes.legend()


def _draw_sets(axes: Axes, runs: Sequence[Result]) -> None:
    for run in runs:
        if run["criterion"] not in COLOURS:
            continue
        share, predicted, measured = zip(*run["sets"], strict=True)
        colour = COLOURS[run["criterion"]]
        axes.plot([100 * s for s in share], measured, color=colour, label=run["criterion"])
        if run["in_loss"]:
            axes.plot([100 * s for s in share], predicted, "--", color=colour)
    axes.set_yscale("symlog", linthresh=FLOOR)
    axes.set(xlabel="weights deleted (%)", ylabel="rise of the loss")
    axes.set_title("sets: measured, and predicted (dashed)")
    axes.legend()


EXPERIMENT = Experiment(
    title="Saliency and truth",
    question="Does saliency predict what deleting weights costs, one by one and together?",
    control="Each deletion is made and its loss measured on the same images; magnitude orders them without curvature.",
    answer=answer,
    epochs=60,
    run=run,
    tell=tell,
    rows=rows,
    draw=draw,
    parts=tuple(NETWORKS),
    quick=Quick(epochs=30, parts=("perceptron", "tanh")),
)
