"""A model's state during a measurement, and its exact restoration."""

from __future__ import annotations

import sys
from collections.abc import Iterator
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
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        with eagerly():
            yield
    finally:
        for module, training in modes:
            module.training = training


def eagerly() -> Any:
    """Context in which compiled models run uncompiled."""
    # Nothing can be compiled before dynamo is imported, which takes seconds.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
