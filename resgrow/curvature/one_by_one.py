"""Gradients of single samples the plain way: the model on one sample at a time. Exact for everything, and slow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from resgrow.curvature.batches import call
from resgrow.curvature.layout import alike
from resgrow.curvature.tapped import replaced, tensors


def sample_gradients(
    model: nn.Module, inputs: Any, output: Tensor, vectors: Sequence[Tensor], parameters: Sequence[Tensor]
) -> Iterator[tuple[int, int, tuple[Tensor, ...]]]:
    """Yields (sample, index of the vector, gradients) of ``sum(vector[n] * output[n])`` for every sample ``n``.

    Args:
        output: the model's output for the whole batch, to compare with.
        vectors: of the output's shape.
        parameters: of the model; they get no ``.grad``.

    Raises:
        ValueError: no input has the samples in its first dimension, or a sample's output depends on others.
    """
    samples = output.shape[0]
    for n in range(samples):
        with torch.enable_grad():
            alone = call(model, first(inputs, samples, 1, n), None)
        check_alone(alone, output, n, 1)
        for index, vector in enumerate(vectors):
            grads = torch.autograd.grad(
                alone,
                parameters,
                vector[n : n + 1],
                retain_graph=index + 1 < len(vectors),
                allow_unused=True,
                materialize_grads=True,
            )
            yield n, index, tuple(grad.detach().to_dense() for grad in grads)


def first(inputs: Any, samples: int, count: int, start: int = 0) -> Any:
    """The input of ``count`` of a batch's ``samples`` samples.

    Raises:
        ValueError: no tensor in it has a first dimension of that size.
    """
    if not any(t.dim() and t.shape[0] == samples for t in tensors(inputs)):
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors(inputs)) or "no tensors"
        raise ValueError(
            f"curvature: samples must be in the first dimension of an input (got {samples} samples and {shapes}); "
            "rearrange the input inside the model"
        )
    return replaced(inputs, lambda t: t[start : start + count] if t.dim() and t.shape[0] == samples else t)


def check_alone(alone: Tensor, output: Tensor, start: int, count: int) -> None:
    """Whether ``count`` samples from ``start`` on have the same output among others as without them.

    Raises:
        ValueError: they have not.
    """
    if not alike(output[start : start + count], alone):
        raise ValueError(
            f"curvature: samples of a batch influence each other's output (sample {start} alone gives another); "
            "a curvature of single samples does not exist then. Freeze what couples them, or use method='hessian'"
        )
