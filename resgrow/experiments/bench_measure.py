"""Times and held memory of a model's forms against each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

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
