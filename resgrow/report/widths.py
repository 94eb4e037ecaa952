"""A drawing of a network: the width of each layer over its depth."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from resgrow._order import merged_order
from resgrow.report.style import DENSE, GRID, QUIET, SIZED, empty_figure

_DPI = 150
_BAR = 0.76
# A block's name ends with the first part that is a number of its own: layer1.0, encoder.layers.encoder_layer_3.
_NUMBERED = re.compile(r"(^|_)\d+$")


def draw_widths(
    figure: Figure, widths: Mapping[str, int], before: Mapping[str, int] | None = None, title: str = ""
) -> Axes:
    """One bar per layer, from the first to the last, as high as the layer is wide: filled as it is, outlined as it was.

    Layers of one block (by their names) stand on one band. Layers that are gone are an outline alone, new ones have
    none.

    Args:
        figure: to draw on; it gets one more pair of axes.
        widths, before: ``{layer name: channels, features or heads}`` in forward order, as ``Profile.widths()`` gives
            them.

    Returns:
        The axes: patches labelled "after" and "before" are the bars.
    """
    names = merged_order(before or {}, widths)
    axes = figure.add_subplot()
    _bands(axes, names)
    if before is not None:
        old = [place for place, name in enumerate(names) if name in before]
        heights = [before[names[place]] for place in old]
        axes.bar(old, heights, _BAR, fill=False, edgecolor=DENSE, linewidth=1.2, label="before", zorder=3)
    new = [place for place, name in enumerate(names) if name in widths]
    axes.bar(new, [widths[names[place]] for place in new], _BAR, color=SIZED, label="after", zorder=2)
    axes.set_xticks(np.arange(len(names)), [_label(name) for name in names], rotation=90, size=7)
    axes.set_xlim(-0.6, max(len(names), 1) - 0.4)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="x", visible=False)
    axes.set(title=title, ylabel="width: channels, features or heads")
    if before is not None:
        axes.legend(fontsize=8, loc="lower right", bbox_to_anchor=(1, 1.03), ncols=2)
    return axes


def widths_png(widths: Mapping[str, int], before: Mapping[str, int] | None = None, title: str = "") -> bytes:
    """`draw_widths` as an image that is as wide as it needs to be."""
    count = len(merged_order(before or {}, widths))
    with empty_figure(min(40.0, max(4.8, 0.2 * count + 1.2)), 4.0) as figure:
        draw_widths(figure, widths, before, title)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def _bands(axes: Axes, names: Sequence[str]) -> None:
    """Every other block shaded, each with its name on top."""
    start = 0
    shaded = False
    for block, group in groupby(names, _block):
        count = len(list(group))
        if count > 1:
            if shaded:
                axes.axvspan(start - 0.5, start + count - 0.5, color=GRID, alpha=0.5, zorder=0)
            middle = start + (count - 1) / 2
            top = axes.get_xaxis_transform()
            size = 7 if 2.2 * count > len(block) else 5.5
            axes.text(middle, 1.01, block, transform=top, ha="center", va="bottom", color=QUIET, size=size)
            shaded = not shaded
        start += count


def _block(name: str) -> str:
    parts = name.split(".")
    for depth, part in enumerate(parts[:-1]):
        if _NUMBERED.search(part):
            return ".".join(parts[: depth + 1])
    return ".".join(parts[:-1]) or name


def _label(name: str) -> str:
    """What a layer's name adds to its block's."""
    return name.removeprefix(f"{_block(name)}.") or "(model)"
