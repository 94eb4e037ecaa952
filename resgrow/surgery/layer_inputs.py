"""What layers are given when a model runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from resgrow._modes import eval_mode
from resgrow.surgery.forward import AnyInputs, Example

# Nets for images keep channels times side about constant, at 64 * 56 in those for ImageNet.
_NOMINAL_BATCH = 16
_NOMINAL_ROW = 64 * 56
_NOMINAL_SIDES = (7, 56)


@dataclass(frozen=True)
class LayerInput:
    """Shape of a layer's input, and whether it lies in channels_last."""

    shape: tuple[int, ...]
    channels_last: bool


def layer_inputs(
    op: str, model: nn.Module, layers: Sequence[nn.Module], example_inputs: AnyInputs
) -> dict[int, LayerInput]:
    """The largest input of each layer in one forward pass, by ``id(layer)``; layers that were not called are missing.

    The model runs in evaluation mode and without gradient; its statistics and the random numbers of the CPU are as
    before afterwards.

    Args:
        example_inputs: a tensor, the sequence of the model's arguments, or its keyword arguments.

    Raises:
        ValueError: the model does not run on them.
        TypeError: they are not tensors.
    """
    example = Example.of(example_inputs, op)
    found: dict[int, LayerInput] = {}
    handles = [layer.register_forward_pre_hook(_recorder(found), with_kwargs=True) for layer in layers]
    try:
        with eval_mode(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
            model(*example.args, **example.kwargs)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ValueError(f"{op}: the model must run on example_inputs (got {error}); pass a batch of its") from error
    finally:
        for handle in handles:
            handle.remove()
    return found


def nominal_input(layer: nn.Conv2d | nn.Linear) -> LayerInput:
    """Of a layer of which nothing is known: 16 images of side 3584 / channels, between 7 and 56; or 16 rows."""
    if isinstance(layer, nn.Linear):
        return LayerInput((_NOMINAL_BATCH, layer.in_features), False)
    least, most = _NOMINAL_SIDES
    side = max(least, min(most, _NOMINAL_ROW // layer.in_channels))
    return LayerInput((_NOMINAL_BATCH, layer.in_channels, side, side), True)


def _recorder(found: dict[int, LayerInput]) -> Any:
    def record(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else next(iter(kwargs.values()), None)
        if not isinstance(x, Tensor):
            return
        before = found.get(id(layer))
        if before is None or x.numel() > torch.Size(before.shape).numel():
            rows_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
            found[id(layer)] = LayerInput(tuple(x.shape), rows_last)

    return record
