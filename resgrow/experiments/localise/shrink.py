"""Which layer to shrink: out of which hidden layer can four units go for the least rise of the loss?

The truth: each layer of a trained network loses the four units with the least OBD saliency, and the network is trained
on; it costs the training loss above that of the network trained on as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import pearsonr, spearmanr
from torch import Tensor, nn

import resgrow
from resgrow.experiments.frame.experiment import Experiment, Quick, Settings, table
from resgrow.experiments.frame.runs import Result, Runs
from resgrow.experiments.localise.networks import HIDDEN, LOSS, Problem, around, loss, problem, train
from resgrow.experiments.localise.verdicts import Case, always, guessed, hits, row, wilson
from resgrow.report.style import DENSE, INK, SIZED
from resgrow.surgery import Masks, compact, make_units

NETWORKS, QUICK_NETWORKS = 30, 3
WIDTHS = (8, 12, 20, 32)
GONE = 4
RATE = 3e-3
FINE_EPOCHS, FINE_RATE = 8, 1e-3
TARGET, TARGET_CORRELATION = 0.85, 0.8
BEST = "OBD of the 4 cheapest units"


def rules(model: nn.Sequential, data: tuple[Tensor, Tensor]) -> tuple[dict[str, list[float]], list[Tensor]]:
    """What each rule says that it costs to shrink each hidden layer, and the units of each in ascending OBD order."""
    units = make_units(model, "channel")
    places = [units.groups.index(name) for name in HIDDEN]

    def unit_scores(**options: Any) -> list[Tensor]:
        scores = units.scores(resgrow.saliency(model, **options))
        return [scores[place] for place in places]

    def cheapest(scores: Sequence[Tensor]) -> list[float]:
        return [float(each.sort().values[:GONE].sum()) for each in scores]

    obd: dict[str, Any] = {"loss_fn": LOSS, "data": data, "method": "obd", "samples": 8}
    plain = unit_scores(**obd, damping=0.0)
    ripples = around(resgrow.ripple(model, LOSS, data, samples=8))
    widths = [len(each) for each in plain]
    told = {
        BEST: cheapest(plain),
        "OBD, damped by the mean curvature": cheapest(unit_scores(**obd, damping=1.0)),
        "magnitude of the 4 smallest units": cheapest(unit_scores(method="magnitude")),
        "widest": [-float(width) for width in widths],
        "ripple, analytic": ripples["analytic"],
        "ripple, analytic, per unit": [each / width for each, width in zip(ripples["analytic"], widths, strict=True)],
        "ripple, measured": ripples["measured"],
        "ripple, reach": ripples["reach"],
    }
    return told, [each.argsort() for each in plain]


def without(model: nn.Sequential, layer: int, gone: Tensor, example: Tensor) -> nn.Module:
    """A copy that lacks these units of a hidden layer."""
    smaller = copy.deepcopy(model)
    units = make_units(smaller, "channel")
    keep = units.live()
    keep[units.groups.index(HIDDEN[layer])][gone] = False
    Masks(smaller, units.to_masks(keep)).apply()
    return compact(smaller, example)


def truth(given: Problem, order: Sequence[Tensor]) -> dict[str, list[float]]:
    """Rises of the training loss, at once and after fine-tuning, for each hidden layer."""
    base = copy.deepcopy(given.model)
    before = loss(base, given.train)
    train(base, given.train, FINE_EPOCHS, FINE_RATE, seed=1)
    after = loss(base, given.train)
    rises: dict[str, list[float]] = {"at once": [], "fine-tuned": []}
    for layer, units in enumerate(order):
        smaller = without(given.model, layer, units[:GONE], given.train[0][:2])
        rises["at once"].append(loss(smaller, given.train) - before)
        train(smaller, given.train, FINE_EPOCHS, FINE_RATE, seed=1)
        rises["fine-tuned"].append(loss(smaller, given.train) - after)
    return rises


def one(seed: int, number: int, epochs: int) -> dict[str, Any]:
    given = problem(seed, number, WIDTHS)
    train(given.model, given.train, epochs, RATE, seed=number)
    told, order = rules(given.model, given.train)
    return {
        "widths": given.widths,
        "loss": loss(given.model, given.train),
        "rules": told,
        "rise": truth(given, order),
    }


def run(runs: Runs, settings: Settings, make: Callable[..., dict[str, Any]] = one) -> None:
    for seed in settings.seeds:
        for number in range(QUICK_NETWORKS if settings.quick else NETWORKS):
            known = {"seed": seed, "network": number, "epochs": settings.epochs}
            runs.make(known, partial(make, seed, number, settings.epochs))


def cases(results: Sequence[Result], rule: str, when: str = "fine-tuned") -> list[Case]:
    """With signs turned round: the least rise is wanted."""
    return [([-value for value in run["rules"][rule]], [-value for value in run["rise"][when]]) for run in results]


def pooled(results: Sequence[Result], rule: str, when: str = "fine-tuned") -> tuple[float, float]:
    """Over all layers of all networks: Spearman's correlation, and Pearson's of square roots.

    Of the roots, since rises differ by orders of magnitude and fine-tuned ones can be negative; they keep their signs.
    """
    told = np.concatenate([run["rules"][rule] for run in results])
    true = np.concatenate([run["rise"][when] for run in results])
    roots = [np.sign(each) * np.sqrt(np.abs(each)) for each in (told, true)]
    return float(spearmanr(told, true).statistic), float(pearsonr(*roots).statistic)


def tell(results: Sequence[Result]) -> str:
    seeds = sorted({run["seed"] for run in results})
    rows: list[tuple[str, ...]] = []
    for rule in results[0]["rules"]:
        each = [cases([run for run in results if run["seed"] == seed], rule) for seed in seeds]
        by_seed = ", ".join(f"{100 * hits(own):.0f}" for own in each)
        at_once = f"{100 * hits(cases(results, rule, 'at once')):.0f}"
        correlations = (f"{value:.2f}" for value in pooled(results, rule))
        rows.append((rule, *row(cases(results, rule)), *correlations, by_seed, at_once))
    for layer in range(len(HIDDEN)):
        same, at_first = (always(layer, cases(results, BEST, when)) for when in ("fine-tuned", "at once"))
        rows.append((f"always layer {layer + 1}", *row(same), "", "", "", f"{100 * hits(at_first):.0f}"))
    guesses = [f"{100 * hits(guessed(cases(results, BEST, when))):.0f}" for when in ("fine-tuned", "at once")]
    rows.append(("chance", guesses[0], "", "", "", "", "", guesses[1]))
    head = (
        "rule",
        "right (%)",
        "95 % interval",
        "Spearman within networks",
        "Spearman of all layers",
        "Pearson of roots",
        "by seed (%)",
        "right at once (%)",
    )
    share, (ranks, _) = hits(cases(results, BEST)), pooled(results, BEST)
    verdicts = ["met" if share >= TARGET else "missed", "met" if ranks >= TARGET_CORRELATION else "missed"]
    said = (
        f"Targets of {BEST}: right in {100 * TARGET:.0f} %: {verdicts[0]} ({100 * share:.0f} %); Spearman's "
        f"correlation of predicted and actual rise after fine-tuning, all layers of all networks, "
        f"{TARGET_CORRELATION}: {verdicts[1]} ({ranks:.2f}).\n\n{_decided(results)}"
    )
    return f"Networks: {len(results)}.\n\n{table(head, rows)}\n\n{said}"


def _decided(results: Sequence[Result]) -> str:
    """Where several layers have four dead units, any of them is right: the same without those networks."""
    rest = [run for run in results if hits(guessed(cases([run], BEST))) * len(HIDDEN) < 1.5]
    shares = [f"{rule} {100 * hits(cases(rest, rule)):.0f}" for rule in results[0]["rules"]] if rest else []
    return (
        f"Right (%) in the {len(rest)} networks where one layer alone is the cheapest: {', '.join(shares)}; chance 33."
    )


def draw(figure: Figure, results: Sequence[Result]) -> None:
    left, right = figure.subplots(1, 2)
    names = list(results[0]["rules"])
    for place, rule in enumerate(names):
        share = hits(cases(results, rule))
        low, high = wilson(share, len(results))
        left.barh(place, 100 * share, color=SIZED if rule == BEST else DENSE)
        left.plot([100 * low, 100 * high], [place, place], color=INK, linewidth=1)
    left.axvline(100 * hits(guessed(cases(results, BEST))), color=INK, linestyle=":", linewidth=1)
    left.set_yticks(range(len(names)), names, size=8)
    left.invert_yaxis()
    left.grid(axis="y", visible=False)
    left.set(title="Which layer to shrink", xlabel="the cheapest layer was named (%); dotted: chance", xlim=(0, 100))
    told = np.concatenate([run["rules"][BEST] for run in results])
    true = np.concatenate([run["rise"]["fine-tuned"] for run in results])
    right.scatter(told, true, s=8, color=SIZED)
    for scale in (right.set_xscale, right.set_yscale):
        scale("symlog", linthresh=1e-3)
    right.set(title=BEST, xlabel="predicted rise of the loss", ylabel="actual, fine-tuned")
    right.set_yticks([0, 1e-3, 1e-2, 1e-1, 1], ["0", "0.001", "0.01", "0.1", "1"])


EXPERIMENT = Experiment(
    question="Which rule names the layer out of which units go for the least loss, in perceptrons on digits?",
    epochs=25,
    run=run,
    tell=tell,
    draw=draw,
    title="Which to shrink",
    quick=Quick(epochs=10),
)
