"""Architecture learning from trained weights: a residual network on CIFAR-10, and what else could be done with it.

base        trained from new weights, EPOCHS epochs. Everything below takes FINE_SHARE as many; all but "scratch" start
            from the base's weights
gates       weights and gates together: the network gets smaller while it trains on
plain       the base as it is: the accuracy that the further epochs bring without getting smaller
magnitude   the channels of least magnitude removed at once, to as many parameters as the gates left, then trained
scratch     the architecture that the gates found, with new weights, for the epochs of both trainings

Gates and magnitude choose among the same channels, those inside the residual blocks. Images are taken as they are,
without flips or crops: in so few epochs the networks do not learn them by heart. Test images are used for reporting
only.

Source: Srinivas & Babu, "Learning neural network architectures using backpropagation", whose AlexNet starts from
trained weights.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

import resgrow.data
from resgrow.experiments.architecture.study import Study
from resgrow.experiments.frame.data_part import first_images
from resgrow.experiments.frame.experiment import Experiment, Quick, Settings, spread, table
from resgrow.experiments.frame.runs import Result, Runs
from resgrow.report.style import DENSE, INK, SIZED, UNDONE

# With it three seeds take about an hour of one core. Of 14 layers it would be twice that, of 20 nearly three times.
MODEL = "resnet8"
EPOCHS = 5
FINE_SHARE = 0.4
# Of the gates' penalty, for about 75, 50 and 30 % of the parameters: of a base of 500 steps, after 100 more, 3e-4 left
# 73 %, 1e-3 48 % and 3e-3 36 %.
COEFFICIENTS = (3e-4, 1e-3, 5e-3)
# From new weights is the dearest of the controls: one architecture of the three.
SCRATCH = COEFFICIENTS[1:2]
QUICK_IMAGES = 1_000
PARTS = ("base", "gates", "plain", "magnitude", "scratch")


def run(runs: Runs, settings: Settings) -> None:
    data = first_images(resgrow.data.load("cifar10", settings.data_dir), QUICK_IMAGES if settings.quick else None)
    fine = max(1, round(FINE_SHARE * settings.epochs))
    for seed in settings.seeds:
        study = Study(runs, data, MODEL, seed, settings.epochs, fine)
        for part in PARTS:
            if part in settings.only:
                _make(study, part)


def _make(study: Study, part: str) -> None:
    if part in ("base", "plain"):
        getattr(study, part)()
    else:
        for coefficient in SCRATCH if part == "scratch" else COEFFICIENTS:
            getattr(study, part)(coefficient)


def tell(results: Sequence[Result]) -> str:
    """A line for each base, and for each network made of it; means and deviations over seeds."""
    head = (
        *("network", "coefficient", "epochs", "seeds", "channels inside the blocks", "parameters", "of the base (%)"),
        *("million MACs", "accuracy before (%)", "after (%)"),
    )
    groups: dict[tuple[object, ...], list[Result]] = {}
    for result in sorted(results, key=_order):
        groups.setdefault(_order(result), []).append(result)
    bases = {_base_of(run): run["params"] for run in results if run["what"] == "base"}
    lines = [_line(group, bases) for group in groups.values()]
    worst = max((run["deviation"] for run in results if "deviation" in run), default=0.0)
    return f"{table(head, lines)}\n\nSmaller against gated network, float64: at most {worst:.1e} (relative)."


def _order(result: Result) -> tuple[object, ...]:
    """What the runs of one line have in common, and where it stands: what does not get smaller, then by coefficient."""
    place = ("base", "plain", "gates", "magnitude", "scratch").index(result["what"])
    return result["model"], result["epochs"], result.get("gates", 0.0), result.get("fine", 0), place


def _line(runs: Sequence[Result], bases: dict[tuple[object, ...], int]) -> tuple[str, ...]:
    first = runs[0]
    shares = [100 * run["params"] / size for run in runs if (size := bases.get(_base_of(run)))]
    return (
        f"{first['what']} ({first['model']})" if first["what"] == "base" else first["what"],
        f"{first['gates']:g}" if "gates" in first else "",
        _epochs(first),
        str(len(runs)),
        ", ".join("-".join(str(width) for width in run["widths"].values()) for run in runs),
        spread([run["params"] for run in runs], ",.0f"),
        spread(shares, ".1f") if shares else "",
        spread([run["macs"] / 1e6 for run in runs]),
        *(spread([100 * run[when] for run in runs]) for when in ("before", "accuracy")),
    )


def _base_of(result: Result) -> tuple[object, ...]:
    return result["model"], result["epochs"], result["seed"]


def _epochs(result: Result) -> str:
    """Those of the base and those after it; of new weights all in one."""
    if result["what"] == "base":
        return str(result["epochs"])
    if result["what"] == "scratch":
        return str(result["epochs"] + result["fine"])
    return f"{result['epochs']} + {result['fine']}"


def draw(figure: Figure, results: Sequence[Result]) -> None:
    """Accuracy over parameters: learnt, by magnitude, from new weights; lines where nothing gets smaller."""
    axes = figure.add_subplot()
    for what, label, colour, marker in (
        ("gates", "gates, from trained weights", SIZED, "o"),
        ("magnitude", "magnitude, as many parameters", UNDONE, "s"),
        ("scratch", "as found by the gates, new weights", SIZED, "x"),
    ):
        found = [run for run in results if run["what"] == what]
        axes.scatter(
            [run["params"] for run in found],
            [100 * run["accuracy"] for run in found],
            s=22,
            color=colour,
            marker=marker,
            label=label,
        )
    for what, label, colour, style in (
        ("base", "base", DENSE, "-"),
        ("plain", "base, trained on", INK, "--"),
    ):
        reached = [100 * run["accuracy"] for run in results if run["what"] == what]
        if reached:
            axes.axhline(sum(reached) / len(reached), color=colour, linestyle=style, linewidth=1.2, label=label)
    axes.set(title="CIFAR-10", xlabel="parameters", ylabel="test accuracy (%)", xlim=(0, None))
    axes.legend(fontsize=8)


EXPERIMENT = Experiment(
    question="Which widths are learnt from trained weights of a residual network on CIFAR-10, and against what?",
    epochs=EPOCHS,
    run=run,
    tell=tell,
    draw=draw,
    parts=PARTS,
    title="From trained weights",
    quick=Quick(epochs=2),
)
