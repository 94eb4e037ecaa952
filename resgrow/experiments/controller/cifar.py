"""ResNet-20 on CIFAR-10, half the multiply-accumulates (MACs), and the same training compute for every method.

The compute is that of ``--epochs`` of the dense network: three times the MACs of the network as it physically is, for
every image of every step. What a method does beside its steps counts, too: its processor time, at what a second of its
own steps came to in MACs. The learning rate follows the share of the compute that is spent, so that a network which
has become cheaper gets more steps before it ends.

dense       the whole network: the reference
uniform     all widths times one factor, from the start
magnitude   the channels of least magnitude, with a cubic schedule (Zhu & Gupta 2017), compacted on the way
controller  `resgrow.Controller`, compacted at the same steps
same        the architecture that the controller found, with new weights: is it that, or the way there?

Magnitude and controller start from the weights that dense starts from, choose among the same channels (those of the
residual streams, too), and have from a fifth to three fifths of the steps of a dense training for it, as in
``resgrow fit``. All methods train on the same images in the same order; a fiftieth of the training images is held out,
which the controller measures on. Test images are used for reporting only.

The controller's settings are its defaults but for two. ``every``: at the 5 % of the work that it takes by default there
would be two moves in a training as short. ``grow=False``: one look at what could grow took as long as some four
hundred steps here, which would be a quarter of the compute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from resgrow.data import Dataset
from resgrow.data import load as load_data
from resgrow.experiments.architecture.study import afresh
from resgrow.experiments.controller.cifar_methods import BUDGET, Controlled, Followed, Magnitude, Schedule
from resgrow.experiments.controller.cifar_training import BATCH, HELD, PASSES, Compute, Training
from resgrow.experiments.frame.data_part import first_images
from resgrow.experiments.frame.experiment import Experiment, Quick, Settings, spread, table
from resgrow.experiments.frame.runs import Result, Runs
from resgrow.experiments.models import as_network
from resgrow.nn import resnet
from resgrow.report.style import DENSE, INK, SIZED, UNDONE
from resgrow.surgery import load, save
from resgrow.surgery.count import count_macs

DEPTH = 20
QUICK_IMAGES = 5000
PARTS = ("dense", "uniform", "magnitude", "controller", "same")
COLOURS = {"dense": DENSE, "uniform": INK, "magnitude": UNDONE, "controller": SIZED, "same": "#7dbdb5"}
CONTROLS = ("uniform", "magnitude")


@dataclass(frozen=True)
class Study:
    """One seed's runs.

    Attributes:
        epochs: of a dense training, whose compute every run has.
        folder: of the networks that others start from.
    """

    data: Dataset
    seed: int
    epochs: int
    folder: Path

    def make(self, part: str) -> dict[str, Any]:
        """Trains and tells what came of it."""
        network = self._network(part)
        training = Training(network, self.data, Compute(PASSES * self._whole * BATCH * self._steps), self.seed)
        schedule = Schedule(self._steps)
        made: Controlled | Magnitude | None = None
        if part in ("magnitude", "controller"):
            method = Magnitude if part == "magnitude" else Controlled
            made = training.timed(lambda: method(training, schedule))
        training.run(made)
        if part == "controller":
            save(network.net, self._found)
        facts = {**training.facts(), "whole": self._whole, "widths": widths(network)}
        return facts if made is None else {**facts, **made.facts()}

    @property
    def _steps(self) -> int:
        return self.epochs * ((len(self.data.train_y) - HELD) // BATCH)

    @property
    def _whole(self) -> int:
        return count_macs(fresh(self.data, 1.0, 0), self.data.train_x[:1])

    @property
    def _found(self) -> Path:
        return self.folder / f"controller-seed={self.seed}-epochs={self.epochs}"

    def _network(self, part: str) -> Followed:
        if part == "same":
            return Followed(afresh(as_network(load(self._found)), self.seed))
        width = uniform_width(self.data, BUDGET * self._whole) if part == "uniform" else 1.0
        return Followed(fresh(self.data, width, self.seed))


def fresh(data: Dataset, width: float, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return resnet(DEPTH, width, in_channels=data.image_shape[0], num_classes=len(data.classes))


def uniform_width(data: Dataset, macs: float) -> float:
    """The factor of the most multiply-accumulates, at most ``macs``."""
    found = {count_macs(fresh(data, i / 100, 0), data.train_x[:1]): i / 100 for i in range(1, 101)}
    return found[max(count for count in found if count <= macs)]


def widths(model: nn.Module) -> dict[str, int]:
    """Output channels of all convolutions."""
    return {name: layer.out_channels for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)}


def run(runs: Runs, settings: Settings) -> None:
    data = first_images(load_data("cifar10", settings.data_dir), QUICK_IMAGES if settings.quick else None)
    # What costs a run more and is a question of its own comes last.
    for parts in (PARTS[:-1], PARTS[-1:]):
        for seed in settings.seeds:
            study = Study(data, seed, settings.epochs, runs.path.with_suffix(""))
            for part in parts:
                if part in settings.only:
                    runs.make({"part": part, "seed": seed, "epochs": settings.epochs}, partial(study.make, part))


def tell(results: Sequence[Result]) -> str:
    ordered = sorted(results, key=lambda run: int(run["seed"]))
    groups = [(part, [run for run in ordered if run["part"] == part]) for part in PARTS]
    told = [_sizes(groups), _compute(groups), _widths(groups), _targets(results)]
    return "\n\n".join(text for text in told if text)


Groups = Sequence[tuple[str, Sequence[Result]]]


def _rows(groups: Groups, cells: Callable[[Sequence[Result]], Sequence[str]]) -> list[Sequence[str]]:
    return [(part, *cells(own)) for part, own in groups if own]


def _sizes(groups: Groups) -> str:
    head = ("network", "seeds", "test error (%)", "by seed", "test loss", "MACs (% of dense)", "parameters")

    def cells(own: Sequence[Result]) -> Sequence[str]:
        errors = [run["error"] for run in own]
        return (
            ", ".join(str(run["seed"]) for run in own),
            spread(errors),
            ", ".join(f"{error:.2f}" for error in errors),
            spread([run["loss"] for run in own], ".3f"),
            spread([100 * run["macs"] / run["whole"] for run in own], ".1f"),
            spread([float(run["params"]) for run in own], ",.0f"),
        )

    return table(head, _rows(groups, cells))


def _compute(groups: Groups) -> str:
    head = ("network", "steps", "compute used (%)", "of it beside the steps (%)", "processor seconds of steps")

    def cells(own: Sequence[Result]) -> Sequence[str]:
        return (
            spread([float(run["steps"]) for run in own], ".0f"),
            spread([100 * (run["trained"] + run["own"]) / run["limit"] for run in own], ".1f"),
            spread([100 * run["own"] / run["limit"] for run in own], ".1f"),
            spread([run["step_seconds"] for run in own], ".0f"),
            spread([run["own_seconds"] for run in own], ".0f"),
            spread([run["seconds"] for run in own], ".0f"),
        )

    return table((*head, "beside them", "seconds in all"), _rows(groups, cells))


def _widths(groups: Groups) -> str:
    """Of every run that a method made: inside the blocks, and of the streams."""
    rows = []
    for part, own in groups:
        for each in own if part in ("uniform", "magnitude", "controller") else ():
            inner = [n for name, n in each["widths"].items() if name.endswith("conv1") and "layer" in name]
            streams = {name.split(".")[1]: n for name, n in each["widths"].items() if name.endswith("conv2")}
            rows.append((part, str(each["seed"]), "-".join(map(str, inner)), "-".join(map(str, streams.values()))))
    return table(("network", "seed", "channels inside the blocks", "of the streams"), rows) if rows else ""


def apart(results: Sequence[Result], control: str) -> list[float]:
    """Error of the controller minus that of a control, of every seed that both have."""
    errors: dict[str, dict[tuple[int, int], float]] = {}
    for each in results:
        errors.setdefault(each["part"], {})[each["seed"], each["epochs"]] = each["error"]
    ours = errors.get("controller", {})
    return [ours[key] - error for key, error in errors.get(control, {}).items() if key in ours]


def _targets(results: Sequence[Result]) -> str:
    """The controller against each control, seed by seed."""
    found = {control: apart(results, control) for control in CONTROLS}
    return "\n".join(
        f"Error of the controller minus that of {control}: {_apart(values)}."
        for control, values in found.items()
        if values
    )


def answer(results: Sequence[Result]) -> str:
    found = {control: apart(results, control) for control in CONTROLS}
    if not all(found.values()):
        return "Not known yet. The controller and both controls have no seed in common so far."
    errors = [run["error"] for run in results if run["part"] == "controller"]
    first = f"At half the MACs and equal training compute the controller's error is {spread(errors)} %."
    return (
        f"{first} It differs " + "; ".join(f"from {name} by {_apart(values)}" for name, values in found.items()) + "."
    )


def _apart(values: Sequence[float]) -> str:
    """Mean over seeds, with its standard error, and whether that tells them apart."""
    mean = fmean(values)
    if len(values) < 2:
        return f"{mean:+.2f} points, one seed"
    error = stdev(values) / len(values) ** 0.5
    verdict = "no difference that seeds would show" if abs(mean) <= 2 * error else "better" if mean < 0 else "worse"
    return f"{mean:+.2f} ± {error:.2f} points (mean of {len(values)} seeds, its standard error): {verdict}"


def draw(figure: Figure, results: Sequence[Result]) -> None:
    left, right, ends = figure.subplots(1, 3)
    for part in PARTS:
        own = [run for run in results if run["part"] == part]
        for number, each in enumerate(own):
            label = part if number == 0 else None
            for axes, what in ((left, "macs"), (right, "error")):
                scale = 1e-6 if what == "macs" else 1.0
                points = [(100 * point["share"], scale * point[what]) for point in each["curve"]]
                axes.plot(*zip(*points, strict=True), color=COLOURS[part], linewidth=1.2, label=label)
        _end(ends, part, [run["error"] for run in own])
    left.set(title="Size", xlabel="compute used (%)", ylabel="million MACs", ylim=(0, None))
    right.set(title="On the way", xlabel="compute used (%)", ylabel="test error (%)")
    ends.set(title="At the end", ylabel="test error (%)", xlim=(-0.5, len(PARTS) - 0.5))
    ends.set_xticks(range(len(PARTS)), PARTS, rotation=25)
    left.legend(fontsize=8)


def _end(axes: Axes, part: str, errors: Sequence[float]) -> None:
    """Every seed, their mean, and one standard deviation."""
    if not errors:
        return
    at = PARTS.index(part)
    axes.plot([at + 0.15] * len(errors), errors, "o", color=COLOURS[part], markersize=3)
    deviation = stdev(errors) if len(errors) > 1 else 0.0
    axes.errorbar(at - 0.1, fmean(errors), deviation, fmt="s", color=COLOURS[part], capsize=4, markersize=5)


EXPERIMENT = Experiment(
    question="ResNet-20 on CIFAR-10, half the multiply-accumulates, equal training compute: what is the error?",
    epochs=4,
    run=run,
    tell=tell,
    draw=draw,
    parts=PARTS,
    title="CIFAR-10 at half the multiply-accumulates",
    control="A narrower network from the start, and channels of least magnitude removed with a cubic schedule, both "
    "with the training compute of the controller's run.",
    answer=answer,
    quick=Quick(epochs=1, parts=PARTS[:-1]),
)
