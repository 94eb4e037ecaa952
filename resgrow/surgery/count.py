"""Parameters and multiply-accumulates of a model, as budgets and costs of units count them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from resgrow.surgery.forward import AnyInputs, Example, outputs


def count_params(model: nn.Module) -> int:
    """Number of parameter elements; shared parameters count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, example_inputs: AnyInputs, masks: Mapping[str, Tensor] | None = None) -> int:
    """Multiply-accumulates of all Conv2d and Linear layers for one sample; bias additions do not count.

    These are what removing weights can save, and the unit of budgets. `profile` counts every product.

    Args:
        model: any model; it is run once in evaluation mode.
        example_inputs: a tensor, the sequence of the model's arguments, or a mapping of its keyword arguments;
            dimension 0 is the batch.
        masks: where given, only present weights count.

    Raises:
        ValueError, TypeError: as `layer_positions`.
    """
    present = {id(model.get_parameter(name)): int(mask.sum()) for name, mask in (masks or {}).items()}
    total = 0
    for name, positions in layer_positions(model, example_inputs).items():
        weight = model.get_submodule(name).get_parameter("weight")
        total += round(positions * present.get(id(weight), weight.numel()))
    return total


def layer_positions(model: nn.Module, example_inputs: AnyInputs) -> dict[str, float]:
    """How often one sample uses each weight of each Conv2d and Linear: output positions, summed over calls.

    Returns:
        ``{module name: positions}`` for the layers that ran; MACs per sample are positions times weights.

    Raises:
        ValueError: an empty batch, or the model does not run on the inputs.
        TypeError: example_inputs are not tensors, or the model returns none.
    """
    example = Example.of(example_inputs, "layer_positions")
    used: dict[str, float] = {}
    with _tapped(model, used, batch=example.tensors()[0].shape[0]):
        outputs(model, example, "layer_positions")
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
