"""Live progress: two lines that move on a terminal, one line per epoch elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from resgrow.experiments.training import Epoch
from resgrow.report.events import cost_of
from resgrow.report.rows import Row, count

NAMES = {"dense": "dense baseline", "sized": "self-sizing twin"}


def describe_move(move: Mapping[str, Any]) -> str:
    """The last move's predicted against its actual change of the loss."""
    verdict = "" if move["accepted"] else ", undone"
    return f"predicted {move['predicted']:+.2e}, actual {move['actual']:+.2e}{verdict}"


class Display(Protocol):
    """What the run tells whoever watches."""

    def __enter__(self) -> Display: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def begin(self, role: str, steps: int, epochs: int, params: int) -> None: ...
    def step(self, step: int, epoch: int, loss: float) -> None: ...
    def epoch(self, record: Epoch) -> None: ...
    def move(self, move: Mapping[str, Any]) -> None: ...
    def say(self, text: str) -> None: ...


class PlainDisplay:
    """One line per epoch, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._epochs = 0
        self._params = 0
        self._move: str | None = None

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def begin(self, role: str, steps: int, epochs: int, params: int) -> None:
        self._epochs, self._params, self._move = epochs, params, None
        self.say(f"{NAMES[role]}: {count(params)} parameters, {epochs} epochs, {steps} steps")

    def step(self, step: int, epoch: int, loss: float) -> None:
        return None

    def epoch(self, record: Epoch) -> None:
        line = (
            f"{record.role} {record.epoch:>3}/{self._epochs}  loss {record.loss:.4f}  "
            f"test accuracy {100 * record.test_accuracy:.2f} %"
        )
        if record.role == "sized":
            line += f"  parameters {count(record.params)} ({100 * record.params / self._params:.1f} %)"
            if self._move is not None:
                line += f"  last move: {self._move}"
        self.say(line)

    def move(self, move: Mapping[str, Any]) -> None:
        self._move = describe_move(move)

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)


class LiveDisplay:
    """A bar per network and a panel with the latest figures."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("[bold]{task.description:<17}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeRemainingColumn(compact=True),
            console=console,
        )
        self._task: TaskID | None = None
        self._figures: dict[str, str] = {}
        self._params = 0
        # Last: it renders at once.
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=8)

    def __enter__(self) -> LiveDisplay:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def _render(self) -> Group:
        grid = Table.grid(padding=(0, 2))
        for name, value in list(self._figures.items()):  # a copy: Live renders in a thread of its own
            grid.add_row(Text(f"  {name}", style="dim"), value)
        return Group(self._bars, grid)

    def begin(self, role: str, steps: int, epochs: int, params: int) -> None:
        self._task = self._bars.add_task(NAMES[role], total=steps)
        self._params = params
        self._figures = {"parameters": count(params)}

    def step(self, step: int, epoch: int, loss: float) -> None:
        if self._task is not None:
            self._bars.update(self._task, completed=step)
        self._figures["loss"] = f"{loss:.4f} (epoch {epoch})"

    def epoch(self, record: Epoch) -> None:
        self._figures["test accuracy"] = f"{100 * record.test_accuracy:.2f} %"

    def move(self, move: Mapping[str, Any]) -> None:
        params = cost_of(move)["params"]
        self._figures["parameters"] = f"{count(params)} ({100 * params / self._params:.1f} % left)"
        self._figures["last move, change of loss"] = describe_move(move)

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False)


def make_display(console: Console) -> Display:
    """Live on a terminal, plain lines elsewhere."""
    return LiveDisplay(console) if console.is_terminal else PlainDisplay(console)


def result_table(rows: list[Row], title: str) -> Table:
    """The final table for the terminal."""
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("")
    table.add_column("dense", justify="right")
    table.add_column("sized", justify="right", style="bold")
    table.add_column("change", justify="right")
    for row in rows:
        colour = {True: "green", False: "yellow", None: ""}[row.better]
        table.add_row(row.label, row.dense, row.sized, Text(row.change, style=colour))
    return table
