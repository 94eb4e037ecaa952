"""The report's figures. Each takes plain dictionaries, moves as `normal_move` makes them, and returns a data URI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from resgrow.report.events import Events
from resgrow.report.rows import duration
from resgrow.report.style import DENSE, INK, QUIET, SIZED, UNDONE, data_uri, plot

COLOURS = {"dense": DENSE, "sized": SIZED}


def _series(epochs: Events, role: str, key: str) -> tuple[list[int], list[float]]:
    rows = [row for row in epochs if row["role"] == role]
    return [row["epoch"] for row in rows], [row[key] for row in rows]


def _lines(axes: Axes, epochs: Events, key: str, label: str, style: str = "-", factor: float = 1.0) -> None:
    for role, colour in COLOURS.items():
        x, y = _series(epochs, role, key)
        alpha = 1.0 if style == "-" else 0.75
        axes.plot(x, factor * np.array(y, float), style, color=colour, alpha=alpha, label=f"{role}, {label}")


def loss(epochs: Events) -> str:
    """Training and test loss over epochs, both networks, logarithmic."""
    with plot() as (figure, axes):
        _lines(axes, epochs, "test_loss", "test")
        _lines(axes, epochs, "loss", "training", "--")
        axes.set(title="Loss", xlabel="epoch", ylabel="cross-entropy (nats per image)", yscale="log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.legend(ncols=2, fontsize=8)
        return data_uri(figure)


def accuracy(epochs: Events) -> str:
    """Test accuracy over epochs, from the level at which the interesting part begins."""
    with plot() as (figure, axes):
        _lines(axes, epochs, "test_accuracy", "test", factor=100)
        values = [100 * row["test_accuracy"] for row in epochs]
        if values:
            low, high = np.percentile(values, 15), max(values)
            margin = max(0.1, 0.25 * (high - low))
            axes.set_ylim(max(0.0, low - margin), min(100 + margin / 4, high + margin))
        axes.set(title="Accuracy", xlabel="epoch", ylabel="test accuracy (%)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="lower right", fontsize=8)
        return data_uri(figure)


def parameters(moves: Events, epochs: Events, dense: int) -> str:
    """Parameters left over the twin's training steps."""
    with plot() as (figure, axes):
        accepted = [move for move in moves if move["accepted"]]
        last = max((row["step"] for row in epochs if row["role"] == "sized"), default=0)
        steps = [0, *(move["step"] for move in accepted)]
        left = [dense, *(move["cost"]["params"] for move in accepted)]
        axes.step([*steps, max(last, steps[-1])], [*left, left[-1]], where="post", color=SIZED)
        axes.fill_between([*steps, max(last, steps[-1])], [*left, left[-1]], step="post", color=SIZED, alpha=0.12)
        axes.axhline(dense, color=DENSE, linestyle="--", linewidth=1.2)
        axes.annotate("dense", (last, dense), (0, 3), textcoords="offset points", ha="right", color=DENSE)
        end = f"{left[-1]:,} left"
        axes.annotate(end, (last, left[-1]), (0, 4), textcoords="offset points", ha="right", color=SIZED)
        axes.set(title="Parameters left", xlabel="training step of the twin", ylabel="parameters")
        axes.set_ylim(0, dense * 1.12)
        axes.yaxis.set_major_formatter(EngFormatter())
        return data_uri(figure)


def _floor(values: Sequence[float]) -> float:
    """Where the linear part around zero ends: a hundredth of the median size, so that signs survive."""
    sizes = [abs(value) for value in values if value]
    return float(np.median(sizes)) / 100 if sizes else 1e-6


def _scale(values: Sequence[float], floor: float) -> dict[str, Any]:
    """Logarithmic, with a linear stretch around zero only where there is something at or below it."""
    if not values:
        return {"value": "linear"}
    if all(value > 0 for value in values):
        return {"value": "log"}
    return {"value": "symlog", "linthresh": floor}


# One marker per kind of move.
_MARKERS = {"shrink": "o", "regrow": "^", "widen": "D", "deepen": "s"}


