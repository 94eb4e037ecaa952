"""Measuring networks: loss and accuracy, latency, equality of outputs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resgrow._errors import RunError
from resgrow._modes import eval_mode
from resgrow.experiments.models import as_input

EVALUATION_BATCH = 1000
WARM_UP = 5
LATENCY_SECONDS = 1.0
LATENCY_REPETITIONS = 20


@torch.inference_mode()
def evaluate(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Mean cross-entropy and accuracy in [0, 1], in eval mode; the model's mode is restored."""
    loss, correct = 0.0, 0
    with eval_mode(model):
        for images, labels in zip(x.split(EVALUATION_BATCH), y.split(EVALUATION_BATCH), strict=True):
            logits = model(as_input(images))
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
            correct += int((logits.argmax(1) == labels).sum())
    return loss / len(y), correct / len(y)


@torch.inference_mode()
def latency(models: Mapping[str, nn.Module], x: Tensor) -> dict[str, float]:
    """Median seconds of one forward pass over the batch ``x`` per model, in eval mode.

    The models take turns, so that a slow moment of the machine hits all of them, in an order that turns round
    every time: a scheduler's time slice as long as one round would else hit always the same one. Repeats for
    LATENCY_SECONDS in total, at least LATENCY_REPETITIONS times each.
    """
    images = as_input(x)
    finish = (lambda: torch.cuda.synchronize(x.device)) if x.is_cuda else (lambda: None)
    times: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        model.eval()
        for _ in range(WARM_UP):
            model(images)
    finish()
    order = list(models)
    end = time.perf_counter() + LATENCY_SECONDS
    while time.perf_counter() < end or any(len(taken) < LATENCY_REPETITIONS for taken in times.values()):
        for name in order:
            start = time.perf_counter()
            models[name](images)
            finish()
            times[name].append(time.perf_counter() - start)
        order.reverse()
    return {name: statistics.median(taken) for name, taken in times.items()}


@torch.inference_mode()
def largest_difference(first: nn.Module, second: nn.Module, x: Tensor) -> float:
    """Largest absolute difference of the two models' outputs over ``x``, relative to the largest output."""
    images = as_input(x)
    a, b = first.eval()(images), second.eval()(images)
    return ((a - b).abs().max() / a.abs().max().clamp_min(torch.finfo(a.dtype).tiny)).item()


def require_same_outputs(sized: nn.Module, compacted: nn.Module, x: Tensor, tolerance: float = 1e-4) -> float:
    """``largest_difference``; RunError above ``tolerance`` (float32 sums in another order stay far below)."""
    difference = largest_difference(sized, compacted, x)
    if not difference <= tolerance:
        raise RunError(
            f"fit: the compacted network must give the outputs of the masked one (got a relative difference of "
            f"{difference:.1e}, allowed {tolerance:.0e}); please report this with the run folder"
        )
    return difference
