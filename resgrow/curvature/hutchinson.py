"""Hutchinson's estimate of the Hessian's diagonal (Hutchinson 1990; Bekas, Kokiopoulou & Saad 2007)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from resgrow.curvature.batches import Batch
from resgrow.curvature.double import Differentiable, differentiate, twice
from resgrow.curvature.heads.base import signs
from resgrow.curvature.progress import Meter
from resgrow.curvature.request import Request, inverse, result_dtype
from resgrow.curvature.squares import squares


def hutchinson(request: Request) -> dict[str, Tensor]:
    """``E[z * Hz]`` with random signs ``z``, drawn anew for every batch and probe, see ``curvature``.

    With the control variate ``G``, the generalised Gauss-Newton matrix: ``diag(G) + E[z * (H - G) z]``. The first term
    is exact, so that only the residual is noisy. Between layers ``H - G`` is never zero, not even in a ReLU network
    (two layers' weights multiply each other), and that noise would be most of it; so ``z`` is then zero outside one
    layer at a time. Within a layer's own block ``H = G`` wherever the network is piecewise linear in its weights.
    """
    totals = {name: p.new_zeros(p.shape, dtype=result_dtype(p)) for name, p in request.parameters.items()}
    weight = 0.0
    for batch in request.batches():
        total = _probes(request, batch, totals)
        weight += total
        if request.control_variate and total > 0:
            # On the batch at hand: data are read once, and augmented ones are the same for both terms.
            only = replace(request, data=[batch], method="ggn", samples=1, control_variate=False, meter=Meter())
            for name, value in squares(only).items():
                totals[name].add_(value, alpha=total)
    scale = inverse("curvature", weight)
    return {name: total.mul_(scale) for name, total in totals.items()}


def _probes(request: Request, batch: Batch, totals: dict[str, Tensor]) -> float:
    """All probes of one batch; returns what its loss counts for."""
    with twice(request):
        graph = differentiate(request, batch)
        for _ in range(request.samples):
            for block in _blocks(request):
                _probe(request, graph, block, totals)
    return graph.total


def _blocks(request: Request) -> list[dict[str, Tensor]]:
    """The parameters that are probed together: all, or each module's own."""
    if not request.control_variate:
        return [request.parameters]
    blocks: dict[str, dict[str, Tensor]] = {}
    for name, parameter in request.parameters.items():
        blocks.setdefault(name.rpartition(".")[0], {})[name] = parameter
    return list(blocks.values())


def _probe(request: Request, graph: Differentiable, parameters: dict[str, Tensor], totals: dict[str, Tensor]) -> None:
    """Adds one batch's ``z * Hz``, or ``z * (H - G) z``, over the number of probes; ``z`` is zero elsewhere."""
    z = {name: signs(p.detach(), request.generator) for name, p in parameters.items()}
    linked = [(g, z[name]) for name, g in graph.gradients.items() if g is not None and name in z]
    product = _vjp([g for g, _ in linked], parameters, [v for _, v in linked])
    for name, value in product.items():
        totals[name].add_(z[name] * value, alpha=1 / request.samples)
    if request.control_variate:
        for name, value in _gauss_newton(request, graph, parameters, z).items():
            totals[name].sub_(z[name] * value, alpha=1 / request.samples)


def _gauss_newton(
    request: Request, graph: Differentiable, parameters: dict[str, Tensor], z: dict[str, Tensor]
) -> dict[str, Tensor]:
    """``J^T (d2l/df2) J z``.

    ``J z`` is the derivative of ``J^T u`` by ``u`` in the direction ``z``: two backward passes, which all operations
    have, where forward-mode differentiation would need a rule for each.
    """
    output = graph.output
    u = torch.zeros_like(output, requires_grad=True)
    pulled = torch.autograd.grad(output, list(parameters.values()), u, create_graph=True, allow_unused=True)
    linked = [(g, z[name]) for name, g in zip(parameters, pulled, strict=True) if g is not None]
    if not linked:
        return {}
    (pushed,) = torch.autograd.grad([g for g, _ in linked], u, [v for _, v in linked])
    return _vjp([output], parameters, [_output_product(request, graph, pushed)])


def _output_product(request: Request, graph: Differentiable, vector: Tensor) -> Tensor:
    """``d2l/df2`` times ``vector``, at the output."""
    f = graph.output.detach().requires_grad_()
    (first,) = torch.autograd.grad(request.head.loss(f, graph.target), f, create_graph=True)
    if not first.requires_grad:
        return torch.zeros_like(f)
    (product,) = torch.autograd.grad(first, f, vector, allow_unused=True)
    return torch.zeros_like(f) if product is None else product


def _vjp(outputs: list[Tensor], parameters: dict[str, Tensor], vectors: list[Tensor]) -> dict[str, Tensor]:
    """``sum_i vector_i^T d output_i / d parameter``, for the parameters that outputs depend on."""
    if not outputs:
        return {}
    found = torch.autograd.grad(outputs, list(parameters.values()), vectors, retain_graph=True, allow_unused=True)
    return {name: value for name, value in zip(parameters, found, strict=True) if value is not None}
