"""How far a curvature pass has come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Report = Callable[[int, "int | None"], Any]


class Meter:
    """Counts batches, each worth ``steps``, and calls ``report(done, total)``; silent without ``report``.

    ``total`` is None where the number of batches is not known.
    """

    def __init__(self, report: Report | None = None, batches: int | None = None, steps: int = 1) -> None:
        self._report, self._steps = report, steps
        self._total = None if batches is None else batches * steps
        self._batches = self._done = 0

    def step(self, count: int) -> None:
        """``count`` more steps of the current batch are done."""
        self._set(self._done + count)

    def batch(self) -> None:
        """The current batch is done, with all its steps."""
        self._batches += 1
        self._set(self._batches * self._steps)

    def _set(self, done: int) -> None:
        if self._report is not None and done != self._done:
            self._report(done, self._total)
        self._done = done


@contextmanager
def metered(progress: bool | Report, title: str, batches: int | None, steps: int) -> Iterator[Meter]:
    """A meter that draws a bar on stderr (True), calls ``progress``, or is silent (False).

    The bar disappears when it is done.
    """
    if progress is False:
        yield Meter()
    elif progress is not True:
        yield Meter(progress, batches, steps)
    else:
        # Only where a bar is asked for: the library itself does without a terminal.
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=None if batches is None else batches * steps)
            yield Meter(lambda done, total: bar.update(task, completed=done), batches, steps)
