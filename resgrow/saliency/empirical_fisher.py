"""Blocks of the empirical Fisher matrix, from per-sample gradients, a few samples at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resgrow._modes import eval_mode
from resgrow.curvature.batches import call
from resgrow.curvature.heads import Head
from resgrow.curvature.request import result_dtype
from resgrow.saliency.request import Request

# Numbers in the per-sample gradients that are in memory together: 256 MiB in float32.
CHUNK = 2**26


def fisher_blocks(request: Request, size: int) -> dict[str, Tensor]:
    """``1/N sum_n g_n g_n^T`` with ``g_n`` the gradient of sample ``n``'s loss, over parts of each parameter's rows.

    A row of ``D`` elements is cut into ``ceil(D / size)`` parts of even length, the last one padded with zeros; each
    element of a vector is a row. Memory: at most ``size`` numbers per element.

    Returns:
        ``{parameter name: (O, parts, length, length)}``.
    """
    head, parameters = request.head(), request.parameters
    sums = {name: _zeros(p, size) for name, p in parameters.items()}
    samples = max(1, CHUNK // max(1, sum(p.numel() for p in parameters.values())))
    seen, weight = 0, 0.0
    for inputs, target in request.batches():
        for start in range(0, len(target), samples):
            piece = slice(start, start + samples)
            part, labels = _cut(inputs, piece, len(target)), target[piece]
            for name, gradients in per_sample_gradients(request.model, head, part, labels).items():
                _add_products(sums[name], gradients)
            seen += len(labels)
            with eval_mode(request.model), torch.no_grad():
                weight += head.total(call(request.model, part), labels)
    # Sample n's own loss, such that their mean is the mean loss, is its share of head.loss times seen / weight.
    return {name: total.mul_(seen / weight**2) for name, total in sums.items()}


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


def _cut(value: Any, piece: slice, samples: int) -> Any:
    """Some samples of a batch's input: of all tensors in it that have one row per sample."""
    if isinstance(value, Tensor):
        return value[piece] if value.dim() and value.shape[0] == samples else value
    if isinstance(value, dict):
        return {key: _cut(entry, piece, samples) for key, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_cut(entry, piece, samples) for entry in value)
    return value


def per_sample_gradients(model: nn.Module, head: Head, inputs: Any, target: Tensor) -> dict[str, Tensor]:
    """``{name: (n, *shape)}``: the gradient of each sample's share of ``head.loss``."""
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def product(weights: dict[str, Tensor], x: Tensor, v: Tensor) -> Tensor:
        return (torch.func.functional_call(model, weights, (x[None],)) * v[None]).sum()

    with eval_mode(model):
        with torch.no_grad():
            output = call(model, inputs)
        v = head.gradient(output, target)
        return torch.func.vmap(torch.func.grad(product), (None, 0, 0))(parameters, inputs, v)
