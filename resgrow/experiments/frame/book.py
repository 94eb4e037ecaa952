"""One page of all experiments, from what their folders hold and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from resgrow._files import write_atomic
from resgrow.experiments.frame.folder import duration, page, read_summary
from resgrow.experiments.frame.registry import REGISTRY, experiment


def write_book(out: Path, path: Path) -> None:
    """Writes ``path``, and each figure as NAME.png into a folder beside it of its name without ending.

    The same results give the same page. Raises OSError: ``path`` cannot be written.
    """
    found = {name: summary for name in REGISTRY if (summary := read_summary(out / name)) is not None}
    figures = path.with_suffix("")
    for name, summary in found.items():
        if summary["figure"]:
            figures.mkdir(parents=True, exist_ok=True)
            write_atomic(figures / f"{name}.png", (out / name / f"{name}.png").read_bytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, _text(found, figures.name))


def _text(found: dict[str, dict[str, Any]], figures: str) -> str:
    seconds = sum(summary["seconds"] for summary in found.values())
    parts = [
        "# Results",
        "Each experiment asks one question of this package and answers it from its runs, also where the answer is no. "
        "`make results` runs what is missing and writes this page; `resgrow experiment NAME` runs one.",
    ]
    if found:
        answers = [f"* [{s['title']}](#{_anchor(s['title'])}): {s['answer']}" for s in found.values()]
        parts += [f"{len(found)} experiments, {duration(seconds)} of computing.", "\n".join(answers)]
    parts += [page(each, "##", f"{figures}/{name}.png").rstrip() for name, each in found.items()]
    missing = [name for name in REGISTRY if name not in found]
    if missing:
        lines = [f"* `{name}`: {experiment(name).question}" for name in missing]
        parts += ["## Not run yet", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def _anchor(title: str) -> str:
    """As GitHub makes it of a heading."""
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")
