"""Run -> one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import jinja2

from resgrow.report import plots
from resgrow.report.rows import count, percent, result_rows

TEMPLATE = "report.html"


def _figures(summary: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    epochs = [event for event in history if event["kind"] == "epoch"]
    moves = [event for event in history if event["kind"] == "move"]
    layers = summary["layers"]
    return {
        "accuracy": plots.accuracy(epochs),
        "loss": plots.loss(epochs),
        "parameters": plots.parameters(moves, epochs, summary["dense"]["params"]),
        "predictions": plots.predictions(moves),
        "gates": plots.gates([event for event in history if event["kind"] == "gates"]),
        "widths": plots.widths(layers),
        "remaining": plots.remaining(layers),
        "latency": plots.latency(summary["dense"]["latency"], summary["sized"]["latency"]),
    }


def _headline(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Three figures for the top of the page: (figure, what it is)."""
    dense, sized = summary["dense"], summary["sized"]
    batch = next(iter(dense["latency"]))
    speed = dense["latency"][batch] / sized["latency"][batch]
    return [
        (percent(sized["params"] / dense["params"], 1), f"of {count(dense['params'])} parameters left"),
        (percent(sized["accuracy"]), f"test accuracy, {percent(dense['accuracy'])} dense"),
        (f"{speed:.2f}×", f"the dense network's speed at batch {batch}"),
    ]


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2e}"


def render(config: Mapping[str, Any], summary: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> str:
    """The report as HTML text.

    ``config``: config.json's content ("fit" and "versions"), ``summary``: summary.json's,
    ``history``: the lines of history.jsonl. Everything is escaped; figures are inlined.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters.update(signed=_signed, count=count, percent=percent)
    template = environment.from_string(files("resgrow.report").joinpath(TEMPLATE).read_text(encoding="utf-8"))
    return template.render(
        config=config["fit"],
        versions=config["versions"],
        summary=summary,
        rows=result_rows(summary),
        headline=_headline(summary),
        moves=[event for event in history if event["kind"] == "move"],
        figures=_figures(summary, history),
    )
