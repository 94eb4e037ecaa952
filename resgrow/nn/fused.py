"""Block-sparse layers for inference that add a residual and apply an activation before they store their output.

:func:`resgrow.fuse` puts them in place of a layer, the norm behind it, an addition and an activation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from resgrow.nn.block_sparse import BlockSparseConv2d, BlockSparseLinear
from resgrow.ops import block_sparse as ops

Slopes = tuple[Tensor, Tensor]


class _Fused(nn.Module):
    """What both layers share: ``act(W x + bias + residual)``.

    ``act`` multiplies outputs ``>= 0`` by ``positive`` and others by ``negative``, both ``(O,)``; ones and zeros are
    ReLU. The numbers are those of the three steps one after another up to rounding: all is summed before anything is
    rounded (to bfloat16, say). One exception: where the sum is minus infinity, a slope of zero gives NaN.

    A residual of another shape or dtype than the output is added as torch does it, in a step of its own; so is
    everything where the input needs a gradient. The parameters need none.
    """

    values: nn.Parameter
    index: Tensor
    bias: nn.Parameter | None
    positive: Tensor | None
    negative: Tensor | None

    def __init__(
        self,
        layer: BlockSparseConv2d | BlockSparseLinear,
        values: Tensor,
        bias: Tensor | None,
        slopes: Slopes | None,
        batched: bool,
        in_place: bool,
    ) -> None:
        super().__init__()
        self.block, self.shape, self.batched, self.in_place = layer.block, layer.shape, batched, in_place
        self.values = nn.Parameter(values.detach().clone(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
        self.register_buffer("index", layer.index.clone())
        positive, negative = (None, None) if slopes is None else (s.detach().to(self.values) for s in slopes)
        self.register_buffer("positive", positive)
        self.register_buffer("negative", negative)
        self.train(layer.training)

    def density(self) -> float:
        """Fraction of the blocks that is present."""
        blocks = torch.Size(self.shape[2:]).numel()
        for size, step in zip(self.shape, self.block, strict=False):
            blocks *= -(-size // step)
        return self.index.shape[1] / blocks if blocks else 0.0

    def _slopes(self) -> Slopes | None:
        return None if self.positive is None or self.negative is None else (self.positive, self.negative)

    def _check(self, x: Tensor, dims: int) -> None:
        if self.batched and x.dim() != dims:
            raise ValueError(
                f"{type(self).__name__}: x must have {dims} dimensions, because the fused norm or gates count channels "
                f"in dimension 1 (got {tuple(x.shape)}); add a batch dimension, or use the model that was fused"
            )

    def _apart(self, y: Tensor, residual: Any, *spread: int) -> Tensor:
        """Addition and activation as torch does them; ``spread``: the view of a slope that meets y's channels."""
        if residual is not None:
            y = y.add_(residual) if self.in_place else y + residual
        slopes = self._slopes()
        if slopes is None:
            return y
        positive, negative = (slope.view(spread).to(y) for slope in slopes)
        return y * torch.where(y >= 0, positive, negative)

    def _describe(self) -> str:
        described = f"block={self.block}, density={self.density():.3g}, bias={self.bias is not None}"
        return f"{described}, activation={self.positive is not None}"


class FusedConv2d(_Fused):
    """``act(BlockSparseConv2d(x) + residual)`` in one pass over the output, for inference.

    Args:
        layer: where shape, blocks and settings are from; it is left alone.
        values: ``(blocks, bi, bo)``, like ``layer.values``, with a norm folded in, say.
        bias: ``(O,)`` or None.
        slopes: two ``(O,)``, by which outputs ``>= 0`` and ``< 0`` are multiplied, or None.
        batched: refuse inputs without a batch dimension: what was folded in counts channels in dimension 1.
        in_place: the addition stands for ``y += residual``: the output keeps its dtype, whatever the residual's.

    Raises:
        ValueError: ``batched``, and x is ``(C, H, W)``.
    """

    def __init__(
        self,
        layer: BlockSparseConv2d,
        values: Tensor,
        bias: Tensor | None = None,
        slopes: Slopes | None = None,
        batched: bool = False,
        in_place: bool = False,
    ) -> None:
        super().__init__(layer, values, bias, slopes, batched, in_place)
        self.stride, self.padding, self.dilation, self.groups = (
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
        )

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x: ``(N, C, H, W)`` or ``(C, H, W)``; residual: anything that can be added to the output."""
        self._check(x, 4)
        lone = x.dim() == 3
        settings = (self.stride, self.padding, self.dilation, self.groups)
        fixed = (self.values, self.index, self.bias, self.shape, *settings)
        batch = x.unsqueeze(0) if lone else x
        if _fits(x, residual, (*x.shape[:-3], self.shape[0], *self._sides(x))):
            addend = residual.unsqueeze(0) if lone and residual is not None else residual
            y = ops.packed_conv2d(batch, *fixed, self._slopes(), addend)
            return y.squeeze(0) if lone else y
        y = ops.packed_conv2d(batch, *fixed)
        return self._apart(y.squeeze(0) if lone else y, residual, -1, 1, 1)

    def _sides(self, x: Tensor) -> list[int]:
        sides = zip(x.shape[-2:], self.shape[2:], self.stride, self.padding, self.dilation, strict=True)
        return [(n + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for n, k, stride, padding, dilation in sides]

    def extra_repr(self) -> str:
        outputs, inputs, *kernel = self.shape
        return (
            f"{inputs * self.groups}, {outputs}, kernel_size={tuple(kernel)}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, {self._describe()}"
        )


class FusedLinear(_Fused):
    """``act(BlockSparseLinear(x) + residual)`` in one pass over the output, for inference.

    Args:
        layer, values, bias, slopes, in_place: as :class:`FusedConv2d`.
        batched: refuse inputs other than ``(N, I)``: what was folded in counts channels in dimension 1.

    Raises:
        ValueError: ``batched``, and x is not ``(N, I)``.
    """

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x: ``(*, I)``; residual: anything that can be added to the output."""
        self._check(x, 2)
        size = (*x.shape[:-1], self.shape[0])
        if not _fits(x, residual, size):
            y = ops.packed_linear(x, self.values, self.index, self.bias, self.shape)
            return self._apart(y, residual, -1)
        images = x.reshape(-1, self.shape[1], 1, 1)
        addend = None if residual is None else residual.reshape(-1, self.shape[0], 1, 1)
        fixed = (self.values, self.index, self.bias, (*self.shape, 1, 1))
        y = ops.packed_conv2d(images, *fixed, slopes=self._slopes(), residual=addend)
        return y.reshape(size)

    def extra_repr(self) -> str:
        return f"{self.shape[1]}, {self.shape[0]}, {self._describe()}"


def _fits(x: Tensor, residual: Any, size: tuple[int, ...]) -> bool:
    """Whether the kernel can add ``residual`` to an output of ``size`` and no gradient is needed."""
    tensors = [t for t in (x, residual) if isinstance(t, Tensor)]
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return False
    if residual is None:
        return True
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    return len(tensors) == 2 and residual.dtype == dtype and residual.shape == size
