"""Per-sample gradients as they are, for methods that need more than their squares."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from resgrow._modes import eval_mode
from resgrow.curvature.batches import call
from resgrow.curvature.heads import Head
from resgrow.curvature.one_by_one import sample_gradients
from resgrow.curvature.request import result_dtype
from resgrow.curvature.rules import Formula
from resgrow.curvature.taps import Taps
from resgrow.curvature.uses import Use, gradients


def per_sample_gradients(model: nn.Module, head: Head, inputs: Any, target: Tensor) -> dict[str, Tensor]:
    """The gradient of each sample's own share of ``head.loss`` (a sum over the batch) in eval mode.

    Args:
        model: left as it is found.
        head: see ``resgrow.curvature.heads``.
        inputs: one batch's input: a tensor, a tuple of positional arguments or a dict of keyword arguments.
        target: ``(N, *)``.

    Returns:
        ``{parameter name: (N, *shape of the parameter)}`` for every trainable parameter, in float32 (float64 for
        float64 parameters): as much memory as N copies of the model.

    Raises:
        ValueError: samples influence each other, or output or loss are not finite.
    """
    samples = target.shape[0]
    with eval_mode(model):
        taps = Taps(model, lambda value, weights: call(model, value, weights))
        trace, output = taps.forward(inputs, samples)
        vector = head.gradient(output.detach(), target)
        total = {name: p.new_zeros((samples, *p.shape), dtype=result_dtype(p)) for name, p in taps.parameters.items()}

        def visit(formula: Formula, x: Tensor, grad: Tensor) -> None:
            with torch.no_grad():
                uses = [Use(formula, role, x, grad) for role in formula.operands]
                for name, found in gradients(trace, uses, slice(None)).items():
                    if name not in trace.slow:
                        total[name].add_(found)

        if output.requires_grad:
            trace.backward(output, vector, visit, keep_graph=False)
        if trace.slow:
            parameters = [taps.parameters[name] for name in trace.slow]
            for n, _, found in sample_gradients(model, inputs, output.detach(), [vector], parameters):
                for name, grad in zip(trace.slow, found, strict=True):
                    total[name][n] = grad
    return total
