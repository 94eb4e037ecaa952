"""One forward pass that is recorded, and one backward pass that carries curvature instead of gradients."""

from __future__ import annotations

from collections.abc import Callable
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
    totals: dict[str, Tensor] = {}
    weight = 0.0
    with eval_mode(request.model), module_path(request.model) as place:
        for inputs, target in request.batches():
            found, total = _batch(request, place, wanted, inputs, target)
            weight += total
            for name, value in found.items():
                if name in totals:
                    totals[name] += value
                else:
                    totals[name] = value.to(result_dtype(wanted[name])).contiguous()
    scale = inverse("curvature", weight)
    return {
        name: totals[name].mul_(scale)
        if name in totals
        else torch.zeros_like(p, dtype=result_dtype(p), requires_grad=False)
        for name, p in wanted.items()
    }


def _batch(
    request: Request, place: Callable[[], str], wanted: dict[str, Tensor], inputs: Any, target: Tensor
) -> tuple[dict[str, Tensor], float]:
    """Curvature of one batch's ``head.loss`` for the parameters that have an influence, and the batch's total."""
    tape = Tape()
    leaves = {name: p.detach().requires_grad_() for name, p in wanted.items()}
    with torch.enable_grad(), Recorder(tape, place):
        output = request.output(inputs, leaves)
    if not output.requires_grad:
        raise ValueError("curvature: the model's output does not depend on any trainable parameter")
    check_graph(output)
    values = output.detach()
    tape.send_gradient(output, lambda: request.head.gradient(values, target))
    d = request.head.diagonal(values, target)
    found = torch.autograd.grad(output, list(leaves.values()), d, allow_unused=True)
    return (
        {name: value for name, value in zip(leaves, found, strict=True) if value is not None},
        request.head.total(values, target),
    )
