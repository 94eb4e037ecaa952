"""One look for all plots, in the colours of report.html."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

DENSE = "#7c8aa0"
SIZED = "#0f766e"
UNDONE = "#d9480f"
INK = "#1f2937"
QUIET = "#6b7280"
GRID = "#e5e7eb"

# Any: matplotlib's own types allow only a dictionary of its several hundred literal keys.
_SETTINGS: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": GRID,
    "axes.labelcolor": QUIET,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "text.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "svg.fonttype": "path",  # glyphs as outlines: the report needs no fonts
    "svg.hashsalt": "resgrow",  # the same run gives the same file
}


@contextmanager
def empty_figure(width: float, height: float) -> Iterator[Figure]:
    """A figure of ``width`` x ``height`` inches in the report's style; works without a display."""
    with rc_context(_SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure


@contextmanager
def plot(width: float = 5.6, height: float = 3.4) -> Iterator[tuple[Figure, Axes]]:
    """The same with one pair of axes."""
    with empty_figure(width, height) as figure:
        yield figure, figure.add_subplot()


def data_uri(figure: Figure) -> str:
    """The figure as ``data:image/svg+xml;base64,...``. To be called inside ``plot``'s block."""
    buffer = io.BytesIO()
    with rc_context(_SETTINGS):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
