"""How long a call takes on the device that does its work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from time import get_clock_info, perf_counter, thread_time

import torch

Stopwatch = Callable[[Callable[[], object]], float]

_FINE = 1e-6  # seconds
_IN_A_ROW = 8
# What rounds fill by default, and their limits: a median needs some, and no call is worth more.
_SECONDS = 0.3
_ROUNDS = (7, 41)
# Bytes. Blocks of 32 MiB and more never lie in the heap of glibc. Guards fill smaller holes before they lie behind it.
_HOLE, _GUARD, _GUARDS = 31 * 2**20, 2**17, 64


def stopwatch(device: torch.device) -> Stopwatch:
    """Seconds of one call with work on ``device``; the clock of :func:`fair_clock` on the CPU, events on CUDA."""
    if device.type == "cuda":
        return lambda call: _on_cuda(call, device)
    clock = fair_clock()

    def time(call: Callable[[], object]) -> float:
        start = clock()
        call()
        return clock() - start

    return time


def medians(calls: Sequence[Callable[[], object]], seconds_of: Stopwatch, patience: float = _SECONDS) -> list[float]:
    """Median seconds of each, in rounds that call all of them: what else the machine does falls on all alike.

    Args:
        patience: seconds that the rounds fill, within limits.
    """
    times: list[list[float]] = [[] for _ in calls]

    def play() -> float:
        for call, taken in zip(calls, times, strict=True):
            taken.append(seconds_of(call))
        return sum(taken[-1] for taken in times)

    play()  # the first calls also plan and allocate
    least, most = _ROUNDS
    rounds = max(least, min(most, int(patience / play())))
    for _ in range(rounds - 1):
        play()
    return [median(taken[1:]) for taken in times]


@contextmanager
def steady_heap(device: torch.device) -> Iterator[None]:
    """Inside, what calls on the CPU allocate and free stays with the process.

    The C library gives free memory at the end of its heap back to the system, and takes it anew, page by page, at the
    next call. Whether that happens depends on what else happens to lie there, and can double the time of a convolution
    (2.5 or 6.3 ms were measured for one of 16 channels). A hole that is guarded from behind is used again instead.
    """
    if device.type != "cpu":
        yield
        return
    for _ in range(2):  # the first one teaches the library to keep blocks of this size in its heap
        hole = torch.empty(_HOLE, dtype=torch.uint8)
        guards = [torch.empty(_GUARD, dtype=torch.uint8) for _ in range(_GUARDS)]
        del hole
    try:
        yield
    finally:
        del guards


def fair_clock() -> Callable[[], float]:
    """Processor time where one thread does all the work, as the clock on the wall is not fair on a busy machine: a
    call that lasts longer than a time slice waits for others, a shorter one does not."""
    fair = torch.get_num_threads() == 1 and get_clock_info("thread_time").resolution < _FINE
    return thread_time if fair else perf_counter


def _on_cuda(call: Callable[[], object], device: torch.device) -> float:
    """Mean of a few calls that queue up, as they do in a model: what the host does between their kernels counts only
    where the device has to wait for it."""
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(_IN_A_ROW):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / _IN_A_ROW
