"""A convolution and the pooling behind it, over a few images at a time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from resgrow.nn.fused import FusedConv2d

# What lies between the two is kept below this many bytes: well within the last-level cache of server processors, and
# memory that allocators hand out again, while every page of a larger piece comes fresh, and zeroed, from the system.
_BETWEEN = 8 << 20


class PooledConv2d(nn.Sequential):
    """``pool(conv(x))``, for inference, without the whole output of the convolution in memory.

    In networks for large images that is the largest of all tensors. The numbers are the same to rounding: torch's dense
    convolution may sum in another order for another number of images, the block-sparse one does not. Inputs that need a
    gradient, GPUs, and programs that are compiled or exported, take all images at a time.

    Args:
        conv: dense or fused; its outputs depend on one image each.
        pool: likewise.
    """

    def __init__(self, conv: nn.Conv2d | FusedConv2d, pool: nn.MaxPool2d) -> None:
        super().__init__(conv, pool)
        self.outputs = conv.out_channels if isinstance(conv, nn.Conv2d) else conv.shape[0]
        self.stride = conv.stride
        self.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        """x: ``(N, C, H, W)`` or ``(C, H, W)``."""
        if x.dim() != 4 or x.is_cuda or torch.compiler.is_compiling() or (torch.is_grad_enabled() and x.requires_grad):
            return super().forward(x)
        at_once = self._at_once(x)
        if len(x) <= at_once:
            return super().forward(x)
        forward = super().forward
        return torch.cat([forward(part) for part in x.split(at_once)])

    def _at_once(self, x: Tensor) -> int:
        """How many images; the size of their outputs need only be about right."""
        positions = (x.shape[2] // self.stride[0]) * (x.shape[3] // self.stride[1])
        return max(1, _BETWEEN // max(1, positions * self.outputs * x.element_size()))
