"""The recursion of diagonals by definition, with explicit Jacobians in float64: what ``lecun`` is compared with.

A network is a list of functions of earlier values. From ``d`` and ``g`` at a function's output,
``d_i = sum_j (dy_j/dx_i)^2 d_j + (d^2 y_j/dx_i^2) g_j`` for each of its inputs, parameters included, and an input of
several functions gets the sum. Nothing else happens here: no rule per layer, no shortcut.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Step:
    """``values[output] = function(*inputs)``; ``curved=False`` leaves the second derivatives out."""

    function: Callable[..., Tensor]
    inputs: tuple[str, ...]
    output: str
    curved: bool = True


def recursion(steps: list[Step], values: dict[str, Tensor], d: Tensor, g: Tensor) -> dict[str, Tensor]:
    """Curvature of every value, by name, from curvature and gradient at the last step's output."""
    values = {name: value.detach() for name, value in values.items()}
    for step in steps:
        values[step.output] = step.function(*(values[name] for name in step.inputs)).detach()
    ds, gs = {steps[-1].output: d}, {steps[-1].output: g}
    for step in reversed(steps):
        if step.output not in ds:
            continue
        inputs = tuple(values[name] for name in step.inputs)
        for position, name in enumerate(step.inputs):
            if values[name].is_floating_point():
                through = passed_back(step, inputs, position, ds[step.output], gs[step.output])
                ds[name], gs[name] = (old.get(name, 0) + new for old, new in zip((ds, gs), through, strict=True))
    return ds


def passed_back(step: Step, inputs: tuple[Tensor, ...], position: int, d: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """``(d, g)`` that one step passes to one of its inputs."""
    x = inputs[position]

    def function(flat: Tensor) -> Tensor:
        # Out of reach of functions that work in place.
        arguments = [t.clone() for t in inputs]
        arguments[position] = flat.view_as(x).clone()
        return step.function(*arguments).flatten()

    flat = x.flatten()
    jacobian = torch.autograd.functional.jacobian(function, flat)
    result = (jacobian.square() * d.flatten()[:, None]).sum(0)
    if step.curved:
        hessian = torch.autograd.functional.hessian(lambda t: (function(t) * g.flatten()).sum(), flat)
        result = result + hessian.diagonal()
    return result.view_as(x), (jacobian * g.flatten()[:, None]).sum(0).view_as(x)
