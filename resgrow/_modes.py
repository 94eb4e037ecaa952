"""A model's state during a measurement, and its exact restoration."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode, uncompiled, inside; each module's own training flag as before outside.

    The flags are set one by one: ``model.eval()`` would go through ``train`` methods that users override. Compiled
    models run eagerly: compiled code skips hooks that were added later, and would be compiled anew for a few calls.
    """
    with _mode(model, training=False):
        yield


@contextmanager
def train_mode(model: nn.Module) -> Iterator[None]:
    """The same in training mode."""
    with _mode(model, training=True):
        yield


@contextmanager
def _mode(model: nn.Module, training: bool) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = training
    try:
        with eagerly():
            yield
    finally:
        for module, before in modes:
            module.training = before


@contextmanager
def undisturbed(model: nn.Module, devices: Iterable[torch.device]) -> Iterator[None]:
    """Whatever runs inside writes to copies of the model's buffers, and draws random numbers that nobody misses.

    Args:
        devices: whose random numbers are as before afterwards; those of the CPU always are.
    """
    gpus = sorted({torch.cuda.current_device() if d.index is None else d.index for d in devices if d.type == "cuda"})
    kept = [(module._buffers, dict(module._buffers)) for module in model.modules() if module._buffers]
    copies = {id(buffer): buffer.detach().clone() for buffer in model.buffers()}
    try:
        for live, before in kept:
            live.update({name: None if buffer is None else copies[id(buffer)] for name, buffer in before.items()})
        with torch.random.fork_rng(devices=gpus):
            yield
    finally:
        for live, before in kept:
            live.clear()
            live.update(before)


def eagerly() -> Any:
    """Context in which compiled models run uncompiled."""
    # Nothing can be compiled before dynamo is imported, which takes seconds.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
