"""A task of known difficulty, sin(k x): is the size that is found that which the task needs, wherever it starts?

A perceptron of two hidden layers is to keep a mean squared error of `LIMIT`, 2 % of the variance. It starts far too
small or far too large. Ends are the last size at which the loss was within its limit and no removal on probation.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from statistics import fmean, median
from typing import Any

import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch import Tensor, nn

from resgrow.controller import Budget, Controller
from resgrow.experiments.frame.experiment import Experiment, Quick, Settings, spread, table
from resgrow.experiments.frame.runs import Result, Runs
from resgrow.report.style import DENSE, SIZED

FREQUENCIES = (2, 4, 6, 9, 12, 16, 20)
QUICK_FREQUENCIES = (2, 6, 12)
STARTS = {"small": 2, "large": 32}
LIMIT = 0.01
RATE = 0.003
BATCH = 256
HELD = 512
EVERY = 50
# All units are removed one by one before a removal: a forward pass each, of networks that have few.
CONFIRM = 64
STEPS_PER_EPOCH = 100
# Targets: of the rank correlation of k and size, and of the ratio of the ends of both starts.
RANKS = 0.9
APART = 1.25


def network(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(1, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))


def wave(k: float, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = 2 * torch.rand(count, 1, generator=generator) - 1
    return x, torch.sin(k * x)


def one(k: float, width: int, seed: int, steps: int) -> dict[str, Any]:
    """Train and let the controller find the size; Adam, new samples in every batch."""
    generator = torch.Generator().manual_seed(1000 + seed)
    held = wave(k, HELD, generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network(width)
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    loss_fn = nn.MSELoss()
    ctl = Controller(
        model,
        optimizer,
        loss_fn,
        Budget(loss=LIMIT),
        held=held,
        example_inputs=held[0][:2],
        every=EVERY,
        confirm=CONFIRM,
        seed=seed,
    )
    trace: list[tuple[int, int]] = []
    spent = 0.0
    for step in range(1, steps + 1):
        batch = wave(k, BATCH, generator)
        optimizer.zero_grad()
        loss_fn(model(batch[0]), batch[1]).backward()
        optimizer.step()
        started = time.perf_counter()
        ctl.step(batch)
        spent += time.perf_counter() - started
        if step % EVERY == 0 and ctl.met and not ctl.on_probation:
            trace.append((step, int(ctl.cost["params"])))
    moves = Counter(move.kind for move in ctl.history if move.accepted)
    return {
        "params": trace[-1][1] if trace else None,
        "at": trace[-1][0] if trace else None,
        "widths": [price.present for price in ctl.prices()],
        "moves": dict(moves),
        "reversals": ctl.reversals,
        "controller_seconds": spent,
        "curve": changes(trace),
    }


def changes(trace: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The looks at which the size was another than before."""
    return [point for i, point in enumerate(trace) if i == 0 or point[1] != trace[i - 1][1]]


def run(runs: Runs, settings: Settings) -> None:
    for seed in settings.seeds:
        for k in QUICK_FREQUENCIES if settings.quick else FREQUENCIES:
            for start in settings.only:
                known = {"seed": seed, "k": k, "start": start, "epochs": settings.epochs}
                steps = settings.epochs * STEPS_PER_EPOCH
                runs.make(known, partial(one, k, STARTS[start], seed, steps))


def ranks(results: Sequence[Result]) -> float:
    """Spearman's of k and size."""
    return float(spearmanr([run["k"] for run in results], [run["params"] for run in results]).statistic)


def ratios(results: Sequence[Result]) -> dict[tuple[int, int], float]:
    """Of the larger end to the smaller one, by k and seed."""
    ends: dict[tuple[int, int], dict[str, int]] = {}
    for each in results:
        ends.setdefault((each["k"], each["seed"]), {})[each["start"]] = each["params"]
    return {key: max(e.values()) / min(e.values()) for key, e in sorted(ends.items()) if len(e) == len(STARTS)}


