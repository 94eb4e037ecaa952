"""Reading ``(input, target)`` batches the same way everywhere, with clear errors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

Batch = tuple[Any, Tensor]


def iterate(op: str, data: Iterable[Any] | Batch, device: torch.device) -> Iterator[Batch]:
    """Yields the batches of ``data`` on ``device``; a single ``(input, target)`` pair of tensors is one batch.

    An input may be a tensor, a tuple or list (positional arguments) or a dict (keyword arguments).

    Raises:
        ValueError: ``data`` yields nothing, or a batch without samples.
        TypeError: an item is not an ``(input, target)`` pair whose target is a tensor.
    """
    if isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(item, Tensor) for item in data):
        data = [tuple(data)]
    count = 0
    for count, item in enumerate(data, start=1):
        if not isinstance(item, (tuple, list)) or len(item) != 2 or not isinstance(item[1], Tensor):
            raise TypeError(
                f"{op}: data must yield (input, target) pairs with a tensor target "
                f"(batch {count} is {_describe(item)}); wrap the loader in a generator that yields such pairs"
            )
        if item[1].dim() == 0 or item[1].shape[0] == 0:
            raise ValueError(f"{op}: batch {count} has no samples (target shape {tuple(item[1].shape)})")
        yield move(item[0], device), item[1].to(device)
    if count == 0:
        raise ValueError(f"{op}: data yielded no batches; pass a loader or a list with at least one batch")


def move(value: Any, device: torch.device) -> Any:
    """``value`` with every tensor inside tuples, lists and dicts on ``device``."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: move(entry, device) for key, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(move(entry, device) for entry in value)
    return value


def take(op: str, data: Iterable[Any] | Batch, device: torch.device, samples: int) -> list[Batch]:
    """The first batches of ``data`` that hold at least ``samples`` samples together, or all there are."""
    taken: list[Batch] = []
    count = 0
    for inputs, target in iterate(op, data, device):
        taken.append((inputs, target))
        count += target.shape[0]
        if count >= samples:
            break
    return taken


def fewer(batches: Sequence[Batch], samples: int) -> list[Batch]:
    """The first batches that hold at least ``samples`` samples together, or all there are."""
    taken, count = [], 0
    for batch in batches:
        taken.append(batch)
        count += batch[1].shape[0]
        if count >= samples:
            break
    return taken


def call(model: nn.Module, value: Any, weights: Mapping[str, Tensor] | None = None) -> Any:
    """``model`` applied to a batch's input: tensor, positional arguments or keyword arguments.

    ``weights`` stand in for parameters of those names during the call; the model itself is not changed.
    """
    args: tuple[Any, ...] = tuple(value) if isinstance(value, (tuple, list)) else ()
    kwargs: dict[str, Any] = value if isinstance(value, dict) else {}
    if not isinstance(value, (tuple, list, dict)):
        args = (value,)
    return functional_call(model, dict(weights), args, kwargs) if weights else model(*args, **kwargs)


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter; the CPU for a model without parameters."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _describe(item: Any) -> str:
    if isinstance(item, (tuple, list)):
        return f"a {type(item).__name__} of {', '.join(type(entry).__name__ for entry in item)}"
    return f"a {type(item).__name__}"
