"""How long a model and its modules take."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import nn

from resgrow._stopwatch import fair_clock, medians, steady_heap, stopwatch
from resgrow.surgery.profile.hooks import around_modules


def latencies(model: nn.Module, call: Callable[[], object], device: torch.device) -> tuple[float, dict[int, float]]:
    """Median seconds of the call, which runs the model, and of each module in it without the modules inside.

    The model's time is taken without hooks. Those around each module, which on CUDA wait for the device, take time of
    their own, so that the modules' times add up to more.

    Returns:
        The model's time, and ``{id(module): seconds}`` of those that ran, all their calls together.
    """
    clock = _Clock(device)
    rounds: list[dict[int, float]] = []

    def hooked() -> None:
        clock.spent = defaultdict(float)
        call()
        rounds.append(clock.spent)

    with steady_heap(device):
        (total,) = medians([call], stopwatch(device))
        with around_modules(model, clock.enter, clock.leave):
            medians([hooked], stopwatch(device))
    del rounds[0]  # as the first call of `medians`
    return total, {module: median(spent[module] for spent in rounds) for module in rounds[0]}


class _Clock:
    """Adds up what each module spends in its own code."""

    def __init__(self, device: torch.device) -> None:
        self.spent: dict[int, float] = {}
        self._open: list[list[float]] = []  # start, and time of the modules inside
        self._device = device
        self._clock = perf_counter if device.type == "cuda" else fair_clock()

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return self._clock()

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._open.append([self._now(), 0.0])

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        now = self._now()
        start, inside = self._open.pop()
        self.spent[id(module)] += now - start - inside
        if self._open:
            self._open[-1][1] += now - start
