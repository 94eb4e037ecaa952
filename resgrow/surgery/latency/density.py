"""Time of a layer over the share of its blocks that is present."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from resgrow.ops.block_sparse import has_kernel
from resgrow.surgery.latency.layer import LayerCall
from resgrow.surgery.speed import measure
from resgrow.surgery.swap_refusals import refusal

# Sparse time is nearly a + b density, so that few points are enough.
_DENSITIES = (0.0, 1 / 16, 1 / 4, 1 / 2, 1.0)


class DensityCurve:
    """What share of its dense time a layer takes, by density: the block-sparse form, or the dense one where it is
    faster; linear between at most five measured densities, and never falling with density.

    A new measurement is kept within what those before it allow. What has been answered once does not change.

    Args:
        measure: sparse over dense time at a density; None for a layer that has to stay dense.
    """

    def __init__(self, measure: Callable[[float], float] | None) -> None:
        self._measure = measure
        self._known: dict[float, float] = {}

    @classmethod
    def of(cls, model: nn.Module, name: str, call: LayerCall, block: tuple[int, int]) -> DensityCurve:
        """Of a layer of the model, as `swap` would decide on it with this block size."""
        layer: Any = model.get_submodule(name)
        parameters = [id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False)]
        shape = tuple(layer.weight.shape)
        shared = parameters.count(id(layer.weight)) > 1
        if shared or refusal(layer) is not None or not has_kernel(shape, block, call.groups):
            return cls(None)

        def ratio(density: float) -> float:
            mask = _random_mask(shape, block, density).to(layer.weight.device)
            found = measure(layer, call.shape, mask, block, channels_last=call.channels_last)
            return found.sparse / found.dense

        return cls(ratio)

    def share(self, density: float) -> float:
        """Of the dense time, at most 1; at a density of 1 the layer is dense."""
        if self._measure is None or density >= 1:
            return 1.0
        upper = next(point for point in _DENSITIES if point > density)
        lower = max(point for point in _DENSITIES if point <= density)
        high, low = self._at(upper), self._at(lower)
        return min(1.0, low + (high - low) * (density - lower) / (upper - lower))

    def _at(self, density: float) -> float:
        assert self._measure is not None
        if density not in self._known:
            least = max((share for at, share in self._known.items() if at < density), default=0.0)
            most = min((share for at, share in self._known.items() if at > density), default=float("inf"))
            self._known[density] = min(max(self._measure(density), least), most)
        return self._known[density]


def _random_mask(shape: tuple[int, ...], block: tuple[int, int], density: float) -> Tensor:
    """Bool over blocks, the same at every call."""
    sizes = (ceil(shape[0] / block[0]), ceil(shape[1] / block[1]), *shape[2:])
    order = torch.rand(sizes, generator=torch.Generator().manual_seed(0)).flatten().argsort()
    mask = torch.zeros(order.numel(), dtype=torch.bool)
    mask[order[: round(density * order.numel())]] = True
    return mask.view(sizes)
