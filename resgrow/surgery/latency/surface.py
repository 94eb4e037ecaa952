"""Time over two widths, measured where it is asked for and interpolated between."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from itertools import product
from math import inf

# Vectors are so many channels wide: within one of them, a channel more costs nothing.
_VECTORS = (8, 16)


class Surface:
    """Seconds by ``(inputs, outputs)``, bilinear between the points of a grid, and never falling with either.

    The grid of a width of n channels is 1, 8, 16, 32, 48, 64, 96, 128, 192 and so on in steps of a half and a third,
    n, and beside each of them the next channel, because time goes up in steps: 17 channels cost what 32 do on a CPU
    with vectors of 16. That makes at most ``4 log2(n / 16) + 6`` points for a width of 16 or more (10 for 64, 22 for
    512), and a measurement for each pair of points at the very most. They are measured as they are needed: one for the
    full layer, up to four for any other question. A layer both of whose widths shrink by one at a time, from 512 to 51,
    takes about 45 of the 484, from 64 to 6 about 30 of the 100, each of .1 to .5 s.

    Measurements are not monotone: noise, and layers of odd widths that take other kernels. A new one is therefore kept
    within what smaller and larger widths measured before it allow; the running maximum (and minimum) as far as it is
    known. What has been answered once does not change.

    Args:
        sizes: ``(inputs, outputs)`` of the full layer.
        steps: channels of each width that go together; widths are multiples of it.
        measure: seconds at ``(inputs, outputs)``.
    """

    def __init__(self, sizes: tuple[int, int], steps: tuple[int, int], measure: Callable[[int, int], float]) -> None:
        pairs = list(zip(sizes, steps, strict=True))
        self._coarse = [grid(size // step, step) for size, step in pairs]
        self._fine = [grid(size // step, step, edges=True) for size, step in pairs]
        self._measure = measure
        self._known: dict[tuple[int, int], float] = {}

    def seconds(self, inputs: float, outputs: float, smooth: bool = False) -> float:
        """At widths within the full ones.

        Args:
            smooth: without the steps, from round widths to round widths, which is what one channel less is worth on
                average.
        """
        grids = self._coarse if smooth else self._fine
        corners = product(_around(grids[0], inputs), _around(grids[1], outputs))
        return sum(one * other * self._at(row, column) for (row, one), (column, other) in corners)

    def _at(self, inputs: int, outputs: int) -> float:
        point = (inputs, outputs)
        if point not in self._known:
            least = max((s for (i, o), s in self._known.items() if i <= inputs and o <= outputs), default=0.0)
            most = min((s for (i, o), s in self._known.items() if i >= inputs and o >= outputs), default=inf)
            self._known[point] = min(max(self._measure(inputs, outputs), least), most)
        return self._known[point]


def grid(count: int, step: int = 1, edges: bool = False) -> list[int]:
    """Widths at which a layer of ``count * step`` channels is measured, ascending; with ``edges`` the next after each,
    too."""
    points = {1, count, *(width for width in _VECTORS if width < count)}
    octave = 2 * _VECTORS[-1]
    while octave < count:
        points |= {width for width in (octave, octave * 3 // 2) if width < count}
        octave *= 2
    if edges:
        points |= {point + 1 for point in points if point in range(_VECTORS[0], count)}
    return [step * point for point in sorted(points)]


def _around(points: list[int], width: float) -> list[tuple[int, float]]:
    """The points on both sides, the larger first, with the weights that interpolate between them; one where it hits."""
    width = min(max(width, points[0]), points[-1])
    upper = bisect_left(points, width)
    if points[upper] == width:
        return [(points[upper], 1.0)]
    low, high = points[upper - 1], points[upper]
    share = (width - low) / (high - low)
    return [(high, share), (low, 1 - share)]
