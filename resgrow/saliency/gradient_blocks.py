"""Blocks of Fisher and Gauss-Newton matrices, from per-sample gradients of a few samples at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from resgrow._modes import eval_mode
from resgrow.curvature.batches import call
from resgrow.curvature.heads import Head
from resgrow.curvature.per_sample import per_sample_gradients
from resgrow.curvature.request import inverse, result_dtype
from resgrow.saliency.request import Request

# Numbers in the per-sample gradients that are in memory together: 64 MiB in float32, and as much again for a copy.
CHUNK = 2**24


def gradient_blocks(request: Request, kind: str, size: int) -> dict[str, Tensor]:
    """Blocks of a matrix of the mean loss, over parts of each parameter's rows.

    A row of ``D`` elements is cut into ``ceil(D / size)`` parts of even length, the last one padded with zeros; each
    element of a vector is a row. Memory: at most ``size`` numbers per element, up to rounding.

    Args:
        kind: "fisher" for ``1/N sum_n g_n g_n^T`` with ``g_n`` the gradient of sample ``n``'s loss; "ggn-mc" for the
            same with the gradients that random vectors at the output send back, see ``resgrow.curvature``.
        size: elements per block, at most.

    Returns:
        ``{parameter name: (O, parts, length, length)}``.
    """
    head, parameters, generator = request.head(), request.parameters, request.generator()
    draws = request.options.get("samples", 1) if kind == "ggn-mc" else 1
    sums = {name: _zeros(p, size) for name, p in parameters.items()}
    chunk = max(1, CHUNK // max(1, sum(p.numel() for p in parameters.values())))
    seen, weight = 0, 0.0
    for inputs, target in _pieces(request, chunk):
        with eval_mode(request.model), torch.no_grad():
            output = call(request.model, inputs)
        seen += len(target)
        weight += head.total(output, target)
        for _ in range(draws):
            v = head.gradient(output, target) if kind == "fisher" else head.sample(output, target, generator)
            gradients = per_sample_gradients(request.model, _Linear(v), inputs, target)
            for name, total in sums.items():
                # Out of the dict, so that its memory goes before the next one's copy is made.
                _add_products(total, gradients.pop(name))
    scale = inverse("saliency", weight) / draws
    if kind == "fisher":
        # Sample n's own loss, such that their mean is the mean loss, is its share of head.loss times seen / weight.
        scale *= seen / weight
    return {name: total.mul_(scale) for name, total in sums.items()}


def _pieces(request: Request, chunk: int) -> Iterator[tuple[Any, Tensor]]:
    for inputs, target in request.batches():
        for start in range(0, len(target), chunk):
            piece = slice(start, start + chunk)
            yield _cut(inputs, piece, len(target)), target[piece]


def _cut(value: Any, piece: slice, samples: int) -> Any:
    """Some samples of a batch's input: of all tensors in it that have one row per sample."""
    if isinstance(value, Tensor):
        return value[piece] if value.dim() and value.shape[0] == samples else value
    if isinstance(value, dict):
        return {key: _cut(entry, piece, samples) for key, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_cut(entry, piece, samples) for entry in value)
    return value


def _zeros(parameter: Tensor, size: int) -> Tensor:
    rows = parameter.shape[0] if parameter.dim() else 1
    row = parameter.numel() // max(1, rows)
    parts = max(1, -(-row // size))
    length = -(-row // parts)
    return torch.zeros(rows, parts, length, length, dtype=result_dtype(parameter), device=parameter.device)


def _add_products(total: Tensor, gradients: Tensor) -> None:
    """``total += sum_n g_n g_n^T`` by parts; ``gradients`` is ``(n, *parameter shape)``."""
    rows, parts, length, _ = total.shape
    flat = gradients.to(total.dtype).reshape(len(gradients), rows, -1)
    cut = F.pad(flat, (0, parts * length - flat.shape[2])).view(len(flat), rows * parts, length).transpose(0, 1)
    total.view(-1, length, length).baddbmm_(cut.transpose(1, 2), cut)


class _Linear(Head):
    """The loss ``<v, f>``, whose gradient at the output is ``v``."""

    def __init__(self, v: Tensor) -> None:
        self.v = v

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return (output * self.v).sum()

    def total(self, output: Tensor, target: Tensor) -> float:
        return float(len(target))

    def factors(self, output: Tensor, target: Tensor) -> Iterator[tuple[float, Tensor]]:
        yield 1.0, torch.zeros_like(output)

    def sample(self, output: Tensor, target: Tensor, generator: torch.Generator) -> Tensor:
        return torch.zeros_like(output)

    def diagonal(self, output: Tensor, target: Tensor) -> Tensor:
        return torch.zeros_like(output)
