"""Peak memory of one call, in a process of its own: ``python _curvature_memory.py PROBLEM CONTESTANT ...``

* ``live``: peak of live tensor bytes above the start, from every allocation and release that torch's profiler records.
  Exact and repeatable. What libraries allocate by themselves (oneDNN's scratch) is not in it.
* ``cold``, ``warm``: high-water mark of resident memory above what model, data and a warm-up on two samples hold, and
  the same in a process that has just done a forward+backward, whose freed memory is there to be used again. Everything
  is in it, and how the heap is broken up too. Linux only.
"""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from _curvature_contestants import contestants, forward_backward
from _curvature_problems import prepare

from resgrow._memory import peak_bytes

CLEAR = Path("/proc/self/clear_refs")
KINDS = ("live", "cold", "warm")


def measure(problem: str, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """``{contestant: {"live", "cold", "warm": MB}}``; resident memory only where the system tells it."""
    command = [sys.executable, __file__, problem, *names]
    done = subprocess.run(command, capture_output=True, text=True)  # the profiler is talkative
    if done.returncode:
        raise RuntimeError(f"memory of {problem} could not be measured:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def peak(job: tuple[str, str, str]) -> float:
    problem, name, kind = job
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    contestant = contestants()[name]
    model, x, y = prepare(problem, contestant.layout)
    step, run = forward_backward(model), contestant.make(model)
    for call in (step, run) if kind != "live" else (run,):
        call(x[:2].clone(memory_format=torch.preserve_format), y[:2])
    if kind == "live":
        model.zero_grad()
        return peak_bytes(lambda: run(x, y), torch.device("cpu")) / 2**20
    if kind == "warm":
        step(x, y)
    CLEAR.write_text("5")  # the high-water mark is now what is resident
    before = resident("VmRSS")
    run(x, y)
    return resident("VmHWM") - before


def resident(kind: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1024


if __name__ == "__main__":  # must not have used autograd before it forks
    kinds = KINDS if CLEAR.exists() else KINDS[:1]
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        jobs = [(sys.argv[1], name, kind) for name in sys.argv[2:] for kind in kinds]
        peaks = dict(zip(jobs, pool.map(peak, jobs, 1), strict=True))
    print(json.dumps({name: {kind: peaks[sys.argv[1], name, kind] for kind in kinds} for name in sys.argv[2:]}))
