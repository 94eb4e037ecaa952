"""What an experiment's folder holds: NAME.md, NAME.png, tables as CSV and results.json, from the runs in runs.jsonl."""

from __future__ import annotations

import csv
import datetime
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from resgrow._files import write_atomic
from resgrow.experiments.frame.experiment import Experiment, Row, tables
from resgrow.experiments.frame.runs import Result, Runs
from resgrow.info import processor
from resgrow.report.style import empty_figure

SUMMARY = "results.json"
QUICK = "quick"


def read_summary(folder: Path) -> dict[str, Any] | None:
    """What ``results.json`` says; None where there is none."""
    path = folder / SUMMARY
    found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return found


def write(each: Experiment, name: str, runs: Runs, folder: Path, quick: bool) -> None:
    """Everything that follows from the runs. Without runs, nothing; the same runs give the same files, to the byte.

    The date and the machine are those of the last run that was made, so that reports of old runs keep theirs.
    """
    results = list(runs)
    if not results:
        return
    summary = summarise(each, name, results, quick) | _made(read_summary(folder), runs.made > 0)
    if each.draw is not None:
        write_atomic(folder / f"{name}.png", picture(each, results))
    for table, rows in summary["tables"].items():
        write_atomic(folder / f"{table}.csv", as_csv(rows))
    write_atomic(folder / f"{name}.md", page(summary))
    write_atomic(folder / SUMMARY, json.dumps(summary, indent=1, ensure_ascii=False) + "\n")


def summarise(each: Experiment, name: str, results: Sequence[Result], quick: bool) -> dict[str, Any]:
    """All that is told, but for the figure, as plain JSON."""
    seeds = sorted({run["seed"] for run in results if "seed" in run})
    return {
        "name": name,
        "title": each.title or name,
        "question": each.question,
        "control": each.control,
        "answer": each.answer(results),
        "quick": quick,
        "seeds": seeds,
        "runs": len(results),
        **{what: _total(results, what) for what in ("seconds", "steps", "samples")},
        "figure": each.draw is not None,
        "text": each.tell(results),
        "tables": {table: finite(rows) for table, rows in tables(name, each.rows(results)).items()},
    }


def _total(results: Sequence[Result], what: str) -> float:
    return sum(run[what] for run in results if isinstance(run.get(what), int | float))


def finite(rows: Sequence[Row]) -> list[Row]:
    """JSON knows no infinities, and no numbers that are none: both become null."""
    return [
        {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
        for row in rows
    ]


def _made(before: dict[str, Any] | None, now: bool) -> dict[str, Any]:
    """When and on what the runs were made."""
    known = {key: before[key] for key in ("date", "machines")} if before else {"date": "", "machines": []}
    if not now and before:
        return known
    machine = f"{processor()}, torch {torch.__version__}, threads: {torch.get_num_threads()}"
    others = [other for other in known["machines"] if other != machine]
    return {"date": datetime.date.today().isoformat(), "machines": [*others, machine]}


def page(summary: dict[str, Any], level: str = "#", figure: str | None = None) -> str:
    """The experiment as Markdown. ``figure``: where that is, by default beside the page."""
    place = figure or f"{summary['name']}.png"
    parts = [
        f"{level} {summary['title']}",
        f"**Question.** {summary['question']}",
        f"**Answer.** {summary['answer']}",
        f"**Control.** {summary['control']}" if summary["control"] else "",
        told_compute(summary),
        summary["text"],
        f"![{summary['title']}]({place})" if summary["figure"] else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def told_compute(summary: dict[str, Any]) -> str:
    """Seeds, compute, date and machine, and how to do it again."""
    seeds = f", seeds {', '.join(map(str, summary['seeds']))}" if summary["seeds"] else ""
    counts = "".join(f", {summary[what]:,} {what}" for what in ("steps", "samples") if summary[what])
    command = f"resgrow experiment {summary['name']}{' --quick' if summary['quick'] else ''}"
    return (
        f"**Compute.** {summary['runs']} runs{seeds}: {duration(summary['seconds'])}{counts} in all. "
        f"{summary['date']}, {'; '.join(summary['machines'])}. `{command}`"
    )


def duration(seconds: float) -> str:
    """ "48 seconds", "12 minutes" or "3.4 hours"."""
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def as_csv(rows: Sequence[Row]) -> str:
    """Columns in the order in which rows bring them; what a row lacks stays empty."""
    file = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def picture(each: Experiment, results: Sequence[Result]) -> bytes:
    """The figure as PNG; the same results give the same bytes."""
    assert each.draw is not None
    with empty_figure(9, 3.4) as figure:
        each.draw(figure, results)
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=120, metadata={"Software": None})
    return image.getvalue()
