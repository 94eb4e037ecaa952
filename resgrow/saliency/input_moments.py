"""Second moments of each layer's inputs: what the error of its output depends on."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from resgrow.curvature.patches import CHUNK, patches, patches_size
from resgrow.curvature.request import result_dtype
from resgrow.saliency.layers import Layer, run, watched
from resgrow.saliency.request import Request


def input_moments(
    request: Request, layers: list[Layer], enough: int | None = None
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """``2/N sum_n X_n X_n^T`` with ``X_n`` the (unfolded) inputs of sample ``n``, one column per output position.

    Half of ``dw^T H dw`` is then a row's squared error of the output, summed over positions, mean over ``N`` samples.

    Args:
        enough: output positions after which a layer, or twice the elements of its row where that is more, is seen well
            enough: further data do not change its matrix, which is then on a scale of its own.

    Returns:
        ``{weight name: (groups, 1, D, D)}`` with ``D`` the elements of a row of the weight, and ``{weight name: output
        positions per sample}``. Runs of a layer add up; layers that did not run are left out.
    """
    sums = {layer.weight: _zeros(layer) for layer in layers}
    positions = dict.fromkeys(sums, 0.0)

    def visit(layer: Layer, x: Tensor) -> None:
        total = sums[layer.weight]
        row = total.shape[-1]
        most = math.inf if enough is None else max(enough, 2 * row)
        x = x if layer.spatial == 0 or x.dim() > layer.spatial + 1 else x[None]
        for piece in x.split(max(1, int(min(CHUNK, most * row)) // patches_size(layer.module, x))):
            if positions[layer.weight] >= most:
                return
            columns = patches(layer.module, piece).flatten(1, -2).to(total.dtype)
            total[:, 0].baddbmm_(columns.transpose(1, 2), columns, alpha=2)
            positions[layer.weight] += columns.shape[1]

    with watched(layers, visit):
        samples = run(request)
    ran = {name: count / samples for name, count in positions.items() if count}
    return {name: sums[name] / samples for name in ran}, ran


def _zeros(layer: Layer) -> Tensor:
    weight = layer.module.weight
    row = weight[0].numel()
    return torch.zeros(layer.groups, 1, row, row, dtype=result_dtype(weight), device=weight.device)
