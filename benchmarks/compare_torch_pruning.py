"""Half of the channels of many models taken out, by Torch-Pruning and by resgrow: who can, how exactly, how fast.

    pip install torch-pruning==1.6.1 && pip install -e .[models]
    python benchmarks/compare_torch_pruning.py [--models resnet18 U-Net ...] [--seconds 300] [--gigabytes 10]

Each tool gets the same model with the same random weights, ratio 0.5 in every layer (not global), L2 or L1 magnitudes.
Torch-Pruning is told the output layers and, for attention, what its examples do by hand; resgrow is told nothing.

``handled``: a forward and a backward pass in training mode run, and parameters are gone. ``left``: parameters, and
their relative error against the model with every width halved (inputs and outputs excepted). ``masked``: whether
outputs are those of the full-size model with zeros where the tool took weights out, in float64 and evaluation mode: the
largest difference over the largest output. ``Adam``: how many of the smaller model's parameters an optimizer made
before still holds, with moments of their shape. ``seconds``: from the model to the smaller one, float32, the median of
three, processor time with one thread.
"""

from __future__ import annotations

import argparse
import copy
import os
import resource
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from _surgery_models import CASES, Case
from _surgery_tools import TOOLS, Tool, half
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from resgrow._stopwatch import fair_clock

REPEATS = 3


@dataclass
class Result:
    error: str = ""
    left: int = 0
    off: float = 0.0
    masked: float = float("nan")
    held: int = 0
    parameters: int = 0
    seconds: float = float("nan")

    def cells(self) -> list[str]:
        if self.error:
            return [f"no: {self.error}", "-", "-", "-", "-", "-"]
        masked = "equal" if self.masked <= 1e-9 else f"off by {self.masked:.1e}"
        adam = f"{self.held} of {self.parameters}"
        return ["yes", f"{self.left:,}", f"{100 * self.off:+.1f} %", masked, adam, f"{self.seconds:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(CASES))
    parser.add_argument("--seconds", type=int, default=300, help="for each tool and model; then it counts as hung")
    parser.add_argument("--gigabytes", type=float, default=10, help="of address space: a limit")
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, 2 * (int(args.gigabytes * 2**30),))
    warnings.simplefilter("ignore")
    print("| model | parameters | tool | handled | left | error | masked | Adam | seconds |")
    print("|---|---:|---|---|---:|---:|---|---:|---:|")
    for name in args.models:
        for tool, call in TOOLS.items():
            before, result = compared(CASES[name], call, args.seconds)
            print(f"| {name} | {before:,} | {tool} | {' | '.join(result.cells())} |", flush=True)


def compared(case: Case, tool: Tool, seconds: int) -> tuple[int, Result]:
    model = prepared(case, torch.float32)
    before = sum(parameter.numel() for parameter in model.parameters())
    result = Result()
    try:
        with limited(seconds), open(os.devnull, "w") as nowhere, silent(nowhere):
            fill(result, case, tool, before)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        result.error = f"{type(error).__name__}: {lines[0][:150]}".replace("|", "/").removesuffix(": ")
    return before, result


def fill(result: Result, case: Case, tool: Tool, before: int) -> None:
    model, inputs = prepared(case, torch.float32), given(case, torch.float32)
    asked = half(copy.deepcopy(model), inputs, case.last)
    optimizer = Adam(model.parameters(), lr=1e-3)
    step(model, inputs, optimizer)
    small = tool(model.eval(), inputs, case.last, optimizer)
    result.left = sum(parameter.numel() for parameter in small.parameters())
    result.off = result.left / asked - 1
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    for parameter in small.parameters():
        state = optimizer.state.get(parameter, {})
        fits = all(not isinstance(e, Tensor) or e.dim() == 0 or e.shape == parameter.shape for e in state.values())
        result.held += held.count(id(parameter)) == 1 and bool(state) and fits
        result.parameters += 1
    step(small, inputs, Adam(small.parameters(), lr=1e-3))
    if result.left == before:
        raise ValueError("nothing was removed")
    result.masked = masked_difference(case, tool)
    result.seconds = median(duration(case, tool) for _ in range(REPEATS))


def prepared(case: Case, dtype: torch.dtype) -> nn.Module:
    """Weights that are all different, so that what a tool has kept can be found again."""
    torch.manual_seed(0)
    model = case.make().to(dtype).eval()
    for module in model.modules():
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is None or not tensor.is_floating_point():
                continue
            with torch.no_grad():
                if tensor.dim() == 1 and (name == "weight" or name.startswith("running")):
                    tensor.copy_(torch.rand(tensor.shape, dtype=torch.float64) + 0.5)
                elif isinstance(tensor, nn.Parameter):
                    tensor += 0.02 * torch.randn(tensor.shape, dtype=torch.float64)
    return model


def given(case: Case, dtype: torch.dtype) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    return tuple(x.to(dtype) if x.is_floating_point() else x for x in case.inputs())


def step(model: nn.Module, inputs: tuple[Tensor, ...], optimizer: Optimizer) -> None:
    model.train()
    optimizer.zero_grad()
    model(*inputs).square().mean().backward()
    optimizer.step()


def masked_difference(case: Case, tool: Tool) -> float:
    inputs = given(case, torch.float64)
    model, masked = prepared(case, torch.float64), prepared(case, torch.float64)
    small = tool(model, inputs, case.last, Adam(model.parameters())).eval()
    kept = dict(small.named_parameters())
    with torch.no_grad():
        for name, parameter in masked.named_parameters():
            parameter *= torch.isin(parameter, kept[name])
        expected, actual = masked(*inputs), small(*inputs)
    return float((expected - actual).abs().max() / expected.abs().max())


def duration(case: Case, tool: Tool) -> float:
    model, inputs = prepared(case, torch.float32), given(case, torch.float32)
    optimizer = Adam(model.parameters(), lr=1e-3)
    clock = fair_clock()
    start = clock()
    tool(model, inputs, case.last, optimizer)
    return clock() - start


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    def late(*_: Any) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


@contextmanager
def silent(nowhere: Any) -> Iterator[None]:
    with redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


if __name__ == "__main__":
    main()
