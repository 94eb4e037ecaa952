"""Models inside of wrappers: which of these surgery reaches through, and which would break."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

_DISTRIBUTED = ("DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule")


def unwrapped(op: str, model: nn.Module) -> nn.Module:
    """The module to work on: that inside of ``torch.compile`` or ``nn.DataParallel``, which hold no shapes.

    A compiled wrapper sees other shapes at its next call and compiles anew. Wrappers that train in several processes
    are refused: they have hooks and buckets, or shards, for every parameter as it was when they were made.

    Raises:
        ValueError: DistributedDataParallel or fully sharded data parallelism.
        TypeError: not a module.
    """
    while True:
        if not isinstance(model, nn.Module):
            raise TypeError(f"{op}: model must be a torch.nn.Module (got {type(model).__name__})")
        wrapper = next((kind.__name__ for kind in type(model).__mro__ if kind.__name__ in _DISTRIBUTED), None)
        if wrapper == "DistributedDataParallel":
            raise ValueError(
                f"{op}: the model must not be wrapped for several processes (got DistributedDataParallel, whose hooks "
                f"and buckets are made for the shapes of now); call {op} on model.module, in the same way in each "
                "process, and wrap that anew afterwards"
            )
        if wrapper is not None:
            raise ValueError(
                f"{op}: each process must hold the whole model (got {wrapper}, which gives each a shard of every "
                f"parameter); call {op} before it is sharded"
            )
        inner = _inner(model)
        if inner is None:
            return model
        model = inner


def _inner(model: Any) -> Any:
    if isinstance(model, nn.DataParallel):
        return model.module
    # Nothing can be compiled before dynamo is imported, which takes seconds.
    frames = sys.modules.get("torch._dynamo.eval_frame")
    return model._orig_mod if frames is not None and isinstance(model, frames.OptimizedModule) else None
