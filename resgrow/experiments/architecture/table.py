"""The paper's table: which gates of LeNet-5 (20-50-500-10) learn, and what becomes of it; against SVD of one layer.

A row is learnt, and the network found is trained again from new weights. "dense" trains LeNet-5 as it is, and replaces
its third layer by two of some rank without training on. Test images are used for reporting only.

Source: Srinivas & Babu, "Learning neural network architectures using backpropagation", tables 1 and 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from matplotlib.figure import Figure

import resgrow.data
from resgrow.data import Dataset
from resgrow.experiments.architecture.learning import accuracy, deviation, learn, renewed, train
from resgrow.experiments.config import FitConfig, make_config
from resgrow.experiments.frame.data_part import first_images
from resgrow.experiments.frame.experiment import Experiment, Quick, Settings, spread
from resgrow.experiments.frame.experiment import table as as_table
from resgrow.experiments.frame.runs import Result, Runs
from resgrow.experiments.models import as_network, build_model
from resgrow.report.style import DENSE, SIZED, UNDONE
from resgrow.surgery import factorise, swap_activations
from resgrow.surgery.count import count_params

# Activations of resgrow.nn.lenet5 by name: after the first and second convolution and the third layer.
ACTIVATIONS = ("2", "5", "8")
_THIRD = "7"


@dataclass(frozen=True)
class Row:
    """What is learnt: for each activation "width", "both" or "neither"; ``gates``: the penalty's coefficient."""

    learn: tuple[str, str, str]
    gates: float


ROWS = {
    "all, small": Row(("width", "width", "both"), 2.5e-3),
    "all, large": Row(("width", "width", "both"), 1.5e-3),
    "third, small": Row(("neither", "neither", "width"), 8e-4),
    "third, large": Row(("neither", "neither", "width"), 3e-4),
}
SVD_RANKS = (10, 20, 40, 70)
QUICK_IMAGES = 6_000


def learn_row(row: Row, config: FitConfig, data: Dataset) -> dict[str, Any]:
    """Weights and gates together; then the network that was found, trained again from new weights."""
    words = dict(zip(ACTIVATIONS, row.learn, strict=True))
    gated = as_network(swap_activations(build_model(config, data), data.train_x[:1], learn=words))
    found = learn(gated, data, config, row.gates)
    result = {
        **asdict(row),
        "widths": [found.gates.widths().get(name) for name in ACTIVATIONS],
        "linear": list(found.gates.linear()),
        "params": count_params(found.small),
        "accuracy": accuracy(found.small, data),
        "deviation": deviation(gated, data),
        "train_loss": found.training.epochs[-1].loss,
        "curve": found.curve,
    }
    fresh = train(renewed(found.small, config.seed + 1000), data, config)
    return {**result, "scratch_accuracy": fresh.epochs[-1].test_accuracy}


def train_dense(config: FitConfig, data: Dataset) -> dict[str, Any]:
    """The network as it is, and its third layer at several ranks."""
    model = build_model(config, data)
    training = train(model, data, config)
    results: dict[str, Any] = {"params": count_params(model), "accuracy": training.epochs[-1].test_accuracy}
    for rank in SVD_RANKS:
        low = factorise(model.eval(), {_THIRD: rank}).model
        results[f"svd-{rank}"] = {"params": count_params(low), "accuracy": accuracy(low, data)}
    return results


def run(runs: Runs, settings: Settings) -> None:
    data = first_images(resgrow.data.load("mnist", settings.data_dir, False), QUICK_IMAGES if settings.quick else None)
    for seed in settings.seeds:
        config = make_config("mnist", "lenet5", budget="params=1", epochs=settings.epochs, lr=1e-3, seed=seed)
        for name in settings.only:
            row = ROWS.get(name)
            known = {"row": name, "seed": seed, "epochs": settings.epochs, **(asdict(row) if row else {})}
            runs.make(known, partial(learn_row, row, config, data) if row else partial(train_dense, config, data))


