"""What the command needs to know of an experiment."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from resgrow.experiments.architecture.runs import Result, Runs


@dataclass(frozen=True)
class Settings:
    """What the command line says: ``epochs`` of one training, where data sets lie, what else is asked for."""

    seeds: tuple[int, ...]
    epochs: int
    data_dir: str | None
    only: tuple[str, ...] = ()


@dataclass(frozen=True)
class Experiment:
    """A question and how it is answered.

    ``run`` makes whatever runs are missing. ``tell`` gives their results as Markdown and must be content with part of
    them. ``draw`` draws into an empty figure. ``parts``: what ``--only`` can choose among.
    """

    question: str
    epochs: int
    run: Callable[[Runs, Settings], None]
    tell: Callable[[Sequence[Result]], str]
    draw: Callable[[Figure, Sequence[Result]], None] | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    parts: tuple[str, ...] = ()


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Mean and standard deviation over seeds: "99.10 ± 0.04"; one value alone has no deviation."""
    mean = format(statistics.fmean(values), form)
    return f"{mean} ± {format(statistics.stdev(values), form)}" if len(values) > 1 else mean
