"""Parameters and multiply-accumulates, per layer and in all."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from resgrow.surgery.forward import Inputs, as_inputs, evaluate


@dataclass(frozen=True)
class LayerCount:
    """One layer with parameters of its own.

    ``macs`` are multiply-accumulates per sample when dense (0 for layers other than Conv2d and Linear);
    ``live_params`` and ``live_macs`` leave out masked weights.
    """

    name: str
    kind: str
    params: int
    macs: int
    live_params: int
    live_macs: int


def count_params(model: nn.Module) -> int:
    """Number of parameter elements; shared parameters count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, example_inputs: Inputs, masks: Mapping[str, Tensor] | None = None) -> int:
    """Multiply-accumulates of all Conv2d and Linear layers for one sample; bias additions do not count.

    Args:
        model: any model; it is run once in evaluation mode.
        example_inputs: a tensor, or the sequence of the model's arguments; dimension 0 is the batch.
        masks: where given, only present weights count.

    Raises:
        ValueError, TypeError: as `layer_positions`.
    """
    return sum(layer.live_macs for layer in count_layers(model, example_inputs, masks))


def count_layers(
    model: nn.Module, example_inputs: Inputs, masks: Mapping[str, Tensor] | None = None
) -> list[LayerCount]:
    """One row for each layer that has parameters of its own, in the order of ``model.named_modules()``.

    Arguments and errors are those of `count_macs`. A shared parameter's MACs are counted where it is used.
    """
    positions = layer_positions(model, example_inputs)
    present = _live_counts(model, masks)
    rows = []
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if not own:
            continue
        times = positions.get(name, 0.0)
        weight = own.get("weight")
        rows.append(
            LayerCount(
                name,
                type(module).__name__,
                sum(parameter.numel() for parameter in own.values()),
                round(times * weight.numel()) if weight is not None else 0,
                sum(present[id(parameter)] for parameter in own.values()),
                round(times * present[id(weight)]) if weight is not None else 0,
            )
        )
    return rows


def layer_positions(model: nn.Module, example_inputs: Inputs) -> dict[str, float]:
    """How often one sample uses each weight of each Conv2d and Linear: output positions, summed over calls.

    Returns:
        ``{module name: positions}`` for the layers that ran; MACs per sample are positions times weights.

    Raises:
        ValueError: an empty batch, or the model does not run on the inputs.
        TypeError: example_inputs or the model's output are not tensors.
    """
    inputs = as_inputs(example_inputs, "layer_positions")
    used: dict[str, float] = {}
    with _tapped(model, used, batch=inputs[0].shape[0]):
        evaluate(model, inputs, "layer_positions")
    return used


@contextmanager
def _tapped(model: nn.Module, used: dict[str, float], batch: int) -> Iterator[None]:
    handles = []

    def tap(name: str, module: nn.Conv2d | nn.Linear, channels: int) -> None:
        def record(layer: nn.Module, inputs: Sequence[Any], output: Tensor) -> None:
            used[name] = used.get(name, 0.0) + output.numel() / (channels * batch)

        handles.append(module.register_forward_hook(record))

    try:
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d):
                tap(name, module, module.out_channels)
            elif isinstance(module, nn.Linear):
                tap(name, module, module.out_features)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _live_counts(model: nn.Module, masks: Mapping[str, Tensor] | None) -> dict[int, int]:
    counts = {id(parameter): parameter.numel() for parameter in model.parameters()}
    for name, mask in (masks or {}).items():
        counts[id(model.get_parameter(name))] = int(mask.sum())
    return counts
