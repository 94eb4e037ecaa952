"""The most memory that a call needs."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
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


def _peak_on_cuda(call: Callable[[], object], device: torch.device) -> int:
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
