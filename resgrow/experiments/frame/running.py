"""The command: runs what is missing of experiments, and writes what there is to be told of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from resgrow._errors import ExpectedError, InputError
from resgrow.experiments.frame.experiment import Experiment
from resgrow.experiments.frame.folder import QUICK, read_summary, write
from resgrow.experiments.frame.registry import REGISTRY, check, experiment
from resgrow.experiments.frame.runs import Runs
from resgrow.experiments.frame.watch import Watch
from resgrow.experiments.interrupts import Interrupts

ALL = "all"


@dataclass(frozen=True)
class Order:
    """What the command line asks for.

    ``names``: ("all",) is all. ``seeds``: how many, from 0 on. ``report``: tell what is there, run nothing.
    """

    names: tuple[str, ...]
    out: Path
    seeds: int | None = None
    epochs: int | None = None
    only: tuple[str, ...] = ()
    data_dir: str | None = None
    quick: bool = False
    report: bool = False

    @property
    def folder(self) -> Path:
        """Of all experiments: quick runs never mix with full ones."""
        return self.out / QUICK if self.quick else self.out


def run(order: Order, console: Console) -> list[str]:
    """Runs experiments one after the other; what is done is not done again.

    Returns:
        What experiments lacked, such as their data: one sentence for each that did. The others have run.

    Raises:
        InputError: a name, a part or a number that cannot be, before anything runs.
        Interrupted: by SIGINT or SIGTERM, after what is there has been written.
        OSError: a result cannot be written.
    """
    experiments = _checked(order)
    lacking = []
    interrupts = Interrupts()
    with interrupts.caught():
        for name, each in experiments.items():
            try:
                run_one(each, name, order, console, interrupts)
            except ExpectedError as error:
                lacking.append(f"{name}: {error}")
            summary = read_summary(order.folder / name)
            told = summary["answer"] if summary else "no results yet"
            console.print(f"{name}: {told}", highlight=False, markup=False, soft_wrap=True)
    return lacking


def run_one(
    each: Experiment, name: str, order: Order, console: Console | None = None, interrupts: Interrupts | None = None
) -> None:
    """One experiment into its folder, which tells what was made even if the run does not come to its end."""
    folder = order.folder / name
    settings = each.settings(
        seeds=None if order.seeds is None else tuple(range(order.seeds)),
        epochs=order.epochs,
        data_dir=order.data_dir,
        only=order.only,
        quick=order.quick,
    )
    with Watch(console or Console(quiet=True), name) as watch:
        runs = Runs(folder, watch=watch)
        try:
            if not order.report:
                each.run(runs, settings)
        finally:
            with (interrupts or Interrupts()).held():
                write(each, name, runs, folder, quick=order.quick)


def show(order: Order, console: Console) -> None:
    """Every experiment with its question, and whether results are there."""
    for name in REGISTRY:
        states = [
            f"{summary['runs']} {kind}runs, {summary['date']}"
            for kind, folder in (("", order.out), ("quick ", order.out / QUICK))
            if (summary := read_summary(folder / name)) is not None
        ]
        console.print(f"{name}  ({'; '.join(states) or 'no results'})", highlight=False, markup=False)
        console.print(f"    {experiment(name).question}", highlight=False, markup=False, soft_wrap=True)


def _checked(order: Order) -> dict[str, Experiment]:
    names = tuple(REGISTRY) if order.names == (ALL,) else order.names
    check(names)
    for option, value in (("seeds", order.seeds), ("epochs", order.epochs)):
        if value is not None and value < 1:
            raise InputError(f"experiment: --{option} must be at least 1 (got {value}); leave it out for the default")
    experiments = {name: experiment(name) for name in names}
    for name, each in experiments.items():
        _check_parts(name, each, order.only)
    return experiments


def _check_parts(name: str, each: Experiment, only: Sequence[str]) -> None:
    unknown = [part for part in only if part not in each.parts]
    if unknown:
        parts = ", ".join(map(repr, each.parts)) or "nothing"
        raise InputError(f"experiment: --only of {name} takes {parts} (got {unknown}); choose among these")