def _architecture(result: Result) -> str:
    first, second, third = (found or full for found, full in zip(result["widths"], (20, 50, 500), strict=True))
    # A third layer that was merged into the last has no neurons of its own.
    return f"{first}-{second}-10" if result["linear"] else f"{first}-{second}-{third}-10"


def tell(results: Sequence[Result]) -> str:
    """A line for each row and number of epochs; means and deviations over seeds."""
    lines = []
    for name in (*ROWS, "dense"):
        runs = [result for result in results if result["row"] == name]
        for epochs, coefficient in sorted({(run["epochs"], run.get("gates", 0.0)) for run in runs}):
            group = [run for run in runs if run["epochs"] == epochs and run.get("gates", 0.0) == coefficient]
            lines += _dense_lines(group) if name == "dense" else [_line(name, group)]
    head = ("row", "coefficient", "epochs", "seeds", "found", "parameters", "learnt (%)", "trained afresh (%)")
    worst = max((run["deviation"] for run in results if "deviation" in run), default=0.0)
    return f"{as_table(head, lines)}\n\nMerged against gated network, float64: at most {worst:.1e} (relative)."


def _percent(values: Sequence[float]) -> str:
    return spread([100 * value for value in values])


def _line(name: str, runs: Sequence[Result]) -> tuple[str, ...]:
    found = ", ".join(_architecture(run) for run in runs)
    size = spread([run["params"] for run in runs], ",.0f")
    scratch = _percent([run["scratch_accuracy"] for run in runs])
    first = runs[0]
    learnt = _percent([run["accuracy"] for run in runs])
    return name, f"{first['gates']:g}", str(first["epochs"]), str(len(runs)), found, size, learnt, scratch


def _dense_lines(runs: Sequence[Result]) -> list[tuple[str, ...]]:
    count, epochs = str(len(runs)), str(runs[0]["epochs"])
    plain = ("dense", "", epochs, count, "20-50-500-10", f"{runs[0]['params']:,}", "")
    lines: list[tuple[str, ...]] = [(*plain, _percent([run["accuracy"] for run in runs]))]
    for rank in SVD_RANKS:
        low = [run[f"svd-{rank}"] for run in runs]
        cells = (f"SVD, rank {rank}", "", epochs, count, f"20-50-({rank})-500-10", f"{low[0]['params']:,}")
        lines.append((*cells, _percent([each["accuracy"] for each in low]), ""))
    return lines


def draw(figure: Figure, results: Sequence[Result]) -> None:
    """Accuracy over parameters: learnt, trained afresh, and by SVD."""
    axes = figure.add_subplot()
    learnt = [run for run in results if run["row"] in ROWS]
    dense = [run for run in results if run["row"] == "dense"]
    low = [run[f"svd-{rank}"] for run in dense for rank in SVD_RANKS]
    for label, colour, marker, points in (
        ("learnt", SIZED, "o", [(run["params"], run["accuracy"]) for run in learnt]),
        ("the same, trained afresh", SIZED, "x", [(run["params"], run["scratch_accuracy"]) for run in learnt]),
        ("SVD of the third layer", UNDONE, "s", [(each["params"], each["accuracy"]) for each in low]),
        ("LeNet-5", DENSE, "o", [(run["params"], run["accuracy"]) for run in dense]),
    ):
        axes.scatter(
            [x for x, _ in points], [100 * y for _, y in points], s=22, color=colour, marker=marker, label=label
        )
    axes.set(title="MNIST", xlabel="parameters", ylabel="test accuracy (%)", xscale="log")
    axes.legend(fontsize=8)


EXPERIMENT = Experiment(
    question="Which architectures are learnt on MNIST from LeNet-5 (431,080 parameters), and how good are they?",
    epochs=20,
    run=run,
    tell=tell,
    draw=draw,
    parts=(*ROWS, "dense"),
    title="The table",
    quick=Quick(epochs=2, parts=("all, large", "dense")),
)
