"""``resgrow report``: what a run or a controller's log tells, drawn, at any time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from resgrow._errors import InputError
from resgrow._files import write_atomic
from resgrow._lines import read_lines
from resgrow.experiments.run_folder import CONFIG, HISTORY, REPORT, STATUS, SUMMARY
from resgrow.report import progress_png, render, render_progress
from resgrow.report.events import last_step, moves_of

PICTURE = "report.png"


def run(path: Path, out: Path | None, console: Console) -> tuple[Path, Path]:
    """Draws ``path``, a run folder of `resgrow fit` or a file of JSON lines, and returns the page and the picture.

    They lie in the folder, or beside the file under its name; in ``out`` where that is given. A run that is at work, or
    was killed, is drawn as far as it came; a finished one gets the report that `resgrow fit` wrote anew.

    Raises:
        InputError: there is no history, it is damaged, or ``out`` is not a folder. Nothing is written.
        OSError: a file cannot be read or written.
    """
    history = _history(path)
    if out is not None and not out.is_dir():
        raise InputError(f"report: --out must be an existing folder (got {out}); make it, or leave --out out")
    name = path.resolve().name
    if path.is_dir():
        page, picture = (out or path) / REPORT, (out or path) / PICTURE
        text = _finished(path, history) or render_progress(name, _state(path, history), history)
    else:
        page, picture = ((out or path.parent) / f"{path.stem}{ending}" for ending in (".html", ".png"))
        text = render_progress(name, _reached(history), history)
    image = progress_png(history, name)
    write_atomic(page, text)
    write_atomic(picture, image)
    console.print(f"report: {page} and {picture}", soft_wrap=True, highlight=False, markup=False)
    return page, picture


def _history(path: Path) -> list[dict[str, Any]]:
    file = path / HISTORY if path.is_dir() else path
    if not file.is_file():
        raise InputError(
            f"report: RUN must be a run folder of resgrow fit, or a controller's file of JSON lines (got {path}, "
            f"{f'without {HISTORY}' if path.is_dir() else 'which does not exist'}); give one of these"
        )
    try:
        history = read_lines(file)
        if any("event" not in event and "kind" not in event for event in history):
            raise ValueError(f"every line must be an event (got others in {file})")
        moves_of(history)
    except ValueError as error:
        raise InputError(f"report: {error}; give a history that resgrow wrote") from error
    return history


def _finished(path: Path, history: list[dict[str, Any]]) -> str | None:
    """The whole report, where the run came that far."""
    config, summary = _json(path / CONFIG), _json(path / SUMMARY)
    return None if config is None or summary is None else render(config, summary, history)


def _state(path: Path, history: list[dict[str, Any]]) -> str:
    status = _json(path / STATUS) or {}
    told = f"State: {status['state']} ({status['message']})." if {"state", "message"} <= status.keys() else ""
    return f"{told} {_reached(history)}".strip()


def _reached(history: list[dict[str, Any]]) -> str:
    step = last_step(history)
    return f"The history reaches step {step:,}." if step else "No step has been made yet."


def _json(path: Path) -> dict[str, Any] | None:
    """A file that is replaced as a whole, so that it is whole if it is there."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"report: {path} must be JSON that resgrow wrote (got {error}); remove it") from error
    return found
