"""Weights and activations."""

from __future__ import annotations

import torch
from torch import Tensor

from resgrow.curvature.request import result_dtype
from resgrow.saliency.layers import Layer, layers_of, refuse_attention, run, watched
from resgrow.saliency.request import Request
from resgrow.saliency.result import Saliency


def wanda(request: Request) -> Saliency:
    """``|w| ||x||_2`` with ``x`` the weight's input feature over all samples and positions (Sun et al. 2023, eq. 1).

    A convolution's input feature is an input channel, pixel by pixel. A bias counts as a weight of the input 1 at each
    output position. Layers that run several times add up; parameters of other layers score 0.
    """
    refuse_attention(request.model, "wanda")
    layers = layers_of(request.model)
    squares = {layer.weight: torch.zeros((), dtype=torch.float64) for layer in layers}
    positions = dict.fromkeys(squares, 0)

    def inputs(layer: Layer, x: Tensor) -> None:
        features = layer.features_last(x)
        norm = torch.linalg.vector_norm(features, dim=tuple(range(features.dim() - 1)), dtype=result_dtype(x))
        squares[layer.weight] = squares[layer.weight].to(x.device) + norm.double().square()

    def outputs(layer: Layer, y: Tensor) -> None:
        positions[layer.weight] += layer.features_last(y)[..., 0].numel()

    with watched(layers, inputs), watched(layers, outputs, outputs=True):
        run(request)
    parameters = request.parameters
    scores = {name: torch.zeros_like(p, dtype=result_dtype(p)) for name, p in parameters.items()}
    for layer in layers:
        weight = parameters[layer.weight]
        norms = squares[layer.weight].sqrt().to(weight.device, scores[layer.weight].dtype)
        if norms.dim():
            scores[layer.weight] = weight.abs() * layer.over_inputs(norms)
        if layer.bias is not None:
            scores[layer.bias] = scores[layer.bias] + parameters[layer.bias].abs() * positions[layer.weight] ** 0.5
    return Saliency(scores, "wanda", "norm of the weight's contribution to its layer's output, over all the data")
