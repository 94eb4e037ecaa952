"""Times and memory of a model's forms against each other."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.profiler import ProfilerActivity, profile

from resgrow._stopwatch import stopwatch

Call = Callable[[], object]


def inference(model: nn.Module, x: Tensor) -> Call:
    """One forward pass in evaluation mode, without gradients."""
    model.eval()

    def call() -> object:
        with torch.inference_mode():
            return model(x)

    return call


def training_step(model: nn.Module, x: Tensor, optimizer: Optimizer) -> Call:
    """Forward, backward from the mean of the squared outputs, and the optimizer's step, in training mode."""
    model.train()

    def call() -> object:
        optimizer.zero_grad()
        model(x).float().square().mean().backward()
        return optimizer.step()

    return call


def make_optimizer(model: nn.Module) -> Optimizer:
    """SGD with momentum; the step is so small that timing does not change the model."""
    return SGD(model.parameters(), lr=1e-9, momentum=0.9)


def interleaved(calls: Mapping[str, Call], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every call, in rounds that make each call once, in turning order, after one round to warm up.

    What else the machine does then falls on all of them alike. Of processor time with one thread of the CPU.
    """
    seconds_of = stopwatch(device)
    times: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    for round_ in range(repeats + 1):
        for name in order:
            seconds = seconds_of(calls[name])
            if round_ > 0:
                times[name].append(seconds)
        order.reverse()
    return times


def median_ratio(a: Sequence[float], b: Sequence[float]) -> float:
    """Median over rounds of ``a / b``: how many times longer a takes."""
    return median(x / y for x, y in zip(a, b, strict=True))


def held_bytes(model: nn.Module, optimizer: Optimizer | None = None) -> int:
    """Bytes of parameters and buffers, and in training of gradients and the optimizer's state; shared ones count once.

    To be called after a step, when gradients and state are there.
    """
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    tensors += [p.grad for p in model.parameters() if p.grad is not None]
    if optimizer is not None:
        tensors += [t for entry in optimizer.state.values() for t in entry.values() if isinstance(t, Tensor)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.numel()}
    return sum(storages.values())


def peak_bytes(call: Call, device: torch.device) -> int:
    """Peak of live tensor bytes above what is held before the call: activations, and all that kernels ask torch for.

    On the CPU from every allocation and release that torch's profiler records, so exact and repeatable; what libraries
    allocate by themselves (oneDNN's scratch) is not in it. On CUDA from the counters of torch's allocator.
    """
    if device.type == "cuda":
        return _peak_on_cuda(call, device)
    with _silent(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        kept = call()  # the result counts until the end
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    del kept
    changes = [event for event in events if event.get("name") == "[memory]"]
    changes.sort(key=lambda event: event["ts"])
    return max(accumulate(event["args"]["Bytes"] for event in changes), default=0)


def _peak_on_cuda(call: Call, device: torch.device) -> int:
    held = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    return torch.cuda.max_memory_allocated(device) - held


@contextmanager
def _silent() -> Iterator[None]:
    """Without what native code writes to stderr: the profiler announces its start and end there."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
