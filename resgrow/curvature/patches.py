"""What each output position of a linear or convolutional layer sees of its input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Numbers in unfolded inputs that are in memory together: 64 MiB in float32.
CHUNK = 2**24


def spatial_of(layer: nn.Module) -> int:
    """Number of spatial dimensions of Conv1d to Conv3d, 0 for Linear."""
    return 0 if isinstance(layer, nn.Linear) else len(layer.kernel_size)  # type: ignore[arg-type]


def padded(layer: Any, x: Tensor) -> Tensor:
    """The input ``(N, C, *)`` of a convolution with the border that the layer gives it, for any ``C``."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)


def patches(layer: Any, x: Tensor) -> Tensor:
    """``(groups, N, *positions, D)`` of ``x (N, *, C)`` (Linear) or ``(N, C, *)``, as a row of the weight sees it.

    ``D`` are the elements of such a row. Linear layers have one group, and their inputs as they are.
    """
    dims = spatial_of(layer)
    if dims == 0:
        return torch.atleast_2d(x)[None]
    x = padded(layer, x)
    for dim, (size, stride, dilation) in enumerate(
        zip(layer.kernel_size, layer.stride, layer.dilation, strict=True), start=2
    ):
        x = x.unfold(dim, (size - 1) * dilation + 1, stride)[..., ::dilation]
    # (N, C, *positions, *taps) to (groups, N, *positions, C / groups, *taps)
    x = x.unflatten(1, (layer.groups, -1)).movedim(1, 0)
    return x.movedim(2, 2 + dims).flatten(2 + dims)


def patches_size(layer: Any, x: Tensor) -> int:
    """Numbers in one sample's patches, at most."""
    size = x[0].numel() * layer.weight[0, 0].numel()
    for stride in layer.stride if spatial_of(layer) else ():
        size //= stride
    return max(1, size)
