"""The folder of one run: what it holds says at any moment how far the run came.

status.json   state (running, finished, interrupted, failed), message, pid, started, updated; written first
config.json   what the run was told, and the versions it ran with
history.jsonl one JSON object per line: epochs of both networks and moves of the controller
summary.json, model.safetensors, model.json, report.html   at the end

Every file but the history is replaced as a whole; history lines are appended one ``write`` each.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from resgrow._errors import RunError
from resgrow._files import write_atomic
from resgrow._lines import line, plain, read_lines
from resgrow.experiments.interrupts import Interrupts

STATUS = "status.json"
CONFIG = "config.json"
HISTORY = "history.jsonl"
SUMMARY = "summary.json"
REPORT = "report.html"
MODEL = "model.safetensors"
UNFINISHED = "unfinished: the process is still at work, or it was killed before it could say so"


def default_folder(data: str, model: str) -> Path:
    """runs/<data>-<model>-<timestamp>."""
    name = Path(data).name or "data"
    return Path("runs") / f"{name}-{model}-{datetime.now():%Y%m%d-%H%M%S}"


def now() -> str:
    """Local time with offset, to the second."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The lines of ``folder``'s history, oldest first."""
    return read_lines(folder / HISTORY)


class RunFolder:
    """Creates a run folder and keeps it truthful. Raises RunError where that cannot be done."""

    def __init__(self, path: Path, config: Mapping[str, Any], interrupts: Interrupts | None = None) -> None:
        self.path = path
        self._interrupts = interrupts or Interrupts()
        self._started = now()
        holds = [name for name in (STATUS, CONFIG, HISTORY, SUMMARY, MODEL, REPORT) if (path / name).exists()]
        if holds:
            raise RunError(
                f"fit: the run folder must not hold a run yet (got {path} with {holds[0]}); "
                "choose another with --out, or remove it"
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
            self.mark("running", UNFINISHED)
            self.write_json(CONFIG, config)
            self._history = os.open(path / HISTORY, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise RunError(
                f"fit: the run folder must be writable (got {error.strerror or error} for {path}); "
                "choose another with --out"
            ) from error

    def write_text(self, name: str, text: str) -> None:
        with self._interrupts.held():
            write_atomic(self.path / name, text)

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        self.write_text(name, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")

    def mark(self, state: str, message: str) -> None:
        """Rewrites status.json."""
        status = {
            "state": state,
            "message": message,
            "pid": os.getpid(),
            "started": self._started,
            "updated": now(),
        }
        self.write_json(STATUS, status)

    def record(self, event: Mapping[str, Any]) -> None:
        """Appends one line to the history, in one write: a kill leaves whole lines only."""
        data = line(event)
        with self._interrupts.held():
            written = os.write(self._history, data)
        if written != len(data):
            raise RunError(
                f"fit: {self.path / HISTORY} must take a whole line (got {written} of {len(data)} bytes written); "
                "free space on the disk"
            )

    def close(self) -> None:
        os.close(self._history)
