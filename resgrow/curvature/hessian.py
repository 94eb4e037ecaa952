"""The exact diagonal of the Hessian, element by element."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from resgrow.curvature.double import Differentiable, differentiate, twice
from resgrow.curvature.request import Request, inverse, result_dtype

# Numbers that the backward passes of one chunk may hold per intermediate result; 64 MB in float32.
BUDGET = 2**24
# Longer chunks gain no speed.
LONGEST = 256


def hessian(request: Request) -> dict[str, Tensor]:
    """Diagonal of the Hessian of the mean loss, signed, see ``curvature``.

    Row ``k`` of the Hessian is the gradient of the ``k``-th entry of the gradient: one backward pass through the
    gradient's graph per parameter element and batch, in chunks of unit vectors that share a pass. The graph is built
    once per batch, and its memory is a small multiple of a training step's plus that of a chunk.
    """
    totals = {name: p.new_zeros(p.shape, dtype=result_dtype(p)) for name, p in request.parameters.items()}
    weight = 0.0
    for batch in request.batches():
        with twice(request):
            with _Size() as size:
                graph = differentiate(request, batch)
            _Rows(request, graph, size.numbers).add_to(totals)
        weight += graph.total
    scale = inverse("curvature", weight)
    return {name: total.mul_(scale) for name, total in totals.items()}


class _Rows:
    """The diagonals of one batch's Hessian."""

    def __init__(self, request: Request, graph: Differentiable, numbers: int) -> None:
        self.request, self.graph, self.numbers = request, graph, numbers
        self.batched = True

    def add_to(self, totals: dict[str, Tensor]) -> None:
        for name, parameter in self.request.parameters.items():
            gradient = self.graph.gradients[name]
            if gradient is None:
                continue
            chunk = min(LONGEST, max(1, BUDGET // (self.numbers + parameter.numel())))
            total = totals[name].view(-1)
            for start in range(0, parameter.numel(), chunk):
                entries = torch.arange(start, min(start + chunk, parameter.numel()), device=parameter.device)
                total[entries] += self._diagonal(gradient, parameter, entries).to(total.dtype)
                self.request.meter.step(len(entries))

    def _diagonal(self, gradient: Tensor, parameter: Tensor, entries: Tensor) -> Tensor:
        units = gradient.new_zeros(len(entries), gradient.numel())
        places = torch.arange(len(entries), device=units.device), entries
        units[places] = 1
        units = units.view(-1, *gradient.shape)
        if self.batched:
            try:
                return _product(gradient, parameter, units, batched=True).flatten(1)[places]
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:
                # Some derivatives cannot be batched; what else may be wrong shows again below.
                self.batched = False
        rows = (_product(gradient, parameter, unit, batched=False) for unit in units)
        return torch.stack([row.flatten()[k] for row, k in zip(rows, entries, strict=True)])


def _product(gradient: Tensor, parameter: Tensor, vector: Tensor, batched: bool) -> Tensor:
    """Rows of the Hessian, or zeros where the gradient's graph does not lead back to the parameter."""
    (rows,) = torch.autograd.grad(
        gradient, parameter, vector, retain_graph=True, allow_unused=True, is_grads_batched=batched
    )
    return torch.zeros_like(vector) if rows is None else rows


class _Size(TorchDispatchMode):
    """Counts the numbers in all intermediate results: what one vector of a chunk may hold."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.numbers += result.numel()
        return result
