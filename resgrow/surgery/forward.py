"""Running a model on example inputs without leaving a trace on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from resgrow._modes import eval_mode

Inputs = Tensor | Sequence[Tensor]
AnyInputs = Inputs | Mapping[str, Any]

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


def evaluate(model: nn.Module, inputs: Sequence[Tensor], op: str) -> Tensor:
    """The one tensor that the model returns on ``inputs`` in evaluation mode.

    Raises:
        ValueError: the model does not run on them; the original error is chained.
        TypeError: the output is not one tensor.
    """
    output = _run(model, Example(tuple(inputs)), op)
    if not isinstance(output, Tensor):
        raise TypeError(f"{op}: the model must return one tensor (got {type(output).__name__})")
    return output


@dataclass(frozen=True)
class Example:
    """Arguments of a forward call."""

    args: tuple[Tensor, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, example_inputs: Example | AnyInputs, op: str) -> Example:
        """From a tensor, the sequence of a model's arguments, or its keyword arguments. Of those the first tensor tells
        the batch, and others need not be tensors.

        Raises:
            TypeError, ValueError: as `as_inputs`.
        """
        if isinstance(example_inputs, Example):
            return example_inputs
        if not isinstance(example_inputs, Mapping):
            return cls(as_inputs(example_inputs, op))
        as_inputs([value for value in example_inputs.values() if isinstance(value, Tensor)], op)
        return cls((), dict(example_inputs))

    def tensors(self) -> list[Tensor]:
        return [x for x in (*self.args, *self.kwargs.values()) if isinstance(x, Tensor)]


def outputs(model: nn.Module, example: Example, op: str) -> tuple[Tensor, ...]:
    """All tensors that the model returns on an example in evaluation mode, however they are packed.

    Raises:
        ValueError: the model does not run on it; the original error is chained.
        TypeError: it returns no tensor.
    """
    made = _run(model, example, op)
    found = tuple(leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor))
    if not found:
        raise TypeError(f"{op}: the model must return tensors (got {type(made).__name__})")
    return found


def _run(model: nn.Module, example: Example, op: str) -> Any:
    with eval_mode(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            return model(*example.args, **example.kwargs)
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            shapes = [tuple(x.shape) for x in example.tensors()]
            raise ValueError(
                f"{op}: the model does not run on example_inputs (got shapes {shapes}: {error}); pass a batch like "
                "those it was trained on"
            ) from error


def finite_outputs(model: nn.Module, example: Example, op: str) -> tuple[Tensor, ...]:
    """The same, for outputs that are to be compared: NaN and infinity are ValueErrors."""
    made = outputs(model, example, op)
    if not all(bool(each.isfinite().all()) for each in made):
        raise ValueError(f"{op}: the model's outputs must be finite to be compared (got NaN or inf); check weights")
    return made


def require_same_outputs(expected: Sequence[Tensor], actual: Sequence[Tensor], op: str) -> None:
    """RuntimeError where outputs differ in number, in shape, or by more than rounding."""
    before, after = ([tuple(each.shape) for each in made] for made in (expected, actual))
    if before != after:
        raise RuntimeError(f"{op}: outputs must keep their shapes (got {before} before and {after} after)")
    for one, other in zip(expected, actual, strict=True):
        if one.is_floating_point() or one.is_complex():
            require_same(one, other, op)


def require_same(expected: Tensor, actual: Tensor, op: str) -> None:
    """RuntimeError where the outputs of a model and of its rewritten copy differ by more than rounding."""
    allowed = _TOLERANCE.get(expected.dtype, 1e-4) * max(1.0, float(expected.abs().max()) if expected.numel() else 0.0)
    difference = float((expected - actual).abs().max()) if expected.numel() else 0.0
    if not difference <= allowed:
        raise RuntimeError(
            f"{op}: outputs must agree to {allowed:.2g} (got a difference of {difference:.2g}); the model does more "
            "in its forward pass than its layers show, for example through hooks or branches"
        )
