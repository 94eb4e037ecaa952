"""Parameters that report the functions they enter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor


class Watcher(Protocol):
    """Whoever decides what a function returns that was called with tapped tensors."""

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any: ...


class Tapped(Tensor):
    """A parameter, or a function of parameters alone, that hands every function it enters to its watcher.

    Attributes:
        live: its value as part of a graph whose leaves are the parameters, by which gradients with respect to it
            become gradients with respect to them. A leaf if it is a parameter.
        plain: its value as an ordinary tensor. Both share the parameter's memory where the function is a view.
        names: the parameters behind it.
        rearranged: each of its elements is an element of one parameter and no two are the same, so that squared
            gradients follow the same path back as gradients.
    """

    watcher: Watcher
    live: Tensor
    plain: Tensor
    names: frozenset[str]
    rearranged: bool

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        first = next(t for t in tensors((args, kwargs)) if isinstance(t, Tapped))
        return first.watcher.call(func, args, kwargs)


def tap(watcher: Watcher, live: Tensor, names: frozenset[str], rearranged: bool) -> Tapped:
    """``live`` in the form that a model can compute with.

    It requires a gradient of its own, which is never taken: whatever gets hold of it without the watcher's knowledge
    shows up in the graph.
    """
    tapped = live.detach().as_subclass(Tapped)
    with torch._C.DisableTorchFunctionSubclass():
        tapped.requires_grad_()
    tapped.watcher, tapped.live, tapped.plain = watcher, live, live.detach()
    tapped.names, tapped.rearranged = names, rearranged
    return tapped


def plain(value: Any) -> Any:
    """``value`` with ordinary tensors in place of tapped ones inside tuples, lists and dicts."""
    return replaced(value, lambda t: t.plain if isinstance(t, Tapped) else t)


def live(value: Any) -> Any:
    """``value`` with the parameters' own graph in place of tapped tensors inside tuples, lists and dicts."""
    return replaced(value, lambda t: t.live if isinstance(t, Tapped) else t)


def replaced(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """``value`` with ``change`` applied to every tensor inside tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: replaced(entry, change) for key, entry in value.items()}
    if isinstance(value, (tuple, list)):
        entries = [replaced(entry, change) for entry in value]
        # Named tuples take their fields one by one; torch.Size and the like hold no tensors.
        if hasattr(value, "_fields"):
            return type(value)(*entries)
        return type(value)(entries) if type(value) in (tuple, list) else value
    return value


def tensors(value: Any) -> list[Tensor]:
    """Every tensor inside tuples, lists and dicts, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        return []
    return [t for entry in value for t in tensors(entry)]


def storage(t: Tensor) -> int:
    """A number that tensors over the same memory have in common."""
    return torch.UntypedStorage.data_ptr(t.untyped_storage())
