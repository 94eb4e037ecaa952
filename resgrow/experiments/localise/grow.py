"""Where to grow: which hidden layer brings the most when it gets eight more units?

The truth: each layer of a trained network is widened by units whose fan-out is zero, twice with other fan-ins, and
trained on; it brings the fall of the training loss below that of the network trained on as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import resgrow
from resgrow.curvature.growth import growth, moments
from resgrow.experiments.frame.experiment import Experiment, Quick, Settings, table
from resgrow.experiments.frame.runs import Result, Runs
from resgrow.experiments.localise.networks import HIDDEN, LOSS, Problem, around, loss, problem, train
from resgrow.experiments.localise.verdicts import Case, always, by_best, guessed, hits, row, wilson
from resgrow.report.style import DENSE, INK, SIZED
from resgrow.surgery.forward import Example
from resgrow.surgery.growth_sites import growth_site
from resgrow.surgery.structure import structure_of, traced
from resgrow.surgery.widen_names import named_group

NETWORKS, QUICK_NETWORKS = 30, 3
WIDTHS = (4, 6, 9, 14, 24)
BY = 8
DRAWS = 2
RATE = 3e-3
TARGET = 0.7
BEST = "rho+ of 8 units"


def rules(model: nn.Sequential, data: tuple[Tensor, Tensor]) -> dict[str, list[float]]:
    """What each rule says of each hidden layer: the largest is where it would grow."""
    x = data[0][:2]
    found = resgrow.growth_gain(model, LOSS, data, example_inputs=x)
    gains = [found[name].gain for name in HIDDEN]
    total = [float(gain[:BY].sum()) for gain in gains]
    widths = [model.get_parameter(f"{name}.weight").shape[0] for name in HIDDEN]
    ripples = around(resgrow.ripple(model, LOSS, data, samples=8))
    return {
        BEST: total,
        "rho+ of 8 units per parameter": [gain / cost for gain, cost in zip(total, added(widths), strict=True)],
        "rho+ of the first unit": [float(gain[0]) for gain in gains],
        "rho+ of all units": [float(gain.sum()) for gain in gains],
        "GradMax": gradmax(model, data),
        "narrowest": [-float(width) for width in widths],
        "OBD mass per weight": ripples["per weight"],
        "ripple, analytic": ripples["analytic"],
        "ripple, measured": ripples["measured"],
        "ripple, reach": ripples["reach"],
    }


def added(widths: Sequence[int]) -> list[int]:
    """Parameters that eight units of each hidden layer have."""
    sizes = [64, *widths, 10]
    return [BY * (before + 1 + after) for before, after in zip(sizes, sizes[2:], strict=False)]


def gradmax(model: nn.Sequential, data: tuple[Tensor, Tensor]) -> list[float]:
    """The squared gradient of the best eight units, neither projected nor whitened (Evci et al. 2022)."""
    example = Example.of(data[0][:2], "gradmax")
    graph = traced(model, example, "gradmax")
    structure = structure_of(model, graph)
    groups = [named_group(model, example, structure, name, "gradmax") for name in HIDDEN]
    sites = [growth_site(model, graph, group).site for group in groups]
    found = moments("gradmax", model, LOSS, data, sites, project=False)
    return [float(growth(site, each, whiten=False).gain[:BY].sum()) for site, each in zip(sites, found, strict=True)]


def truth(given: Problem, epochs: int) -> dict[str, list[float]]:
    """Falls of the losses on both parts of the images, for each hidden layer."""

    def after(model: nn.Module) -> tuple[float, float]:
        train(model, given.train, epochs, RATE, seed=5)
        return loss(model, given.train), loss(model, given.test)

    base = after(copy.deepcopy(given.model))
    falls: dict[str, list[float]] = {"training": [], "test": []}
    for name in HIDDEN:
        ends = []
        for draw in range(DRAWS):
            larger = copy.deepcopy(given.model)
            generator = torch.Generator().manual_seed(9 + draw)
            resgrow.widen(larger, name, BY, example_inputs=given.train[0][:2], generator=generator)
            ends.append(after(larger))
        for part, before, each in zip(falls, base, zip(*ends, strict=True), strict=True):
            falls[part].append(before - fmean(each))
    return falls


def one(seed: int, number: int, epochs: int) -> dict[str, Any]:
    given = problem(seed, number, WIDTHS)
    train(given.model, given.train, epochs, RATE, seed=number)
    return {
        "widths": given.widths,
        "loss": loss(given.model, given.train),
        "rules": rules(given.model, given.train),
        "fall": truth(given, epochs),
    }


def run(runs: Runs, settings: Settings, make: Callable[..., dict[str, Any]] = one) -> None:
    for seed in settings.seeds:
        for number in range(QUICK_NETWORKS if settings.quick else NETWORKS):
            known = {"seed": seed, "network": number, "epochs": settings.epochs}
            runs.make(known, partial(make, seed, number, settings.epochs))


def cases(results: Sequence[Result], rule: str, part: str = "training") -> list[Case]:
    return [(run["rules"][rule], run["fall"][part]) for run in results]


def per_parameter(given: Sequence[Case], results: Sequence[Result]) -> list[Case]:
    """The layer that brings the most per parameter is the right one: falls for as many parameters as the least has."""
    adjusted: list[Case] = []
    for (rule, truth), run in zip(given, results, strict=True):
        costs = added(run["widths"])
        adjusted.append((rule, [fall * min(costs) / cost for fall, cost in zip(truth, costs, strict=True)]))
    return adjusted


def tell(results: Sequence[Result]) -> str:
    seeds = sorted({run["seed"] for run in results})
    rows: list[tuple[str, ...]] = []

    def add(name: str, training: list[Case], test: list[Case], by_seed: str = "") -> None:
        share, interval, _ = row(per_parameter(training, results))
        told = row(training)
        rows.append((name, *told, by_best(training), by_seed, f"{100 * hits(test):.0f}", f"{share} ({interval})"))

    for rule in results[0]["rules"]:
        each = [cases([run for run in results if run["seed"] == seed], rule) for seed in seeds]
        shares = ", ".join(f"{100 * hits(own):.0f}" for own in each)
        add(rule, cases(results, rule), cases(results, rule, "test"), shares)
    both = cases(results, BEST), cases(results, BEST, "test")
    for layer in range(len(HIDDEN)):
        add(f"always layer {layer + 1}", always(layer, both[0]), always(layer, both[1]))
    add("chance", guessed(both[0]), guessed(both[1]))
    head = (
        "rule",
        "right (%)",
        "95 % interval",
        "Spearman",
        "right where layer 1, 2, 3 is best",
        "by seed (%)",
        "right by test loss (%)",
        "right per parameter (%)",
    )
    share = hits(both[0])
    verdict = "met" if share >= TARGET else "missed"
    said = f"Target, {BEST} right in {100 * TARGET:.0f} %: {verdict} ({100 * share:.0f} %)."
    return f"Networks: {len(results)}.\n\n{table(head, rows)}\n\n{said}"


def draw(figure: Figure, results: Sequence[Result]) -> None:
    axes = figure.add_subplot()
    names = list(results[0]["rules"])
    for place, rule in enumerate(names):
        share = hits(cases(results, rule))
        low, high = wilson(share, len(results))
        axes.barh(place, 100 * share, color=SIZED if rule.startswith("rho+") else DENSE)
        axes.plot([100 * low, 100 * high], [place, place], color=INK, linewidth=1)
    axes.axvline(100 / len(HIDDEN), color=INK, linestyle=":", linewidth=1)
    axes.set_yticks(range(len(names)), names, size=8)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(title="Where to grow", xlabel="the best layer was named (%); dotted: chance", xlim=(0, 100))


EXPERIMENT = Experiment(
    question="Which rule names the layer that is best widened, in perceptrons of random widths on digits?",
    epochs=15,
    run=run,
    tell=tell,
    draw=draw,
    title="Where to grow",
    quick=Quick(epochs=10),
)