def answer(results: Sequence[Result]) -> str:
    done = [run for run in results if run["params"] is not None]
    found = ratios(done)
    if len({k for k, _ in found}) < 3:
        return "Not known yet whether the size follows k. At least three k must have been started from both sizes."
    each = min(ranks([run for run in done if run["start"] == start]) for start in STARTS)
    middle = median(found.values())
    follows, near = min(ranks(done), each) >= RANKS, middle <= APART
    late = len(results) - len(done)
    within = f" ({late} runs never were within the limit)" if late else ""
    return (
        f"{'Yes' if follows and near else 'Only in part' if follows or near else 'No'}: Spearman's correlation of k "
        f"and size is {ranks(done):.2f} over {len(done)} runs{within}, and {each:.2f} from the start where it is "
        f"least. Both starts end {'near each other' if near else 'apart'}: the median ratio of their sizes is "
        f"{middle:.2f} of at most {APART} wanted."
    )


def tell(results: Sequence[Result]) -> str:
    done = [run for run in results if run["params"] is not None]
    found = ratios(done)
    return "\n\n".join([_sizes(done, found), _targets(done, found), _compute(results, len(done))])


def _sizes(done: Sequence[Result], found: dict[tuple[int, int], float]) -> str:

    def shown(sizes: Sequence[int]) -> str:
        return f"{spread(sizes, '.0f')} ({', '.join(map(str, sizes))})" if sizes else ""

    rows = []
    for k in sorted({run["k"] for run in done}):
        by_start = {
            start: [run["params"] for run in done if run["k"] == k and run["start"] == start] for start in STARTS
        }
        own = [ratio for (frequency, _), ratio in found.items() if frequency == k]
        means = [fmean(sizes) for sizes in by_start.values() if sizes]
        rows.append(
            (
                k,
                *(
                    f"{spread(sizes, '.0f')} ({', '.join(map(str, sizes))})" if sizes else ""
                    for sizes in by_start.values()
                ),
                ", ".join(f"{ratio:.2f}" for ratio in own),
                f"{max(means) / min(means):.2f}" if len(means) == len(STARTS) else "",
            )
        )
    heads = [f"parameters from width {width}" for width in STARTS.values()]
    return table(("k", *heads, "ratio of ends, by seed", "ratio of means"), rows)


def _targets(done: Sequence[Result], found: dict[tuple[int, int], float]) -> str:
    each = {start: ranks([run for run in done if run["start"] == start]) for start in STARTS}
    both = ranks(done)
    lines = [
        f"Spearman's correlation of k and size: {both:.2f} of all, "
        + ", ".join(f"{value:.2f} from {start}" for start, value in each.items())
        + f"; target {RANKS} in each: {'met' if min(both, *each.values()) >= RANKS else 'missed'}."
    ]
    if found:
        near = sum(ratio <= APART for ratio in found.values())
        middle = median(found.values())
        lines.append(
            f"Both starts end within 25 % of each other in {near} of {len(found)} pairs, median ratio {middle:.2f}; "
            f"target {APART} in the median: {'met' if middle <= APART else 'missed'}."
        )
    return "\n".join(lines)


def _compute(results: Sequence[Result], done: int) -> str:
    seconds, own = (fmean(run[key] for run in results) for key in ("seconds", "controller_seconds"))
    turns = spread([float(run["reversals"]) for run in results], ".1f")
    return (
        f"Runs: {len(results)}, of which {done} were within the limit at some look. {seconds:.0f} seconds each, the "
        f"controller's {own:.0f} of them; reversals {turns}."
    )


def draw(figure: Figure, results: Sequence[Result]) -> None:
    axes = figure.add_subplot()
    for start, colour, marker in (("small", SIZED, "o"), ("large", DENSE, "s")):
        own = [run for run in results if run["start"] == start and run["params"] is not None]
        shift = 0.97 if start == "small" else 1.03
        axes.plot(
            [run["k"] * shift for run in own],
            [run["params"] for run in own],
            marker,
            color=colour,
            label=f"from width {STARTS[start]}",
        )
    axes.set(title="The size found for sin(k x)", xlabel="k", ylabel="parameters", xscale="log", yscale="log")
    axes.set_xticks(FREQUENCIES, [str(k) for k in FREQUENCIES])
    axes.legend()


EXPERIMENT = Experiment(
    question="Does the size that the controller finds for sin(k x) follow k, wherever it starts?",
    epochs=150,
    run=run,
    tell=tell,
    draw=draw,
    parts=tuple(STARTS),
    title="Capacity",
    control="A task of known difficulty: k, and the same task from a start far too small and one far too large.",
    answer=answer,
    quick=Quick(epochs=25),
)
