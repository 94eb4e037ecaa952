"""What the controller costs beside training, at its defaults.

Two copies of a network are trained in turn, step by step, on the same batches: one alone, one with the controller. Cost
is all that the second takes more: curvature, moves, and the masks' work in its optimizer's steps, which is the
difference of the two trainings. Ratios are of one stretch from one move to the next, medians over stretches, which is
what "epochs" are here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import resgrow.nn
from resgrow._stopwatch import fair_clock
from resgrow.controller import Budget, Controller
from resgrow.experiments.controller.problems import digit_task
from resgrow.experiments.frame.experiment import Experiment, Quick, Settings, table
from resgrow.experiments.frame.runs import Result, Runs

Batch = tuple[Tensor, Tensor]
LOSS = nn.CrossEntropyLoss()
UNITS = ("channel", "weight")
# Targets: of all, and of curvature alone.
ALL, CURVATURE = 0.10, 0.05
SHARE_KEPT = 0.2
# So small that the loss has settled from the start: moves are due in every stretch. Speed does not depend on it.
RATE = 1e-4


@dataclass(frozen=True)
class Load:
    """A network and samples for it."""

    make: Callable[[], nn.Module]
    samples: Callable[[], Batch]
    batch: int


def _perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


def _resnet20() -> nn.Module:
    model: Any = resgrow.nn.resnet(20)
    network: nn.Module = model.to(memory_format=torch.channels_last)
    return network


def _noise(*shape: int) -> Batch:
    """Normal pixels and labels that have to do with nothing: speed does not depend on them."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1024, *shape, generator=generator)
    return x.contiguous(memory_format=torch.channels_last), torch.randint(10, (len(x),), generator=generator)


LOADS = {
    "perceptron-64": Load(_perceptron, lambda: digit_task(None).train, 64),
    "lenet5-64": Load(resgrow.nn.lenet5, lambda: _noise(1, 28, 28), 64),
    "resnet20-64": Load(_resnet20, lambda: _noise(3, 32, 32), 64),
    "resnet20-128": Load(_resnet20, lambda: _noise(3, 32, 32), 128),
}


@dataclass
class Pair:
    """The same network twice, and what each has spent, in seconds."""

    load: Load
    alone: nn.Module
    beside: nn.Module
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer]
    ctl: Controller
    data: Iterator[Batch]
    clock: Callable[[], float]
    curvature: list[float]

    @classmethod
    def of(cls, load: Load, unit: str, seed: int) -> Pair:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            alone = load.make()
        beside = copy.deepcopy(alone)
        optimizers = (_optimizer(alone), _optimizer(beside))
        x, y = load.samples()
        ctl = Controller(
            beside, optimizers[1], LOSS, Budget(params=SHARE_KEPT), unit=unit, example_inputs=x[:2], seed=seed
        )
        clock = fair_clock()
        return cls(load, alone, beside, optimizers, ctl, _batches(x, y, load.batch, seed), clock, _timed(ctl, clock))

    def stretch(self, steps: int) -> dict[str, float]:
        spent = dict.fromkeys(("alone", "beside", "controller"), 0.0)
        self.curvature.clear()
        for _ in range(steps):
            batch = next(self.data)
            spent["alone"] += self._seconds(partial(_update, self.alone, self.optimizers[0], batch))
            spent["beside"] += self._seconds(partial(_update, self.beside, self.optimizers[1], batch))
            spent["controller"] += self._seconds(partial(self.ctl.step, batch))
        return {**spent, "curvature": sum(self.curvature)}

    def _seconds(self, call: Callable[[], object]) -> float:
        started = self.clock()
        call()
        return self.clock() - started


def one(load: Load, unit: str, seed: int, stretches: int) -> dict[str, Any]:
    pair = Pair.of(load, unit, seed)
    pair.stretch(1)  # the first steps also plan and allocate, and tell how long a stretch is
    every = pair.ctl.every
    assert every is not None
    pair.stretch(every - 1)
    return {**_ratios([pair.stretch(every) for _ in range(stretches)]), "every": every, "moves": len(pair.ctl.history)}


def _ratios(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Medians over stretches, relative to training alone."""
    return {
        "all": median((row["beside"] + row["controller"]) / row["alone"] - 1 for row in rows),
        "step": median(row["controller"] / row["alone"] for row in rows),
        "curvature": median(row["curvature"] / row["alone"] for row in rows),
        "masks": median(row["beside"] / row["alone"] - 1 for row in rows),
        "milliseconds": 1e3 * median(row["alone"] for row in rows),
    }


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), RATE, momentum=0.9)


def _update(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    optimizer.zero_grad()
    LOSS(model(batch[0]), batch[1]).backward()
    optimizer.step()


def _batches(x: Tensor, y: Tensor, size: int, seed: int) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        for part in torch.randperm(len(x), generator=generator)[: len(x) // size * size].split(size):
            yield x[part], y[part]


def _timed(ctl: Controller, clock: Callable[[], float]) -> list[float]:
    """Seconds of each call of the running curvature from now on."""
    estimate, seconds = ctl._course.shop.estimate, list[float]()
    step = estimate.step

    def timed(batch: Batch) -> None:
        started = clock()
        step(batch)
        seconds.append(clock() - started)

    setattr(estimate, "step", timed)  # noqa: B010 - mypy takes an assignment to a method for a mistake
    return seconds


def run(runs: Runs, settings: Settings) -> None:
    for seed in settings.seeds:
        for name in settings.only:
            for unit in UNITS[:1] if settings.quick else UNITS:
                known = {"load": name, "unit": unit, "seed": seed, "epochs": settings.epochs}
                runs.make(known, partial(one, LOADS[name], unit, seed, settings.epochs))


def answer(results: Sequence[Result]) -> str:
    dearest = max(results, key=lambda run: run["all"])
    within = sum(run["all"] <= ALL for run in results)
    curvature = max(run["curvature"] for run in results)
    return (
        f"{'Little' if within == len(results) else 'More than was wanted'}: at most {100 * ALL:.0f} % of training in "
        f"{within} of {len(results)} cases, and {100 * dearest['all']:.1f} % in the dearest ({dearest['load']}, by "
        f"{dearest['unit']}). Of that, curvature is at most {100 * curvature:.1f} %, of {100 * CURVATURE:.0f} % wanted."
    )


def tell(results: Sequence[Result]) -> str:
    rows = [
        (
            run["load"],
            run["unit"],
            run["seed"],
            run["every"],
            f"{run['milliseconds'] / run['every']:.1f}",
            run["moves"],
            *(f"{100 * run[key]:.1f}" for key in ("all", "step", "curvature", "masks")),
        )
        for run in results
    ]
    head = ("network, batch", "unit", "seed", "steps of a stretch", "ms of a step", "moves tried")
    shares = ("all (%)", "Controller.step (%)", "of it curvature (%)", "masks in the optimizer (%)")
    near = [sum(run[key] <= limit for run in results) for key, limit in (("all", ALL), ("curvature", CURVATURE))]
    said = (
        f"All within {100 * ALL:.0f} % in {near[0]} of {len(results)} cases, "
        f"curvature within {100 * CURVATURE:.0f} % in {near[1]}."
    )
    return f"{table((*head, *shares), rows)}\n\n{said}"


EXPERIMENT = Experiment(
    question="What does the controller cost beside training, at its defaults?",
    epochs=5,
    run=run,
    tell=tell,
    seeds=(0,),
    parts=tuple(LOADS),
    title="Overhead",
    control="A copy of the network that is trained in turn, step by step, on the same batches, without a controller.",
    answer=answer,
    quick=Quick(epochs=2, parts=("perceptron-64",)),
)
