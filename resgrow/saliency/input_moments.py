"""Second moments of each layer's inputs: what the error of its output depends on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from resgrow.curvature.request import result_dtype
from resgrow.saliency.layers import Layer, run, watched
from resgrow.saliency.request import Request

# Numbers in the unfolded inputs that are in memory together: 64 MiB in float32.
CHUNK = 2**24


def input_moments(request: Request, layers: list[Layer]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """``2/N sum_n X_n X_n^T`` with ``X_n`` the (unfolded) inputs of sample ``n``, one column per output position.

    Half of ``dw^T H dw`` is then a row's squared error of the output, summed over positions, mean over ``N`` samples.

    Returns:
        ``{weight name: (groups, 1, D, D)}`` with ``D`` the elements of a row of the weight, and ``{weight name: output
        positions per sample}``. Runs of a layer add up; layers that did not run are left out.
    """
    sums = {layer.weight: _zeros(layer) for layer in layers}
    positions = dict.fromkeys(sums, 0.0)

    def visit(layer: Layer, x: Tensor) -> None:
        total = sums[layer.weight]
        x = x if layer.spatial == 0 or x.dim() > layer.spatial + 1 else x[None]
        for piece in x.split(max(1, CHUNK // max(1, _unfolded_size(layer, x)))):
            columns = _patches(layer, piece).to(total.dtype)
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


def _unfolded_size(layer: Layer, x: Tensor) -> int:
    """Numbers in one sample's patches, at most."""
    module: Any = layer.module
    taps = module.weight[0, 0].numel()
    strides = module.stride if layer.spatial else ()
    size = x[0].numel() * taps
    for stride in strides:
        size //= stride
    return size


def _patches(layer: Layer, x: Tensor) -> Tensor:
    """What each output position sees of the input: ``(groups, samples * positions, D)``."""
    if layer.spatial == 0:
        return x.reshape(1, -1, x.shape[-1])
    module: Any = layer.module
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    for dim, (size, stride, dilation) in enumerate(
        zip(module.kernel_size, module.stride, module.dilation, strict=True), start=2
    ):
        x = x.unfold(dim, (size - 1) * dilation + 1, stride)[..., ::dilation]
    # (N, C, *positions, *taps) to (groups, N, *positions, C / groups, *taps)
    x = x.unflatten(1, (layer.groups, -1)).movedim(1, 0)
    x = x.movedim(2, 2 + layer.spatial)
    return x.flatten(2 + layer.spatial).flatten(1, 1 + layer.spatial)
