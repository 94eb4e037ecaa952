"""Dense against swapped against compacted, in training and inference, over the density of what is left."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product
from statistics import fmean
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resgrow.experiments.frame.experiment import Experiment, Quick, Settings, spread, table
from resgrow.experiments.frame.runs import Result, Runs
from resgrow.experiments.speed.forms import (
    CASES,
    COMPACTED,
    DENSE,
    FOLDED,
    FUSED,
    INFERENCE,
    SWAPPED,
    TRAINING,
    measured,
)
from resgrow.report import style

DENSITIES, QUICK_DENSITIES = (0.75, 0.5, 0.25, 0.1), (0.25,)
MODES = (INFERENCE, TRAINING)
COLOURS = {FOLDED: style.DENSE, SWAPPED: style.INK, FUSED: style.SIZED, COMPACTED: style.UNDONE}


def run(runs: Runs, settings: Settings) -> None:
    """``settings.epochs`` are rounds, each of one call of every form."""
    densities = QUICK_DENSITIES if settings.quick else DENSITIES
    for seed in settings.seeds:
        for name, mode, density in product(settings.only, MODES, densities):
            known = {"network": name, "mode": mode, "density": density, "seed": seed, "epochs": settings.epochs}
            made = partial(measured, CASES[name], density, mode, seed, settings.epochs)
            runs.make({**known, "threads": torch.get_num_threads()}, made)


def tell(results: Sequence[Result]) -> str:
    said = (
        "Times as fast as dense (median over rounds in turn; mean and standard deviation over seeds), and the share of "
        "the multiply-accumulates left. `swapped`: random blocks of 16 outputs by one input gone, block-sparse layers "
        "where these are measured faster; `fused`: norms, additions and activations fused, too; `folded`: dense, norms "
        "folded; `compacted`: random channels gone from every layer. Networks and inputs are channels_last."
    )
    return "\n\n".join([said, *(f"**{mode}**\n\n{_table(results, mode)}" for mode in MODES if _of(results, mode=mode))])


def _of(results: Sequence[Result], **wanted: Any) -> list[Result]:
    return [run for run in results if all(run[key] == value for key, value in wanted.items())]


def _table(results: Sequence[Result], mode: str) -> str:
    names = [name for name in (FOLDED, SWAPPED, FUSED, COMPACTED) if mode == INFERENCE or name not in (FOLDED, FUSED)]
    lines = []
    for network, density, threads in sorted(
        {(run["network"], run["density"], run["threads"]) for run in _of(results, mode=mode)},
        key=lambda key: (list(CASES).index(key[0]), key[2], -key[1]),
    ):
        own = _of(results, mode=mode, network=network, density=density, threads=threads)
        dense = spread([run["milliseconds"][DENSE] for run in own], ".1f")
        left = [f"{100 * fmean(run['macs'][name] for run in own):.0f}" for name in (SWAPPED, COMPACTED)]
        faster = [spread([run["faster"][name] for run in own]) for name in names]
        lines.append((network, threads, f"{100 * density:.0f}", dense, *left, *faster))
    head = ("network", "threads", "weights left (%)", "dense ms", "MACs left: blocks (%)", "channels (%)")
    return table((*head, *names), lines)


def answer(results: Sequence[Result]) -> str:
    least = min(run["density"] for run in results)
    return f"{_inference(_of(results, mode=INFERENCE, density=least))} {_training(results, least)}"


def _inference(own: Sequence[Result]) -> str:
    if not own:
        return "Not known yet for inference."
    return (
        f"{_verdict(own, FUSED, COMPACTED)}: with {100 * own[0]['density']:.0f} % of the weights left inference is "
        f"{_range(own, FUSED)} times as fast as dense by blocks, swapped and fused, and {_range(own, COMPACTED)} times "
        f"by channels that are gone."
    )


def _training(results: Sequence[Result], least: float) -> str:
    own = _of(results, mode=TRAINING, density=least)
    if not own:
        return "Nor is it known for training."
    faster = [
        density
        for density in {run["density"] for run in results}
        if all(run["faster"][SWAPPED] > 1 for run in _of(results, mode=TRAINING, density=density))
    ]
    where = f"from {100 * max(faster):.0f} % down in every case" if faster else "at no density in every case"
    return (
        f"A training step is {_range(own, SWAPPED)} and {_range(own, COMPACTED)} times as fast, and blocks save time "
        f"{where}."
    )


def _verdict(own: Sequence[Result], *names: str) -> str:
    faster = [run["faster"][name] > 1 for run in own for name in names]
    return "Yes" if all(faster) else "In part" if any(faster) else "No"


def _range(own: Sequence[Result], name: str) -> str:
    """Of the means over seeds, the least and the most over networks."""
    cases = {(run["network"], run["threads"]) for run in own}
    means = sorted(
        fmean(run["faster"][name] for run in _of(own, network=network, threads=threads)) for network, threads in cases
    )
    low, high = f"{means[0]:.1f}", f"{means[-1]:.1f}"
    return low if low == high else f"{low} to {high}"


def draw(figure: Figure, results: Sequence[Result]) -> None:
    """A row for each network: inference and training, with the spread over seeds."""
    networks = [name for name in CASES if _of(results, network=name)]
    figure.set_figheight(3.4 * len(networks))
    places: Any = figure.subplots(len(networks), len(MODES), squeeze=False)
    for row, network in zip(places, networks, strict=True):
        for axes, mode in zip(row, MODES, strict=True):
            _draw(axes, _of(results, network=network, mode=mode), f"{network}, {mode}")


def _draw(axes: Axes, own: Sequence[Result], title: str) -> None:
    densities = sorted({run["density"] for run in own})
    for name, colour in COLOURS.items():
        points = [[run["faster"][name] for run in _of(own, density=d) if name in run["faster"]] for d in densities]
        if not points or not all(points):
            continue
        means = [fmean(each) for each in points]
        ends = [[mean - min(each) for mean, each in zip(means, points, strict=True)]]
        ends.append([max(each) - mean for mean, each in zip(means, points, strict=True)])
        axes.errorbar([100 * d for d in densities], means, yerr=ends, fmt="o-", color=colour, label=name, capsize=2)
    axes.axhline(1, color=style.QUIET, linewidth=0.8)
    axes.set(title=title, xlabel="weights left (%)", ylabel="times as fast as dense", yscale="log")
    axes.legend()


EXPERIMENT = Experiment(
    title="Speed",
    question="Is a network of which part is gone really faster, in training and in inference?",
    control="The same network with torch's own dense layers, channels_last, timed in turn with the others; for "
    "inference also with its norms folded.",
    answer=answer,
    epochs=20,
    run=run,
    tell=tell,
    draw=draw,
    parts=tuple(CASES),
    quick=Quick(epochs=3, parts=("resnet20",)),
)
