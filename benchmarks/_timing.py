"""Timing of contestants against each other: interleaved rounds, ratios within a round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from resgrow.surgery.speed import fair_clock


def interleave(contestants: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every call, in rounds that call each contestant once; one round before them warms up.

    What else the machine does then falls on all of them alike. Of processor time with one thread.
    """
    clock = fair_clock()
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for round_ in range(repeats + 1):
        for name, call in contestants.items():
            start = clock()
            call()
            elapsed = clock() - start
            if round_ > 0:
                times[name].append(elapsed)
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
