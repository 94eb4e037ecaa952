"""What modules inside a model are called with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from resgrow.surgery.forward import Example, outputs

_PLAIN = (int, float, str, torch.dtype, torch.device, torch.memory_format)


@dataclass
class Seen:
    """The arguments and the result of a module's first call in a forward pass, copied, and the number of its calls.

    Arguments are tensors, numbers, strings and what holds them; None stands for any other.

    ``same``: in every call the result's first tensor was that of the arguments, to the bit.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any = None
    calls: int = 0
    same: bool = True

    @property
    def input(self) -> Tensor | None:
        return first_tensor([*self.args, *self.kwargs.values()])

    @property
    def output(self) -> Tensor | None:
        return first_tensor(self.result)


@dataclass
class _Watch:
    seen: Seen | None = None
    open: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Copied, since layers may write over their inputs.
        self.open.append((_copied(args), _copied(kwargs)))

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        given = self.open.pop()
        if self.seen is None:
            self.seen = Seen(*given, _copied(result))
        x, y = first_tensor([*given[0], *given[1].values()]), first_tensor(result)
        self.seen.calls += 1
        self.seen.same = self.seen.same and x is not None and y is not None and equal(x, y)


def observed(model: nn.Module, example: Example, modules: Mapping[str, nn.Module], op: str) -> dict[str, Seen]:
    """By the modules' names, for those that are called in a forward pass in evaluation mode.

    Raises:
        ValueError: the model does not run on it; the original error is chained.
    """
    watches = {name: _Watch() for name in modules}
    handles = []
    try:
        for name, module in modules.items():
            handles.append(module.register_forward_pre_hook(watches[name].before, with_kwargs=True))
            handles.append(module.register_forward_hook(watches[name].after, with_kwargs=True))
        outputs(model, example, op)
    finally:
        for handle in handles:
            handle.remove()
    return {name: watch.seen for name, watch in watches.items() if watch.seen is not None}


def first_tensor(given: Any) -> Tensor | None:
    return next(_tensors(given), None)


def equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)


def _tensors(given: Any) -> Any:
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, list | tuple | Mapping):
        for each in given.values() if isinstance(given, Mapping) else given:
            yield from _tensors(each)


def _copied(given: Any) -> Any:
    """Tensors copied; None for objects that a call may change, such as caches of keys and values."""
    if isinstance(given, Tensor):
        return given.detach().clone()
    if isinstance(given, dict):
        return {key: _copied(each) for key, each in given.items()}
    if isinstance(given, list | tuple):
        return type(given)(_copied(each) for each in given) if type(given) in (list, tuple) else _copied(tuple(given))
    return given if isinstance(given, _PLAIN) else None
