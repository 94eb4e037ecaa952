"""What an experiment is: a question, how it is answered, and how that is told."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from matplotlib.figure import Figure

from resgrow.experiments.frame.runs import Result, Runs

# One line of a table: its columns by name.
Row = dict[str, object]
# One table, or several by name.
Tables = list[Row] | dict[str, list[Row]]
Value = TypeVar("Value")


@dataclass(frozen=True)
class Settings:
    """What the command line says: ``epochs`` of one training, where data sets lie, what else is asked for.

    ``quick``: a rough answer in minutes is wanted, whatever an experiment can leave out for that.
    """

    seeds: tuple[int, ...]
    epochs: int
    data_dir: str | None
    only: tuple[str, ...] = ()
    quick: bool = False


@dataclass(frozen=True)
class Quick:
    """What ``--quick`` sets; None: as in full runs. Within three minutes on two cores."""

    seeds: tuple[int, ...] | None = (0,)
    epochs: int | None = None
    parts: tuple[str, ...] | None = None


def tables(name: str, rows: Tables) -> dict[str, list[Row]]:
    """By name: one table alone has that of the experiment."""
    return rows if isinstance(rows, dict) else {name: rows}


def unknown(results: Sequence[Result]) -> str:
    """The answer of an experiment that does not say how it is found."""
    return f"Not known yet. {len(results)} runs are there, and no rule that concludes from them."


def plain_rows(results: Sequence[Result]) -> list[Row]:
    """A row for each run: all its numbers, words and truth values, those of nested settings as "rise.at once"."""
    return [dict(_flat(run)) for run in results]


def _flat(of: Result, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in of.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif not isinstance(value, list):
            yield prefix + key, value


@dataclass(frozen=True)
class Experiment:
    """A question and how it is answered.

    ``run`` makes whatever runs are missing. What tells must be content with part of them, but never gets none: ``tell``
    gives them as Markdown, ``answer`` gives two sentences that follow from them, ``rows`` a table for CSV and JSON, or
    several by name. ``draw`` draws into an empty figure of 9 x 3.4 inches.

    What runs say of "seed", "steps" and "samples" is told as what was spent; their seconds are measured.

    ``control``: what it is compared with, in a sentence. ``parts``: what ``--only`` can choose among. ``seeds`` and
    ``epochs`` are those of full runs; no seeds and 0 epochs mean that parts have their own.
    """

    question: str
    epochs: int
    run: Callable[[Runs, Settings], None]
    tell: Callable[[Sequence[Result]], str]
    draw: Callable[[Figure, Sequence[Result]], None] | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    parts: tuple[str, ...] = ()
    title: str = ""
    control: str = ""
    answer: Callable[[Sequence[Result]], str] = unknown
    rows: Callable[[Sequence[Result]], Tables] = plain_rows
    quick: Quick = Quick()

    def settings(
        self,
        *,
        seeds: tuple[int, ...] | None = None,
        epochs: int | None = None,
        data_dir: str | None = None,
        only: Sequence[str] = (),
        quick: bool = False,
    ) -> Settings:
        """What was asked for, and defaults for the rest."""
        short = self.quick if quick else Quick(None)
        parts = self.parts if short.parts is None else short.parts
        return Settings(
            _first(seeds, short.seeds, self.seeds),
            _first(epochs, short.epochs, self.epochs),
            data_dir,
            tuple(only) or parts,
            quick,
        )


def _first(given: Value | None, quick: Value | None, full: Value) -> Value:
    return next((value for value in (given, quick) if value is not None), full)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Mean and standard deviation over seeds: "99.10 ± 0.04"; one value alone has no deviation."""
    mean = format(statistics.fmean(values), form)
    return f"{mean} ± {format(statistics.stdev(values), form)}" if len(values) > 1 else mean
