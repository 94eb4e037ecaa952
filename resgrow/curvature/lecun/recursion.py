"""One forward pass that is recorded, and one backward pass that carries curvature instead of gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from resgrow._modes import eval_mode
from resgrow.curvature.lecun.record import Recorder, check_graph, module_path
from resgrow.curvature.lecun.tape import Tape
from resgrow.curvature.request import Request, inverse, result_dtype


def lecun(request: Request) -> dict[str, Tensor]:
    """An *approximate* diagonal of the mean loss's Hessian: the recursion of LeCun (1989) and Becker & LeCun (1989).

    From the diagonal of the loss's Hessian at the output, every function passes back ``d_x = sum_j (dy_j/dx_i)^2 d_j
    + (d^2 y_j / dx_i^2) g_j``, with ``g`` the loss's gradient: what two elements do together is left out, at the
    output, in every layer, and between the positions that share a convolution's weight. Exact only where nothing is
    left out, as for the single layer of a linear model with one output. Entries are negative where curved activations
    make them so. One backward pass, and an ordinary one before it where there are curved activations.

    For bfloat16 parameters each batch's values are rounded to bfloat16 before they are added up in float32.

    Raises:
        ValueError: a function of the model has no rule; the message names it and the module. The model is left as
            it was found.
    """
    wanted = request.parameters
    totals = {
        name: torch.zeros_like(p, dtype=result_dtype(p), requires_grad=False, memory_format=torch.contiguous_format)
        for name, p in wanted.items()
    }
    weight = 0.0
    with eval_mode(request.model), module_path(request.model) as place:
        for inputs, target in request.batches():
            tape = Tape()
            leaves = {name: p.detach().requires_grad_() for name, p in wanted.items()}
            with torch.enable_grad(), Recorder(tape, place):
                output = request.output(inputs, leaves)
            weight += request.head.total(output.detach(), target)
            for total, found in zip(totals.values(), _backward(request, tape, output, target, leaves), strict=True):
                if found is not None:
                    total += found
            del output
    scale = inverse("curvature", weight)
    return {name: total.mul_(scale) for name, total in totals.items()}


def _backward(request: Request, tape: Tape, output: Tensor, target: Tensor, leaves: dict[str, Tensor]) -> Any:
    """For each leaf its curvature of the batch's ``head.loss``, or None where it has no influence."""
    if not output.requires_grad:
        raise ValueError("curvature: the model's output does not depend on any trainable parameter")
    check_graph(output)
    values = output.detach()
    tape.send_gradient(output, lambda: request.head.gradient(values, target))
    return torch.autograd.grad(output, list(leaves.values()), request.head.diagonal(values, target), allow_unused=True)
