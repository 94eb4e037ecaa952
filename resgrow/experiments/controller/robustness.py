"""One configuration, the controller's defaults, for other data, optimizers and budgets; killed and resumed.

With a deadline after four fifths of the steps, and, for the first seed and the middle budget, without one: the loss
alone decides then.
Every run has a twin: the same network, batches and optimizer without a controller. The first seed's runs are also
stopped at a random step, written, read into new objects, and must end in the same history and weights to the bit.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from resgrow.controller import Budget, Controller
from resgrow.experiments.controller.problems import TASKS, Batch, Task, batches, optimizers
from resgrow.experiments.frame.experiment import Experiment, Quick, Settings, spread, table
from resgrow.experiments.frame.lacks import Lacks
from resgrow.experiments.frame.runs import Result, Runs

BUDGETS = (0.1, 0.2, 0.4)
MIDDLE = 0.2
QUICK_OPTIMIZERS = ("Adam",)
BATCH = 64
# Convolutions take thirty times a perceptron's time for a step: they get fewer.
SLOW, SLOW_SHARE = ("mnist", "cifar10"), 0.4
STEPS_PER_EPOCH = 100
DEADLINE = 0.8

Parts = tuple[nn.Module, Optimizer, Controller]


def parts(task: Task, optimizer: str, params: float, seed: int, deadline: int | None) -> Parts:
    model = task.network(seed)
    made = optimizers()[optimizer](model)
    budget, example = Budget(params=params), task.train[0][:2]
    ctl = Controller(model, made, task.loss_fn, budget, deadline=deadline, example_inputs=example, seed=seed)
    return model, made, ctl


def train(model: nn.Module, optimizer: Optimizer, ctl: Controller | None, task: Task, data: Iterable[Batch]) -> None:
    loss_fn = task.loss_fn
    for x, y in data:
        optimizer.zero_grad()
        loss_fn(model(x), y).backward()
        optimizer.step()
        if ctl is not None:
            ctl.step((x, y))


def twin(task: Task, optimizer: str, seed: int, steps: int) -> dict[str, Any]:
    model = task.network(seed)
    train(model, optimizers()[optimizer](model), None, task, batches(task, seed, BATCH, steps))
    loss, score = task.score(model)
    return {"loss": loss, "score": score}


def sized(
    task: Task, optimizer: str, params: float, seed: int, steps: int, deadline: int | None, stop: bool
) -> dict[str, Any]:
    model, made, ctl = parts(task, optimizer, params, seed, deadline)
    at = int(torch.randint(1, steps, (), generator=torch.Generator().manual_seed(seed + int(1000 * params))))
    data = batches(task, seed, BATCH, steps)
    train(model, made, ctl, task, islice(data, at))
    file = io.BytesIO()
    torch.save([ctl.state_dict(), model.state_dict(), made.state_dict()], file)
    train(model, made, ctl, task, data)
    loss, score = task.score(model)
    found = {
        "loss": loss,
        "score": score,
        "met": ctl.met,
        "params": int(ctl.cost["params"]),
        "moves": sum(move.accepted for move in ctl.history),
        "undone": sum(not move.accepted for move in ctl.history),
        "reversals": ctl.reversals,
        "finite": all(bool(torch.isfinite(p).all()) for p in model.parameters()),
    }
    if stop:
        rest = islice(batches(task, seed, BATCH, steps), at, None)
        again = resumed(file, parts(task, optimizer, params, seed, deadline), task, rest)
        found |= {"stopped": at, "identical": same((model, made, ctl), again)}
    return found


def resumed(file: io.BytesIO, new: Parts, task: Task, rest: Iterable[Batch]) -> Parts:
    """New objects that go on from what was written."""
    file.seek(0)
    states = torch.load(file, weights_only=True)
    model, optimizer, ctl = new
    ctl.load_state_dict(states[0])
    model.load_state_dict(states[1])
    optimizer.load_state_dict(states[2])
    train(model, optimizer, ctl, task, rest)
    return new


def same(one: Parts, other: Parts) -> bool:
    """History, weights, buffers, masks and optimizer state, to the bit."""
    first, second = _numbers(one), _numbers(other)
    return (
        one[2].history == other[2].history
        and len(first) == len(second)
        and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    )


def _numbers(of: Parts) -> list[Tensor]:
    model, optimizer, ctl = of
    state = [t for p in model.parameters() for t in optimizer.state.get(p, {}).values() if isinstance(t, Tensor)]
    return [*model.state_dict().values(), *state, *ctl.masks.values()]


def run(runs: Runs, settings: Settings) -> None:
    with Lacks() as lacks:
        for seed in settings.seeds:
            for name in settings.only:
                with lacks.part():
                    run_task(runs, settings, name, seed)


def run_task(runs: Runs, settings: Settings, name: str, seed: int) -> None:
    task = TASKS[name](settings.data_dir)
    first = seed == settings.seeds[0]
    steps = int(settings.epochs * STEPS_PER_EPOCH * (SLOW_SHARE if name in SLOW else 1))
    for optimizer in QUICK_OPTIMIZERS if settings.quick else optimizers():
        known = {"data": name, "optimizer": optimizer, "seed": seed, "epochs": settings.epochs}
        runs.make({**known, "budget": None}, partial(twin, task, optimizer, seed, steps))
        for params in (MIDDLE,) if settings.quick else BUDGETS:
            without = (None,) if first and params == MIDDLE else ()
            for deadline in (int(DEADLINE * steps), *without):
                made = partial(guarded, sized, task, optimizer, params, seed, steps, deadline, first)
                runs.make({**known, "budget": params, "deadline": deadline}, made)


def guarded(make: Any, *arguments: Any) -> dict[str, Any]:
    """What it returns; an error is a result, too."""
    try:
        found: dict[str, Any] = make(*arguments)
    except (ValueError, RuntimeError) as error:
        return {"error": str(error)}
    return {**found, "error": None}


def answer(results: Sequence[Result]) -> str:
    """Errors count as budgets that are not met."""
    limited = [run for run in results if run["budget"] is not None and run.get("deadline") is not None]
    if not limited:
        return "Not known yet whether budgets are met. No run with a deadline is there."
    twins = {_key(run): run for run in results if run["budget"] is None}
    done = [run for run in limited if run["error"] is None]
    met = sum(run["met"] and run["finite"] for run in done)
    stopped = [run for run in done if "identical" in run]
    same_after = sum(run["identical"] for run in stopped)
    scores = spread([run["score"] - twins[_key(run)]["score"] for run in done], "+.1f") if done else "unknown"
    resumed_too = not stopped or same_after == len(stopped)
    return (
        f"{'Yes' if met == len(limited) and resumed_too else 'No'}: budgets are met, with finite weights, in {met} of "
        f"{len(limited)} runs with a deadline, {scores} points from the score of the same network without a "
        f"controller. Stopped and resumed, {same_after} of {len(stopped)} ended as if they had not been, to the bit."
    )


def tell(results: Sequence[Result]) -> str:
    twins = {_key(run): run for run in results if run["budget"] is None}
    sized_runs = [run for run in results if run["budget"] is not None]
    done = [run for run in sized_runs if run["error"] is None]
    errors = [run["error"] for run in sized_runs if run["error"] is not None]
    told = []
    for name, limited in (("With a deadline", True), ("Without one, first seed", False)):
        own = [run for run in done if (run["deadline"] is not None) == limited]
        if own:
            told.append(f"{name}:\n\n{_rows(own, twins)}\n\n{_said(own, twins)}")
    said = f"Errors: {len(errors)}{': ' if errors else ''}{'; '.join(errors)}."
    return "\n\n".join([*told, said])


def _rows(done: Sequence[Result], twins: dict[tuple[Any, ...], Result]) -> str:
    rows = []
    for key in sorted({_case(run) for run in done}):
        own = [run for run in done if _case(run) == key]
        both = (own, [twins[_key(run)] for run in own])
        scores = [spread([run[what] for run in of], form) for what, form in _SCORES for of in both]
        counts = [spread([float(run[what]) for run in own], ".1f") for what in ("moves", "undone", "reversals")]
        left = spread([float(run["params"]) for run in own], ".0f")
        rows.append((*key, f"{sum(run['met'] for run in own)} of {len(own)}", left, *scores, *counts))
    head = ("data", "optimizer", "budget", "met", "parameters left", "test loss", "of the twin", "score (%)")
    return table((*head, "of the twin", "moves kept", "undone", "reversals"), rows)


_SCORES = (("loss", ".3f"), ("score", ".1f"))


def _said(done: Sequence[Result], twins: dict[tuple[Any, ...], Result]) -> str:
    stopped = [run for run in done if "identical" in run]
    apart = {
        params: fmean(run["score"] - twins[_key(run)]["score"] for run in done if run["budget"] == params)
        for params in sorted({run["budget"] for run in done})
    }
    return "\n".join(
        [
            f"Runs: {len(done)}; budget met in {sum(run['met'] for run in done)}; all weights finite in "
            f"{sum(run['finite'] for run in done)}; reversals in all {sum(run['reversals'] for run in done)}.",
            "Score minus the twin's, mean by budget: "
            + ", ".join(f"{params:g}: {points:+.1f}" for params, points in apart.items())
            + " points.",
            f"Stopped at a random step and resumed in new objects: {sum(run['identical'] for run in stopped)} of "
            f"{len(stopped)} ended identical to the bit.",
        ]
    )


def _case(run: Result) -> tuple[str, str, float]:
    return run["data"], run["optimizer"], run["budget"]


def _key(run: Result) -> tuple[Any, ...]:
    return run["data"], run["optimizer"], run["seed"], run["epochs"]


EXPERIMENT = Experiment(
    question="Do the controller's defaults meet their budget for other data, optimizers and budgets, and after a stop?",
    epochs=25,
    run=run,
    tell=tell,
    parts=tuple(TASKS),
    title="Robustness",
    control="The same network, batches and optimizer without a controller; and, of what is resumed, the run that was "
    "not stopped.",
    answer=answer,
    quick=Quick(epochs=20, parts=("digits", "friedman")),
)
