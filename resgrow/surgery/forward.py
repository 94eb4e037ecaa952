"""Running a model on example inputs without leaving a trace on it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from resgrow._modes import eval_mode

Inputs = Tensor | Sequence[Tensor]

# Largest difference of an output that summing in another order explains, relative to the largest output or 1.
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def as_inputs(example_inputs: Inputs, op: str) -> tuple[Tensor, ...]:
    """The positional arguments of a forward call; the first one's dimension 0 is the batch.

    Raises:
        TypeError: not a tensor or a non-empty sequence of tensors.
        ValueError: an empty batch.
    """
    given = (example_inputs,) if isinstance(example_inputs, Tensor) else example_inputs
    inputs = tuple(given) if isinstance(given, Sequence) else ()
    if not inputs or not all(isinstance(x, Tensor) for x in inputs):
        raise TypeError(
            f"{op}: example_inputs must be a tensor or a sequence of tensors (got {type(example_inputs).__name__})"
        )
    if inputs[0].dim() == 0 or inputs[0].shape[0] == 0:
        raise ValueError(
            f"{op}: example_inputs must hold at least one sample in dimension 0 (got shape {tuple(inputs[0].shape)})"
        )
    return inputs


def as_call(example_inputs: Inputs | Mapping[str, Any], op: str) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """Positional and keyword arguments of a forward call. Of keyword arguments the first tensor tells the batch, and
    others need not be tensors.

    Raises:
        TypeError, ValueError: as `as_inputs`.
    """
    if not isinstance(example_inputs, Mapping):
        return as_inputs(example_inputs, op), {}
    named = dict(example_inputs)
    as_inputs([value for value in named.values() if isinstance(value, Tensor)], op)
    return (), named


def evaluate(model: nn.Module, inputs: Sequence[Tensor], op: str) -> Tensor:
    """The model's output on ``inputs`` in evaluation mode.

    Raises:
        ValueError: the model does not run on them; the original error is chained.
        TypeError: the output is not one tensor.
    """
    with eval_mode(model), torch.no_grad():
        try:
            output = model(*inputs)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise ValueError(
                f"{op}: the model does not run on example_inputs (got shapes "
                f"{[tuple(x.shape) for x in inputs]}: {error}); pass a batch like those it was trained on"
            ) from error
    if not isinstance(output, Tensor):
        raise TypeError(f"{op}: the model must return one tensor (got {type(output).__name__})")
    return output


def require_same(expected: Tensor, actual: Tensor, op: str) -> None:
    """RuntimeError where the outputs of a model and of its rewritten copy differ by more than rounding."""
    allowed = _TOLERANCE.get(expected.dtype, 1e-4) * max(1.0, float(expected.abs().max()) if expected.numel() else 0.0)
    difference = float((expected - actual).abs().max()) if expected.numel() else 0.0
    if not difference <= allowed:
        raise RuntimeError(
            f"{op}: outputs must agree to {allowed:.2g} (got a difference of {difference:.2g}); the model does more "
            "in its forward pass than its layers show, for example through hooks or branches"
        )
