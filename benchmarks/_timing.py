"""Timing of contestants against each other: interleaved rounds, ratios within a round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from statistics import median
from typing import Any

from resgrow._stopwatch import fair_clock


def interleave(contestants: dict[str, Callable[[], object]], repeats: int, turn: float = 0.0) -> dict[str, list[float]]:
    """Seconds of a call, in rounds that give each contestant its turn; one round before them warms up.

    What else the machine does then falls on all of them alike. Of processor time with one thread.

    Args:
        turn: seconds that a turn lasts at least, of as many calls as that takes; their mean counts. Otherwise a call
            of microseconds finds the caches full of what the others left.
    """
    clock = fair_clock()
    times: dict[str, list[float]] = {name: [] for name in contestants}
    calls = dict.fromkeys(contestants, 1)
    for round_ in range(repeats + 1):
        for name, call in contestants.items():
            start = clock()
            for _ in range(calls[name]):
                call()
            elapsed = (clock() - start) / calls[name]
            if round_ > 0:
                times[name].append(elapsed)
            else:
                calls[name] = max(1, ceil(turn / elapsed)) if elapsed else 1
    return times


def median_ratio(a: Sequence[float], b: Sequence[float]) -> float:
    """Median over rounds of ``a / b``: how many times longer a takes."""
    return median(x / y for x, y in zip(a, b, strict=True))


def report(benchmark: Any, **figures: object) -> None:
    """Stores the figures with the benchmark and prints them on one line (seen with ``pytest -s``)."""
    benchmark.extra_info.update(figures)
    shown = (
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in figures.items()
    )
    print(f"\n{benchmark.name}: {', '.join(shown)}", end="")
