"""Times of calls on a device: contestants interleaved, each over buffers that together are larger than the caches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from statistics import median
from time import perf_counter

import torch
from _timing import median_ratio
from torch import Tensor

from resgrow._stopwatch import stopwatch

Call = Callable[[], object]
CACHES = 4  # times the second-level cache: then little of a buffer is left there when its turn comes again
MOST_SETS = 24
TURN = 1e-3  # seconds between two events, which are good for microseconds
LEAST_ROUNDS = 3


@dataclass(frozen=True)
class Times:
    """Seconds of one call, by contestant, one for each round; what one round measured belongs together."""

    rounds: dict[str, list[float]]
    queued: frozenset[str] = frozenset()  # contestants that could not be captured in a graph

    def seconds(self, name: str) -> float:
        return median(self.rounds[name])

    def ratio(self, a: str, b: str) -> float:
        """How many times longer a takes than b."""
        return median_ratio(self.rounds[a], self.rounds[b])


class Clock:
    """Measures on one device. ``tiny``: once each, to see that everything runs."""

    def __init__(self, device: torch.device, tiny: bool = False) -> None:
        self.device, self.tiny = device, tiny

    def sets(self, nbytes: int) -> int:
        """How many buffers of this size a contestant must go through for none to be found in a cache."""
        if self.tiny or self.device.type != "cuda":
            return 1
        cache = torch.cuda.get_device_properties(self.device).L2_cache_size
        return min(MOST_SETS, ceil(CACHES * cache / nbytes))

    def measure(
        self, contestants: Mapping[str, Sequence[Call]], rounds: int = 9, limit: float = 1.5, graphs: bool = True
    ) -> Times:
        """Each contestant is a call per set of buffers; their results are kept, so that each writes memory of its own.

        Args:
            rounds: each gives every contestant one turn; fewer, but at least three, once ``limit`` seconds are over.
            graphs: a turn replays a CUDA graph, and the host's time does not count; otherwise, and where something
                cannot be captured, calls queue up, and it counts where the device has to wait.
        """
        make = _Graph if self.device.type == "cuda" and graphs else _Queue
        turns = {name: make(calls, self.device, self.tiny) for name, calls in contestants.items()}
        times: dict[str, list[float]] = {name: [] for name in turns}
        start = perf_counter()
        for round_ in range(1 if self.tiny else rounds):
            if round_ >= LEAST_ROUNDS and perf_counter() - start > limit:
                break
            for name, turn in turns.items():
                times[name].append(turn.seconds())
        return Times(times, frozenset(name for name, turn in turns.items() if not turn.captured))


class _Queue:
    """A contestant's turn: its calls one after the other."""

    def __init__(self, calls: Sequence[Call], device: torch.device, tiny: bool) -> None:
        self.calls, self.device = calls, device
        self.captured = False
        self.repeats = 1
        self.run: Call = self.queue
        for _ in range(2):  # the second one allocates nothing, and compiles and tunes nothing
            self.queue()
        self.prepare()
        if not tiny:
            self.repeats = max(1, ceil(TURN / (self.seconds() * len(calls))))

    def prepare(self) -> None:
        """Before anything is timed."""

    def queue(self) -> None:
        self.kept = [call() for call in self.calls]

    def seconds(self) -> float:
        """Of one call."""
        if self.device.type != "cuda":
            return stopwatch(self.device)(self.run) / len(self.calls)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(self.repeats):
            self.run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / self.repeats / len(self.calls)


class _Graph(_Queue):
    """A contestant's turn: the same as a CUDA graph, where its calls can be captured."""

    def prepare(self) -> None:
        self.kept = []
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.queue()
        except RuntimeError:
            torch.cuda.synchronize(self.device)
            return
        self.run, self.captured = graph.replay, True


def agree(got: Tensor, want: Tensor, tolerance: float) -> None:
    """Within ``tolerance`` of the wanted tensor's norm; of float64 is what decides."""
    error = float((got.double() - want.double()).norm() / want.double().norm().clamp_min(1e-30))
    assert error <= tolerance, f"wrong by {error:.1e} of the norm (at most {tolerance:.0e} is rounding)"


def copies(t: Tensor, count: int) -> list[Tensor]:
    """The tensor and others like it; their values do not matter to a clock, but that they are not zeros does."""
    return [t, *(t.clone() for _ in range(count - 1))]
