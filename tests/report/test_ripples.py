"""The drawing of a ripple: bars, points, gains, and where each layer's is felt."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resgrow.report import draw_ripple


def layer(name: str, **given: Any) -> dict[str, Any]:
    found = {"analytic": 1e-3, "measured": 2e-3, "error": 1e-4, "reach": 0.2, "gain": None, "downstream": {name: 0.1}}
    return {"name": name, **found, **given}


FOUND = {
    "sigma": 0.1,
    "layers": [
        layer("stem", downstream={"stem": 0.1, "inner": 0.3, "fc": 0.2}),
        layer("inner", gain=0.5, downstream={"inner": 0.1, "fc": 0.05}, analytic=-1e-4),
        layer("fc", error=None),
    ],
}


def bars(axes: Axes, label: str) -> dict[float, float]:
    (found,) = [container for container in axes.containers if container.get_label() == label]
    return {round(bar.get_x() + bar.get_width() / 2, 6): bar.get_height() for bar in found}


def test_rises_gains_and_where_they_are_felt():
    rises, gains, where = draw_ripple(Figure(), FOUND, "a net")
    assert bars(rises, "analytic") == {0: 1e-3, 1: -1e-4, 2: 1e-3}
    (points,) = [container for container in rises.containers if container.get_label() == "measured"]
    assert list(points.lines[0].get_ydata()) == [2e-3] * 3
    assert rises.get_title() + rises.get_title(loc="left") == "a net"
    assert bars(gains, "gain") == {1: 0.5}
    (image,) = where.images
    shares = image.get_array()
    expected = [[0.1, 0, 0], [0.3, 0.1, 0], [0.2, 0.05, 0.1], [0.2, 0.2, 0.2]]
    assert np.array_equal(shares.filled(0), expected)
    assert np.array_equal(shares.mask, np.array(expected) == 0)
    assert [tick.get_text() for tick in where.get_xticklabels()] == ["stem", "inner", "fc"]
    assert [tick.get_text() for tick in where.get_yticklabels()] == ["stem", "inner", "fc", "output"]


def test_what_was_not_asked_for_has_no_axes():
    bare = [layer(name, measured=None, error=None, reach=None, gain=None, downstream={}) for name in ("a", "b")]
    (rises,) = draw_ripple(Figure(), {"sigma": 0.1, "layers": bare})
    assert bars(rises, "analytic") == {0: 1e-3, 1: 1e-3}
    assert rises.get_legend() is None
    assert len(rises.containers) == 1
