"""A model's residual branches, and the modules that return them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from resgrow.surgery.exclude import excluded_parameters
from resgrow.surgery.forward import AnyInputs, Example
from resgrow.surgery.structure import ResidualBranch, residuals, traced
from resgrow.surgery.structure.calls import Calls
from resgrow.surgery.structure.ends import ends
from resgrow.surgery.structure.trace import Traced


@dataclass(frozen=True)
class End:
    """The module at ``path`` returns a tensor of this shape on the example: a branch, or what that is a multiple of.

    ``last``: names of the parameters in which the branch ends.
    """

    path: str
    shape: tuple[int, ...]
    last: tuple[str, ...]


def found_residuals(
    model: nn.Module, example_inputs: Example | AnyInputs, exclude: Sequence[str], op: str
) -> tuple[Traced, list[ResidualBranch]]:
    """Branches without anything excluded inside, in the order of their additions.

    Raises:
        ValueError: ``torch.export`` cannot follow the model, bad example_inputs, an exclude that matches nothing.
        TypeError: exclude is one string, example_inputs are no tensors.
    """
    excluded = excluded_parameters(model, exclude, op)
    # With gradients, torch's layers do not take shortcuts that hide their parts.
    with torch.enable_grad():
        graph = traced(model, example_inputs, op)
    return graph, [each for each in residuals(model, graph) if not excluded.intersection(each.parameters)]


def residual_ends(model: nn.Module, example: Example, exclude: Sequence[str], op: str) -> dict[str, End | None]:
    """By the branch's path what returns it; None where no module, called once, does. Raises as `found_residuals`."""
    graph, branches = found_residuals(model, example, exclude, op)
    calls = Calls.of(model, graph, example, op)
    found: dict[str, End | None] = {}
    modules = ends(graph, branches, calls)
    for branch in branches:
        path = modules[branch.path]
        call = None if path is None else calls.only(path)
        found[branch.path] = None if path is None or call is None else End(path, call.after or (), branch.last)
    return found
