"""A drawing of a ripple: what each layer's does to the loss, and where else it is felt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure

from resgrow.report.style import DENSE, INK, SIZED

_BAR = 0.76
_SHADES = LinearSegmentedColormap.from_list("ripple", ["#d9f2ec", SIZED, INK])
# Of the largest bar: smaller ones are drawn linearly, larger ones by their logarithm.
_LINEAR = 1e-2


def draw_ripple(figure: Figure, found: Mapping[str, Any], title: str = "") -> list[Axes]:
    """One column per layer: the expected and the measured rise of the loss; its gain; where its ripple is felt.

    Args:
        figure: to draw on; it gets a pair of axes for each of these that is there.
        found: ``Ripple.as_dict()``, or the same read back from JSON.

    Returns:
        The axes, from top to bottom. Containers labelled "analytic", "measured" and "gain" hold bars and points; the
        last axes' image has a row for each layer and one for the model's output, masked where nothing is felt.
    """
    layers: Sequence[Mapping[str, Any]] = found["layers"]
    names = [layer["name"] or "(model)" for layer in layers]
    gains = any(layer["gain"] is not None for layer in layers)
    felt = any(layer["reach"] is not None for layer in layers)
    heights = [1.0] + [0.7] * gains + [max(1.0, 0.09 * len(layers))] * felt
    axes = list(figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0])
    _rises(axes[0], layers, found["sigma"])
    if gains:
        here = [place for place, layer in enumerate(layers) if layer["gain"] is not None]
        axes[1].bar(here, [layers[place]["gain"] for place in here], _BAR, color=DENSE, label="gain")
        axes[1].set(ylabel="gain")
    if felt:
        _where(figure, axes[-1], layers, names)
    for each in axes:
        each.grid(axis="x", visible=False)
    axes[-1].set_xticks(np.arange(len(names)), names, rotation=90, size=7)
    axes[-1].set_xlim(-0.6, len(names) - 0.4)
    axes[-1].set(xlabel="layer that is changed")
    axes[0].set(title=title)
    return axes


def _rises(axes: Axes, layers: Sequence[Mapping[str, Any]], sigma: float) -> None:
    analytic = [layer["analytic"] for layer in layers]
    axes.bar(np.arange(len(layers)), analytic, _BAR, color=SIZED, label="analytic")
    here = [place for place, layer in enumerate(layers) if layer["measured"] is not None]
    measured = [layers[place]["measured"] for place in here]
    if here:
        errors = [layers[place]["error"] or 0.0 for place in here]
        axes.errorbar(here, measured, errors, fmt="o", color=INK, markersize=3, linewidth=1, label="measured")
        axes.legend(fontsize=8)
    largest = max((abs(value) for value in (*analytic, *measured)), default=0.0)
    if largest:
        axes.set_yscale("symlog", linthresh=_LINEAR * largest)
    axes.set(ylabel=f"rise of the loss\nat sigma = {sigma:g}")


def _where(figure: Figure, axes: Axes, layers: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    places = [layer["name"] for layer in layers]
    shares = np.zeros((len(places) + 1, len(places)))
    for column, layer in enumerate(layers):
        for place, change in layer["downstream"].items():
            shares[places.index(place), column] = change
        shares[-1, column] = layer["reach"] or 0.0
    seen = np.ma.masked_equal(shares, 0)
    norm = LogNorm() if seen.count() else None
    image = axes.imshow(seen, _SHADES, norm, aspect="auto", interpolation="nearest")
    axes.set_yticks(np.arange(len(places) + 1), [*names, "output"], size=7)
    axes.grid(visible=False)
    axes.set(ylabel="where it is felt")
    if norm is not None:
        figure.colorbar(image, ax=axes, label="relative change", pad=0.01)
