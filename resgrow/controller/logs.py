"""Where a controller's moves and the model's size are told: JSON lines, TensorBoard, or a `Log` of your own."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from resgrow._files import write_atomic
from resgrow._lines import line, read_lines
from resgrow.controller.history import Move

# Numbers of a move that are drawn over steps, by the tag they get.
_CURVES = {
    "move/predicted": "predicted",
    "move/actual": "actual",
    "move/ratio": "ratio",
    "move/fraction": "fraction",
    "move/damping": "damping",
    "move/price": "price",
    "loss/before": "loss_before",
    "loss/after": "loss_after",
}


class Log(Protocol):
    """What a controller tells, in the order in which it happens.

    It is called when a move is complete: kept, or undone to the last bit. What it raises ends ``Controller.step`` with
    that error, and model, optimizer and history are then as they would be without it.
    """

    def move(self, move: Move) -> None:
        """A move was tried; ``move.accepted`` tells whether it was kept."""

    def size(self, step: int, cost: Mapping[str, float], loss: float | None) -> None:
        """What the model costs after ``step``, and the mean loss on held data before its moves, where it is known."""

    def close(self) -> None:
        """Nothing more comes. A second call does nothing."""


def rewind(logs: Iterable[Log], step: int, history: Sequence[Move] = ()) -> None:
    """Training goes on behind ``step``, before which ``history`` happened: what came later leaves those logs that have
    a ``rewind(step, history)``."""
    for log in logs:
        forget = getattr(log, "rewind", None)
        if forget is not None:
            forget(step, history)


def scalars(move: Move) -> dict[str, float]:
    """The numbers of a move that make sense as curves over steps, by tag; those that are not known are left out."""
    numbers = asdict(move)
    found = {tag: numbers.get(name) for tag, name in _CURVES.items()}
    known = {tag: float(value) for tag, value in found.items() if value is not None}
    return {**known, "move/accepted": float(move.accepted)}


def describe(move: Move) -> str:
    """One line for people."""
    places = ", ".join(f"{name} {count:,}" for name, count in move.where.items())
    verdict = "kept" if move.accepted else "undone"
    return (
        f"step {move.step}: {move.kind} {move.unit}"
        f"{f' ({places})' if places else ''}, predicted {_signed(move.predicted)}, actual {_signed(move.actual)}, "
        f"{verdict}"
    )


def _signed(value: float | None) -> str:
    return "unknown" if value is None else f"{value:+.2e}"


class JsonLines:
    """A file of JSON objects, one per line, written at once: ``{"event": "move", ...}`` with the fields of `Move`, and
    ``{"event": "size", "step": ..., "cost": {...}, "loss": ...}``. Numbers that are not finite are null.

    A file that exists is continued; a last line that a kill cut off is removed first. `resgrow report FILE` draws it.

    Args:
        path: the file; its folder must exist.
        every: sizes are written for steps that are multiples of it, moves always.

    Raises:
        ValueError: ``every`` is not positive, or the file holds something else. It is left as it was.
        OSError: the file cannot be written. When a line does not fit on the disk, the part of it that did is removed.
    """

    def __init__(self, path: str | Path, every: int = 1) -> None:
        if every < 1:
            raise ValueError(f"JsonLines: every must be at least 1 (got {every})")
        self.path, self.every = Path(path), every
        self._file: int | None = None
        whole = _whole(self.path)
        self._file = _open(self.path)
        os.ftruncate(self._file, whole)

    def move(self, move: Move) -> None:
        """Write a move."""
        self._write({"event": "move", **asdict(move)})

    def size(self, step: int, cost: Mapping[str, float], loss: float | None) -> None:
        """Write a size, every so often."""
        if step % self.every == 0:
            self._write({"event": "size", "step": step, "cost": dict(cost), "loss": loss})

    def rewind(self, step: int, history: Sequence[Move] = ()) -> None:
        """Remove the lines of later steps than ``step``; the file is replaced as a whole."""
        self._handle()
        kept = [event for event in read_lines(self.path) if event.get("step", 0) <= step]
        write_atomic(self.path, b"".join(line(event) for event in kept))
        self.close()
        self._file = _open(self.path)

    def close(self) -> None:
        """Close the file; what is in it is complete at any time."""
        if self._file is not None:
            os.close(self._file)
        self._file = None

    def _handle(self) -> int:
        if self._file is None:
            raise ValueError(f"JsonLines: {self.path} must be open (it was closed); make a new one, which continues it")
        return self._file

    def _write(self, event: Mapping[str, Any]) -> None:
        file, data = self._handle(), line(event)
        before = os.fstat(file).st_size
        try:
            written = os.write(file, data)
        except OSError:
            os.ftruncate(file, before)
            raise
        if written != len(data):
            os.ftruncate(file, before)
            raise OSError(
                f"JsonLines: {self.path} must take a whole line (got {written} of {len(data)} bytes written); free "
                "space on the disk"
            )


class TensorBoard:
    """Curves and texts for TensorBoard, under ``cost/``, ``loss/``, ``move/`` and ``widths/``.

    ``widths/NAME`` is the number of units of a layer or group, if ``widths`` tells where it starts, and otherwise how
    many came (above 0) or went (below 0).

    Args:
        writer_or_folder: a ``SummaryWriter``, which stays yours to close, or the folder for a new one.
        widths: ``{layer or group name: units}`` at the start.

    Raises:
        ImportError: tensorboard is not installed.
    """

    def __init__(self, writer_or_folder: Any, widths: Mapping[str, int] | None = None) -> None:
        self._folder = os.fspath(writer_or_folder) if isinstance(writer_or_folder, (str, os.PathLike)) else None
        self._writer = writer_or_folder if self._folder is None else _summary_writer(self._folder)
        self._start = dict(widths or {})
        self._widths = dict(self._start)

    def move(self, move: Move) -> None:
        """Write a move's numbers, its text and, if it was kept, the widths after it."""
        for tag, value in scalars(move).items():
            self._writer.add_scalar(tag, value, move.step)
        self._writer.add_text("moves", describe(move), move.step)
        for name, width in self._count(move).items():
            self._writer.add_scalar(f"widths/{name}", width, move.step)
        self._writer.flush()

    def size(self, step: int, cost: Mapping[str, float], loss: float | None) -> None:
        """Write what the model costs."""
        for name, value in cost.items():
            self._writer.add_scalar(f"cost/{name}", value, step)
        if loss is not None:
            self._writer.add_scalar("loss/training", loss, step)

    def rewind(self, step: int, history: Sequence[Move] = ()) -> None:
        """Hide what came after ``step``, in a folder of its own (a writer that was given wants its ``purge_step``), and
        take the widths from ``history``."""
        if self._folder is not None:
            self._writer.close()
            self._writer = _summary_writer(self._folder, purge_step=step + 1)
        self._widths = dict(self._start)
        for move in history:
            self._count(move)

    def close(self) -> None:
        """Flush, and close the writer if it was made here."""
        if self._folder is None:
            self._writer.flush()
        else:
            self._writer.close()

    def _count(self, move: Move) -> dict[str, int]:
        """The widths that a move changes, after it."""
        if not move.accepted:
            return {}
        for name, count in move.where.items():
            self._widths[name] = self._widths.get(name, 0) + (count if move.grows else -count)
        return {name: self._widths[name] for name in move.where}


def _summary_writer(folder: str, purge_step: int | None = None) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            f"TensorBoard: needs the package tensorboard (got {error}); pip install 'resgrow[logs]', or write JsonLines"
        ) from error
    return SummaryWriter(folder, purge_step=purge_step)


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)


def _whole(path: Path) -> int:
    """Bytes of ``path`` up to the end of its last whole line. ValueError where these lines are not a `JsonLines`'."""
    try:
        data = path.read_bytes()
        end = data.rfind(b"\n") + 1
        known = all(event.get("event") in ("move", "size") for event in read_lines(path))
        begun = data[end:].startswith(b'{"event"'[: len(data) - end])
        if known and begun:
            return end
        found = "other lines"
    except FileNotFoundError:
        return 0
    except ValueError as error:
        found = str(error)
    raise ValueError(f"JsonLines: {path} must be new, or written by JsonLines (got {found}); choose another file")