def draw_predictions(axes: Axes, moves: Events) -> None:
    """Predicted against actual change of the loss per move, by kind, with the line where they agree."""
    known = [move for move in moves if move["predicted"] is not None and move["actual"] is not None]
    values = [move[key] for move in known for key in ("predicted", "actual")]
    kinds = [kind for kind in _MARKERS if any(move["kind"] == kind for move in known)]
    for kind in kinds:
        for accepted, colour, word in ((True, SIZED, "kept"), (False, UNDONE, "undone")):
            chosen = [move for move in known if move["kind"] == kind and move["accepted"] is accepted]
            if not chosen:
                continue
            axes.scatter(
                [move["predicted"] for move in chosen],
                [move["actual"] for move in chosen],
                s=34,
                color=colour,
                marker=_MARKERS[kind],
                alpha=0.75,
                linewidths=0,
                label=f"{word if len(kinds) == 1 else f'{kind}, {word}'} ({len(chosen)})",
            )
    axes.set_xscale(**_scale([move["predicted"] for move in known], _floor(values)))
    axes.set_yscale(**_scale([move["actual"] for move in known], _floor(values)))
    predicted = sorted(move["predicted"] for move in known)
    axes.plot(predicted, predicted, color=INK, linewidth=1, linestyle=":", label="as predicted")
    axes.set(
        title="What each move was to cost, and did",
        xlabel="predicted change of loss (nats)",
        ylabel="actual change of loss (nats)",
    )
    axes.tick_params(axis="x", rotation=30)
    if known:
        axes.legend(fontsize=8)


def predictions(moves: Events) -> str:
    """`draw_predictions` as an image."""
    with plot() as (figure, axes):
        draw_predictions(axes, moves)
        return data_uri(figure)


def gates(events: Events) -> str:
    """Open channels of each gated layer over training steps."""
    with plot() as (figure, axes):
        names = list(events[0]["widths"]) if events else []
        for name in names:
            steps, widths = [event["step"] for event in events], [event["widths"][name] for event in events]
            axes.plot(steps, widths, label=name)
        axes.set(title="Open channels", xlabel="training step", ylabel="channels")
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        if names:
            axes.legend(title="layer", fontsize=8, ncols=1 + len(names) // 8)
        return data_uri(figure)


def _layer_names(layers: Events) -> list[str]:
    """Numbers, as in a Sequential, say little alone: the layer's kind goes with them."""
    return [f"{row['name']} · {row['kind']}" if row["name"].isdigit() else row["name"] for row in layers]


def widths(layers: Events) -> str:
    """Output channels per layer, before and after."""
    height = max(2.4, 0.32 * len(layers) + 1.1)
    with plot(5.6, height) as (figure, axes):
        rows = np.arange(len(layers))
        axes.barh(rows, [row["dense_width"] for row in layers], 0.72, color=DENSE, alpha=0.35, label="dense")
        axes.barh(rows, [row["sized_width"] for row in layers], 0.72, color=SIZED, label="sized")
        for y, row in zip(rows, layers, strict=True):
            text = f"{row['sized_width']} of {row['dense_width']}"
            axes.annotate(
                text, (row["dense_width"], y), (4, 0), textcoords="offset points", va="center", color=QUIET, size=8
            )
        axes.set_yticks(rows, _layer_names(layers))
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.grid(axis="y", visible=False)
        axes.set(title="Width of each layer", xlabel="output channels or neurons")
        axes.legend(fontsize=8, loc="lower right")
        return data_uri(figure)


def remaining(layers: Events) -> str:
    """Share of each layer's parameters that is left."""
    height = max(2.4, 0.32 * len(layers) + 1.1)
    with plot(5.6, height) as (figure, axes):
        rows = np.arange(len(layers))
        shares = [row["sized_params"] / row["dense_params"] for row in layers]
        axes.barh(rows, np.ones(len(layers)), 0.72, color=DENSE, alpha=0.2)
        axes.barh(rows, shares, 0.72, color=SIZED)
        for y, share, row in zip(rows, shares, layers, strict=True):
            inside = share > 0.6
            axes.annotate(
                f"{100 * share:.1f} %  ({row['sized_params']:,})",
                (share, y),
                (-4 if inside else 4, 0),
                textcoords="offset points",
                ha="right" if inside else "left",
                va="center",
                color="white" if inside else INK,
                size=8,
            )
        axes.set_yticks(rows, _layer_names(layers))
        axes.invert_yaxis()
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlim(0, 1)
        axes.grid(axis="y", visible=False)
        axes.set(title="Parameters left in each layer", xlabel="share of the layer's parameters")
        return data_uri(figure)


def latency(dense: Mapping[str, float], sized: Mapping[str, float]) -> str:
    """Median time of a forward pass, one panel per batch size, each from zero."""
    with plot(11.4, 2.0) as (figure, first):
        first.remove()
        panels = figure.subplots(1, len(dense), squeeze=False)[0]
        for axes, batch in zip(panels, dense, strict=True):
            seconds = [dense[batch], sized[batch]]
            bars = axes.barh(["dense", "sized"], [1e3 * value for value in seconds], 0.6, color=[DENSE, SIZED])
            axes.bar_label(bars, [duration(value) for value in seconds], padding=4, size=8)
            axes.set(title=f"Latency, batch {batch}", xlabel="median time of a forward pass (ms)")
            axes.invert_yaxis()
            axes.margins(x=0.15)
            axes.grid(axis="y", visible=False)
        return data_uri(figure)
