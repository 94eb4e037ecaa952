"""Figures of a history alone, finished or not: size, widths, depth and loss over the steps of one training."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from resgrow.report.events import Events, depth_of, last_step, moves_of, sizes_of, start_of, widths_of
from resgrow.report.plots import draw_predictions
from resgrow.report.style import DENSE, QUIET, SIZED, UNDONE, data_uri, empty_figure, plot

_DPI = 150
# More would not be told apart.
_LAYERS, _POINTS = 10, 2000
_WORDS = {"params": "parameters", "macs": "multiply-accumulates", "latency_ms": "latency (ms)"}


def draw_cost(axes: Axes, history: Events) -> None:
    """Each cost over steps, as a share of the first that is known."""
    start = start_of(history)
    sizes = [*([{"step": 0, "cost": start}] if start else []), *sizes_of(history)]
    names = list(dict.fromkeys(name for size in sizes for name in size["cost"]))
    for name, style in zip(names, cycle(("-", "--", ":")), strict=False):  # costs often fall alike
        known = [(size["step"], size["cost"][name]) for size in sizes if name in size["cost"]]
        steps, values = zip(*thinned(known), strict=True)
        if values[0]:
            label = f"{_WORDS.get(name, name)}: {values[0]:,.6g} → {values[-1]:,.6g}"
            axes.step(steps, [value / values[0] for value in values], where="post", linestyle=style, label=label)
    axes.set(title="Size", xlabel="training step", ylabel="share of the start")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    _legend(axes, bool(names))


def draw_widths_over_time(axes: Axes, history: Events) -> None:
    """Units of each layer or group over steps: of those that changed most; the others' sum is one more line."""
    steps, widths, absolute = widths_of(history)
    steps, widths = [*steps, last_step(history)], {name: [*values, values[-1]] for name, values in widths.items()}
    ordered = sorted(widths, key=lambda name: -(max(widths[name]) - min(widths[name])))
    for name in ordered[:_LAYERS]:
        axes.step(steps, widths[name], where="post", label=name)
    others = ordered[_LAYERS:]
    if others:
        rest = [sum(values) for values in zip(*(widths[name] for name in others), strict=True)]
        axes.step(steps, rest, where="post", color=QUIET, linestyle="--", label=f"{len(others)} others")
    axes.set(title="Widths", xlabel="training step", ylabel="units" if absolute else "units that came or went")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(axes, bool(widths), title="layer", columns=1 + len(ordered[:_LAYERS]) // 6)


def draw_depth(axes: Axes, history: Events) -> None:
    """Residual blocks, or layers that bend, over steps, against the start."""
    steps, depth = depth_of(history)
    axes.step([*steps, last_step(history)], [*depth, depth[-1]], where="post", color=SIZED)
    axes.set(title="Depth", xlabel="training step", ylabel="layers or blocks that came or went")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def draw_loss_against_size(axes: Axes, history: Events) -> None:
    """Loss over the number of parameters: along training, and before and after each move that was kept."""
    sizes = [size for size in sizes_of(history) if size["loss"] is not None and "params" in size["cost"]]
    if sizes:
        points = thinned([(size["cost"]["params"], size["loss"]) for size in sizes])
        axes.plot(*zip(*points, strict=True), ".", color=DENSE, alpha=0.5, markersize=4, label="training")
    kept = [move for move in moves_of(history) if move["accepted"] and "params" in move["cost"]]
    kept = [move for move in kept if move.get("loss_after") is not None]
    if kept:
        points = [(move["cost"]["params"], move["loss_after"]) for move in kept]
        axes.plot(*zip(*points, strict=True), "-o", color=SIZED, markersize=4, linewidth=1, label="after a move")
        last = points[-1]
        axes.plot(*last, "o", color=UNDONE, markersize=6, label="after the last one")
    losses = [*(size["loss"] for size in sizes), *(move["loss_after"] for move in kept)]
    if losses and min(losses) > 0:
        axes.set_yscale("log")
    axes.set(title="Loss against size", xlabel="parameters", ylabel="loss (nats)")
    axes.xaxis.set_major_formatter(EngFormatter())
    _legend(axes, bool(losses))


def _draw_predictions(axes: Axes, history: Events) -> None:
    draw_predictions(axes, moves_of(history))


_PANELS: dict[str, Callable[[Axes, Events], None]] = {
    "size": draw_cost,
    "loss_against_size": draw_loss_against_size,
    "widths_over_time": draw_widths_over_time,
    "depth_over_time": draw_depth,
    "predictions": _draw_predictions,
}


def panels(history: Events) -> dict[str, Callable[[Axes, Events], None]]:
    """The drawings that a history has something for, by name."""
    moves = moves_of(history)
    told = {
        "size": bool(sizes_of(history)),
        "loss_against_size": any(size["loss"] is not None for size in sizes_of(history)) or bool(moves),
        "widths_over_time": bool(widths_of(history)[0]),
        "depth_over_time": any(depth_of(history)[1]),
        "predictions": bool(moves),
    }
    return {name: draw for name, draw in _PANELS.items() if told[name]}


def progress_figures(history: Events, names: Sequence[str] | None = None) -> dict[str, str]:
    """Images as data URIs, of those panels (of ``names``) that the history has something for."""
    found = {}
    for name, draw in panels(history).items():
        if names is None or name in names:
            with plot() as (figure, axes):
                draw(axes, history)
                found[name] = data_uri(figure)
    return found


def progress_png(history: Events, title: str = "") -> bytes:
    """All panels in one image."""
    chosen = list(panels(history).values())
    rows = max(1, (len(chosen) + 1) // 2)
    with empty_figure(11.4, 3.6 * rows + 0.3) as figure:
        figure.suptitle(title or "no moves yet")
        for place, draw in enumerate(chosen, start=1):
            draw(figure.add_subplot(rows, 2, place), history)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def thinned(points: Sequence[Any]) -> list[Any]:
    """At most a few thousand, evenly, the first and the last among them."""
    if len(points) <= _POINTS:
        return list(points)
    last = len(points) - 1
    return [points[round(place * last / (_POINTS - 1))] for place in range(_POINTS)]


def headline(history: Events) -> list[tuple[str, str]]:
    """Figures for the top of a page: (figure, what it is)."""
    moves, sizes, start = moves_of(history), sizes_of(history), start_of(history)
    kept = sum(move["accepted"] for move in moves)
    found = [(f"{kept} kept", f"and {len(moves) - kept} undone, of {len(moves)} moves")]
    if sizes:
        found.append((f"{max(size['step'] for size in sizes):,}", "training steps so far"))
        cost = _latest(sizes)
        for name, value in cost.items():
            share = f", {100 * value / start[name]:.1f} % of the start" if start.get(name) else ""
            found.append((f"{value:,.6g}", f"{_WORDS.get(name, name)}{share}"))
    return found


def _latest(sizes: Events) -> dict[str, float]:
    latest: dict[str, float] = {}
    for size in sizes:
        latest.update(size["cost"])
    return latest


def _legend(axes: Axes, told: bool, title: str | None = None, columns: int = 1) -> None:
    if told:
        axes.legend(fontsize=8, title=title, ncols=columns)
