"""An experiment, or one chapter of one, in a folder of its own."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from resgrow.experiments.frame.experiment import Experiment
from resgrow.experiments.frame.running import Order, run_one


def made(each: Experiment, folder: Path, seeds: int, epochs: int, *only: str, **given: Any) -> str:
    """Runs what is missing; what is said of the runs that are made. Results are ``folder``/alone/alone.*."""
    console = Console(file=io.StringIO())
    run_one(each, "alone", Order(("alone",), folder, seeds, epochs, only, **given), console)
    return console.file.getvalue()


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "alone" / "runs.jsonl").read_text().splitlines()]


def told_in(folder: Path) -> str:
    assert not list((folder / "alone").glob(".*")), "a file was not written whole"
    return (folder / "alone" / "alone.md").read_text()


def is_drawn(folder: Path) -> bool:
    return (folder / "alone" / "alone.png").read_bytes().startswith(b"\x89PNG")
