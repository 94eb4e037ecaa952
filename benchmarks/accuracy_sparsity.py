"""Accuracy against sparsity of every saliency criterion, one-shot and iterative, on a small residual network.

    python benchmarks/accuracy_sparsity.py [--seeds 5] [--quick] [--out STEM]

resnet(8) of half width (19,810 parameters) on scikit-learn's digits: 1,437 training images, 360 test images, so that
one image is 0.28 points. Saliency and retraining see training images only; no setting is chosen by test accuracy.

One-shot: each sparsity from the dense network, nothing retrained. Iterative: the sparsities one after the other on one
network, scores taken anew before each and three epochs of retraining (Adam, 1e-3, cosine) after each. Weights are
those of convolutions and the classifier; channels go with all that is coupled to them, and the sparsity is that of what
they cover. All weights are ranked together, except where a criterion's own paper ranks within layers (wanda, apoz,
layer-wise obs).
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from _accuracy import check, remove, save_plot
from _digits import RESULTS, Batch, batches, digits, evaluate, heading, network, table, today, train
from torch import nn

import resgrow
from resgrow.data import Dataset
from resgrow.saliency.criteria import METHODS

WIDTH, EPOCHS, RETRAIN_EPOCHS, RETRAIN_RATE = 0.5, 30, 3, 1e-3
BASELINE = "magnitude"


@dataclass(frozen=True)
class Criterion:
    """One row: a method of ``resgrow.saliency``, its options, and how its scores are ranked."""

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    scope: str = "global"
    channels: bool = True


CRITERIA = {
    "magnitude": Criterion("magnitude"),
    "obd, auto": Criterion("obd"),
    "obd, undamped": Criterion("obd", {"damping": 0.0}),
    "magnitude, refit": Criterion("magnitude", {"refit": True}, channels=False),
    "obd, auto, refit": Criterion("obd", {"refit": True}, channels=False),
    "taylor": Criterion("taylor"),
    "fisher": Criterion("fisher"),
    "obs": Criterion("obs", channels=False),
    "obs, ggn-mc": Criterion("obs", {"hessian": "ggn-mc"}, channels=False),
    "obs, layer-wise": Criterion("obs", {"hessian": "layer"}, "layer", channels=False),
    "wanda": Criterion("wanda", scope="layer", channels=False),
    "apoz": Criterion("apoz", scope="layer"),
    "random": Criterion("random"),
}


@dataclass(frozen=True)
class Setting:
    """What is removed, how much of it, and whether training goes on in between."""

    title: str
    block: tuple[int, int] | str
    sparsities: tuple[float, ...]
    iterative: bool

    def criteria(self) -> dict[str, Criterion]:
        channels = self.block == "channel"
        return {
            name: criterion
            for name, criterion in CRITERIA.items()
            if criterion.method in METHODS and (criterion.channels if channels else criterion.method != "apoz")
        }


FINE, COARSE = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98), (0.2, 0.4, 0.6, 0.8)
SETTINGS = (
    Setting("Single weights, one-shot", (1, 1), FINE, False),
    Setting("Single weights, iterative", (1, 1), FINE, True),
    Setting("Channels, one-shot", "channel", COARSE, False),
    Setting("Channels, iterative", "channel", COARSE, True),
)
# (setting, criterion, sparsity) -> test accuracy in percent, one per seed
Found = dict[tuple[str, str, float], list[float]]


def scores_of(model: nn.Module, criterion: Criterion, data: list[Batch], seed: int) -> resgrow.saliency.Saliency:
    options = dict(criterion.options)
    if criterion.method == "random":
        options["generator"] = torch.Generator().manual_seed(seed)
    return resgrow.saliency(model, nn.CrossEntropyLoss(), data, method=criterion.method, **options)


def curve(dense: nn.Module, criterion: Criterion, setting: Setting, data: Dataset, seed: int) -> Iterator[float]:
    """Test accuracy at each sparsity."""
    model, masks = copy.deepcopy(dense), None
    seen = batches(data.train_x, data.train_y)
    scores = scores_of(model, criterion, seen, seed)
    for step, sparsity in enumerate(setting.sparsities):
        if setting.iterative and step:
            scores = scores_of(model, criterion, seen, seed + 1000 * step)
        if not setting.iterative:
            model = copy.deepcopy(dense)
        before = masks if setting.iterative else None
        masks = remove(model, scores, sparsity, setting.block, before, scope=criterion.scope)
        if setting.iterative:
            train(model, data, RETRAIN_EPOCHS, seed + 1000 * step, RETRAIN_RATE, masks)
        check(model, masks, setting.block, sparsity)
        yield evaluate(model, data.test_x, data.test_y)[1]


def run(seeds: int, epochs: int, settings: tuple[Setting, ...]) -> tuple[Found, list[float]]:
    found: Found = {}
    dense_accuracy = []
    data = digits()
    for seed in range(seeds):
        dense = train(network(WIDTH, seed), data, epochs, seed)
        dense_accuracy.append(evaluate(dense, data.test_x, data.test_y)[1])
        print(f"seed {seed}: dense {dense_accuracy[-1]:.2f} %", flush=True)
        for setting in settings:
            for name, criterion in setting.criteria().items():
                values = list(curve(dense, criterion, setting, data, seed))
                for sparsity, value in zip(setting.sparsities, values, strict=True):
                    found.setdefault((setting.title, name, sparsity), []).append(value)
                print(f"  {setting.title}, {name}: {' '.join(f'{v:.1f}' for v in values)}", flush=True)
    return found, dense_accuracy


def accuracy_table(setting: Setting, found: Found) -> list[str]:
    """Mean over seeds, the range in brackets; the best mean of a column in bold."""
    names = list(setting.criteria())
    best = {s: max(mean(found[setting.title, name, s]) for name in names) for s in setting.sparsities}
    rows = []
    for name in names:
        cells = []
        for sparsity in setting.sparsities:
            values = found[setting.title, name, sparsity]
            shown = f"**{mean(values):.1f}**" if mean(values) == best[sparsity] else f"{mean(values):.1f}"
            cells.append(f"{shown} ({min(values):.1f} to {max(values):.1f})")
        rows.append([name, *cells])
    return table(["removed", *(f"{s:.0%}" for s in setting.sparsities)], rows)


def against_magnitude(setting: Setting, found: Found) -> list[str]:
    """Where a criterion loses to magnitude, and by how much: mean difference, and in how many seeds it is behind."""
    lines = []
    for name in setting.criteria():
        if name in (BASELINE, "random"):
            continue
        losses = []
        for sparsity in setting.sparsities:
            pairs = zip(found[setting.title, name, sparsity], found[setting.title, BASELINE, sparsity], strict=True)
            gaps = [mine - theirs for mine, theirs in pairs]
            if mean(gaps) < 0:
                behind = sum(gap < 0 for gap in gaps)
                losses.append(f"{sparsity:.0%} by {-mean(gaps):.1f} ({behind} of {len(gaps)} seeds)")
        lines.append(f"* {name} loses to magnitude at " + (", ".join(losses) if losses else "no sparsity"))
    return lines


def plot(found: Found, settings: tuple[Setting, ...], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colors = pyplot.get_cmap("tab20").colors
    figure, axes = pyplot.subplots(2, (len(settings) + 1) // 2, figsize=(9, 7), sharey=True, squeeze=False)
    for axis, setting in zip(axes.flat, settings, strict=False):
        for index, name in enumerate(CRITERIA):
            if (setting.title, name, setting.sparsities[0]) not in found:
                continue
            values = [found[setting.title, name, s] for s in setting.sparsities]
            x = [100 * s for s in setting.sparsities]
            axis.plot(x, [mean(v) for v in values], marker=".", linewidth=1.2, color=colors[index], label=name)
            axis.fill_between(x, [min(v) for v in values], [max(v) for v in values], color=colors[index], alpha=0.07)
        axis.set(title=setting.title, xlabel="removed, %", ylabel="test accuracy, %", ylim=(0, 101))
        axis.legend(fontsize=6)
    figure.tight_layout()
    save_plot(figure, path)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one seed, ten epochs, to see that all of it runs")
    parser.add_argument("--out", type=Path, default=RESULTS / f"{today()}-cpu-accuracy-sparsity")
    args = parser.parse_args()
    seeds, epochs = (1, 10) if args.quick else (args.seeds, EPOCHS)
    found, dense = run(seeds, epochs, SETTINGS)
    lines = heading("Accuracy against sparsity", f"python benchmarks/accuracy_sparsity.py, {seeds} seeds")
    lines += ["\n\n".join(__doc__.strip().split("\n\n")[2:]), ""]
    lines += [f"Dense: {mean(dense):.1f} % ({min(dense):.1f} to {max(dense):.1f}) after {epochs} epochs.", ""]
    lines += [f"![curves]({args.out.name}.png)", ""]
    for setting in SETTINGS:
        lines += [f"## {setting.title}", "", *accuracy_table(setting, found), ""]
        lines += [*against_magnitude(setting, found), ""]
    args.out.with_suffix(".md").write_text("\n".join(lines))
    plot(found, SETTINGS, args.out.with_suffix(".png"))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
