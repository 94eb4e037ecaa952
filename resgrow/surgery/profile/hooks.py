"""Seeing every call of every module of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def around_modules(
    model: nn.Module, enter: Callable[[nn.Module, Any, Any], None], leave: Callable[[nn.Module, Any, Any], None]
) -> Iterator[None]:
    """Inside: ``enter(module, args, kwargs)`` before and ``leave(module, args, output)`` after each call of a module,
    the model among them; the latter also where a call ends with an error, which its caller may catch (output None)."""
    handles = []
    try:
        for module in model.modules():
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave, always_call=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
