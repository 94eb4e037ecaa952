"""Run -> one HTML file that needs nothing else: the whole report of a finished one, or a page of a history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import jinja2

from resgrow.report import plots
from resgrow.report.events import Events, epochs_of, moves_of
from resgrow.report.progress import headline, progress_figures
from resgrow.report.rows import count, percent, result_rows

_BESIDE = ("loss_against_size", "depth_over_time")
_MEANING = {
    "size": "Size over training steps",
    "loss_against_size": "Loss against size",
    "widths_over_time": "Widths over training steps",
    "depth_over_time": "Depth over training steps",
    "predictions": "Predicted against actual change of loss per move",
}


def _figures(summary: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    epochs, moves = epochs_of(history), moves_of(history)
    layers = summary["layers"]
    return {
        "accuracy": plots.accuracy(epochs),
        "loss": plots.loss(epochs),
        "parameters": plots.parameters(moves, epochs, summary["dense"]["params"]),
        "predictions": plots.predictions(moves),
        "gates": plots.gates([event for event in history if event.get("kind") == "gates"]),
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
    return _template("report.html").render(
        config=config["fit"],
        versions=config["versions"],
        summary=summary,
        rows=result_rows(summary),
        headline=_headline(summary),
        moves=moves_of(history),
        figures=_figures(summary, history),
        # Gates have a figure of their widths already.
        progress=_named(history, _BESIDE if summary["method"] == "tristate" else (*_BESIDE, "widths_over_time")),
    )


def render_progress(name: str, state: str, history: Events) -> str:
    """A page of a history alone, finished or not, as HTML text: ``state`` is a sentence on how far it came."""
    return _template("progress.html").render(
        name=name,
        state=state,
        headline=headline(history),
        progress=_named(history),
        moves=moves_of(history),
    )


def _named(history: Events, chosen: Sequence[str] | None = None) -> dict[str, str]:
    """Images of `progress_figures` by what they show."""
    return {_MEANING[name]: image for name, image in progress_figures(history, chosen).items()}


def _template(name: str) -> jinja2.Template:
    """Missing values are errors, and everything is escaped."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, loader=jinja2.FunctionLoader(_source)
    )
    environment.filters.update(signed=_signed, count=count, percent=percent)
    return environment.get_template(name)


def _source(name: str) -> str:
    return files("resgrow.report").joinpath(name).read_text(encoding="utf-8")
