"""What is being made, on a terminal, and a line for each run that was."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

# Of what a run found, so many words and numbers are shown.
SHOWN = 6


class Watch:
    """Runs may be made within each other: the terminal shows all that are at work.

    Args:
        name: of the experiment.
    """

    def __init__(self, console: Console, name: str) -> None:
        self._console = console
        self._name = name
        self._tasks: list[TaskID] = []
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Watch:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, settings: Mapping[str, Any]) -> None:
        self._tasks.append(self._progress.add_task(f"{self._name}: {_words(settings)}", total=None))

    def end(self) -> None:
        self._progress.remove_task(self._tasks.pop())

    def made(self, settings: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        found = {key: value for key, value in result.items() if key not in settings and key != "seconds"}
        line = f"{self._name}: {_words(settings)}  {result['seconds']:.1f} s  {_words(found, SHOWN)}"
        self._console.print(line.rstrip(), highlight=False, markup=False, soft_wrap=True)


def _words(of: Mapping[str, Any], count: int | None = None) -> str:
    """Numbers and short words by name: "seed 0, k 2, start small"."""
    words = [f"{key} {_word(value)}" for key, value in of.items() if isinstance(value, int | float | str)]
    return ", ".join(words[:count])


def _word(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
