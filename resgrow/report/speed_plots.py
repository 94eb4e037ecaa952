"""Figures of what block sparsity brings: speed-up against density, and layer by layer. PNG images."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from resgrow.report.style import DENSE, INK, QUIET, SIZED, UNDONE, plot

_COLOURS = (SIZED, UNDONE, "#2563eb", "#7c3aed", "#b45309")
_DPI = 150
# Density, and whether it lies between measured ones.
BreakEven = tuple[float, bool] | None


class _Point(Protocol):
    """The part of a measurement that is drawn."""

    density: float
    speedup: dict[str, float]

    def layers_speedup(self) -> float | None: ...


def speedup_png(groups: Mapping[str, Sequence[Any]], ends: Mapping[str, BreakEven], title: str) -> bytes:
    """Speed-up against density per block size, end to end and of the layers alone, with the ideal, 1 / density.

    Args:
        groups: ``{block size: measurements}``, each with ``density``, ``speedup`` and ``layers_speedup()``.
        ends: ``{block size: density of break-even}``; None where it is not known.
        title: what was measured.
    """
    with plot(6.4, 4.2) as (figure, axes):
        lowest = min(point.density for group in groups.values() for point in group)
        densities = np.geomspace(min(lowest, 0.9), 1, 50)
        axes.plot(densities, 1 / densities, color=INK, linestyle=":", linewidth=1.2, label="ideal: 1 / density")
        axes.axhline(1, color=DENSE, linestyle="--", linewidth=1.2, label="dense")
        for line, (block, group) in enumerate(groups.items()):
            colour = _COLOURS[line % len(_COLOURS)]
            _curves(axes, colour, block, sorted(group, key=lambda point: float(point.density)))
            _mark(axes, colour, ends.get(block), line)
        axes.set(title=title, xlabel="density: share of the weights present", ylabel="speed-up over dense")
        axes.set_xscale("log")
        axes.set_yscale("log")
        marks = [mark for mark in (0.02, 0.05, 0.1, 0.2, 0.25, 0.5, 0.7, 1) if mark >= 0.9 * lowest]
        axes.set_xticks(marks)
        axes.set_yticks([mark for mark in (0.5, 0.7, 1, 1.5, 2, 3, 4, 5, 7, 10, 20, 50) if mark <= 1.2 / lowest])
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.legend(fontsize=8)
        return _png(figure)


def _curves(axes: Axes, colour: str, block: str, points: Sequence[_Point]) -> None:
    form = "fused" if all("fused" in point.speedup for point in points) else "swapped"
    densities = [point.density for point in points]
    axes.plot(
        densities, [p.speedup[form] for p in points], "o-", color=colour, label=f"{block}, whole model, {form}", ms=5
    )
    layers = [(p.density, ratio) for p in points if (ratio := p.layers_speedup()) is not None]
    if layers:
        x, y = zip(*layers, strict=True)
        axes.plot(x, y, "s--", color=colour, alpha=0.6, label=f"{block}, layers alone", ms=4, linewidth=1.2)


def _mark(axes: Axes, colour: str, end: BreakEven, line: int) -> None:
    if end is None:
        return
    density, measured = end
    axes.plot([density], [1], "D", color=colour, markerfacecolor=colour if measured else "white", ms=7)
    text = f"break-even {density:.2f}" + ("" if measured else " (extrapolated)")
    axes.annotate(
        text, (density, 1), (-6, -14 - 11 * line), textcoords="offset points", ha="right", color=colour, size=8
    )


def layers_png(layers: Sequence[Mapping[str, Any]], title: str) -> bytes:
    """Milliseconds of each measured layer: dense, sparse and ideal.

    Args:
        layers: rows with ``name``, ``dense``, ``sparse`` and ``ideal`` in seconds (None: not measured, left out) and
            ``density``.
        title: what was measured.
    """
    rows = [row for row in layers if row["dense"] is not None]
    with plot(6.8, max(2.4, 0.3 * len(rows) + 1.2)) as (figure, axes):
        places = np.arange(len(rows))
        for offset, key, colour, label in ((-0.22, "dense", DENSE, "dense"), (0.22, "sparse", SIZED, "sparse")):
            axes.barh(places + offset, [1e3 * row[key] for row in rows], 0.4, color=colour, label=label)
        axes.plot([1e3 * row["ideal"] for row in rows], places + 0.22, "|", color=INK, ms=9, mew=1.8, label="ideal")
        for place, row in zip(places, rows, strict=True):
            text = f"{row['dense'] / row['sparse']:.2f}x at {row['density']:.2f}"
            widest = 1e3 * max(row["dense"], row["sparse"])
            axes.annotate(text, (widest, place), (4, 0), textcoords="offset points", va="center", color=QUIET, size=7.5)
        axes.set_yticks(places, [row["name"] for row in rows], size=7.5)
        axes.invert_yaxis()
        axes.margins(x=0.18)
        axes.grid(axis="y", visible=False)
        axes.set(title=title, xlabel="time of the layer by itself (ms)")
        axes.legend(fontsize=8, loc="lower right")
        return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()
