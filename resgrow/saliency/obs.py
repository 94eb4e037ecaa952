"""Optimal Brain Surgeon: from which matrices, with which damping."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from resgrow.curvature.damping import weight_names
from resgrow.curvature.request import result_dtype
from resgrow.saliency.gradient_blocks import gradient_blocks
from resgrow.saliency.input_moments import input_moments
from resgrow.saliency.layers import Layer, layers_of, refuse_attention
from resgrow.saliency.quadratic import Quadratic, Surgeon, explained
from resgrow.saliency.request import Request
from resgrow.saliency.result import LOSS, Saliency

# Weights per block, at most.
BLOCK_SIZE = 64
LAYER_DAMPING = 0.01
LAYER_UNIT = "rise of the squared error of the layer's output, mean over samples"


def obs(request: Request) -> Saliency:
    """``w_k^2 / (2 [H^-1]_kk)`` and the quadratic models that survivors are corrected by.

    Raises:
        ValueError: an unknown ``hessian``, an option that it does not have, or matrices that are not positive definite.
    """
    name = request.options.get("hessian", "fisher")
    if name not in _KINDS:
        raise ValueError(f"saliency: hessian must be one of {', '.join(_KINDS)} (got {name!r})")
    kind = _KINDS[name]
    for option in request.options:
        if option not in ("hessian", "damping", *kind.options):
            takes = ", ".join(("damping", *kind.options))
            raise ValueError(f"saliency: 'obs' with hessian={name!r} takes {takes} (got {option}); leave it out")
    damping = request.options.get("damping", kind.damping)
    if damping == "auto":
        raise ValueError("saliency: damping must be a number for 'obs' (got 'auto'); leave it out for the default")
    return kind.score(request, name, float(damping))


def _blocks(request: Request, kind: str, damping: float) -> Saliency:
    """Blocks of a matrix of the mean loss, as in WoodFisher (Singh & Alistarh 2020)."""
    blocks = gradient_blocks(request, kind, request.options.get("block_size", BLOCK_SIZE))
    d = damping * _mean_diagonal(blocks, request.parameters)
    quadratics = {name: Quadratic(block, d) for name, block in blocks.items()}
    return Saliency(_scores(request, quadratics), "obs", LOSS, damping=damping, compensation=Surgeon(quadratics))


def layer_surgeon(request: Request, enough: int | None = None) -> Surgeon:
    """Corrects the weights of each layer that runs as a module such that its output stays what it is.

    Args:
        enough: see `input_moments`.
    """
    moments, _ = input_moments(request, _refittable(request), enough)
    return Surgeon(_layer_quadratics(moments, LAYER_DAMPING))


def _refittable(request: Request) -> list[Layer]:
    return [layer for layer in layers_of(request.model) if not layer.transposed]


def _layer_quadratics(moments: Mapping[str, Tensor], damping: float) -> dict[str, Quadratic]:
    return {
        name: Quadratic(h, damping * float(h.diagonal(dim1=2, dim2=3).double().mean())) for name, h in moments.items()
    }


def _layer(request: Request, kind: str, damping: float) -> Saliency:
    """``2 X X^T`` of each layer's own inputs, as in Optimal Brain Compression (Frantar & Alistarh 2022)."""
    refuse_attention(request.model, "obs")
    layers = _refittable(request)
    moments, positions = input_moments(request, layers)
    parameters = request.parameters
    quadratics = _layer_quadratics(moments, damping)
    scores = {name: torch.zeros_like(p, dtype=result_dtype(p)) for name, p in parameters.items()}
    scores |= _scores(request, quadratics)
    for layer in layers:
        if layer.bias is not None:
            # The weight of the input 1 at every position.
            scores[layer.bias] = scores[layer.bias] + parameters[layer.bias].square() * positions.get(layer.weight, 0)
    return Saliency(scores, "obs", LAYER_UNIT, damping=damping, compensation=Surgeon(quadratics))


@dataclass(frozen=True)
class _Kind:
    """What ``hessian`` may be: how scores are made, the default damping, the options beside it."""

    score: Callable[[Request, str, float], Saliency]
    damping: float
    options: tuple[str, ...]


_KINDS: dict[str, _Kind] = {
    "fisher": _Kind(_blocks, 1.0, ("block_size",)),
    "ggn-mc": _Kind(_blocks, 1.0, ("block_size", "samples", "temperature", "generator")),
    "layer": _Kind(_layer, LAYER_DAMPING, ()),
}


def _scores(request: Request, quadratics: Mapping[str, Quadratic]) -> dict[str, Tensor]:
    scores = {}
    for name, quadratic in quadratics.items():
        weight = request.parameters[name]
        with explained(name):
            scores[name] = quadratic.scores(weight.to(result_dtype(weight)))
    return scores


def _mean_diagonal(blocks: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> float:
    """Over all weights of all layers together, as for damped Optimal Brain Damage."""
    weights = weight_names(parameters) or list(parameters)
    total = sum(float(blocks[name].diagonal(dim1=2, dim2=3).double().sum()) for name in weights)
    return total / max(1, sum(parameters[name].numel() for name in weights))
