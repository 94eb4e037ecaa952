"""Convolution and linear layers whose weight holds only its present blocks.

The parameter ``values`` is compact: ``(blocks, bi, bo)``, the present blocks in the order in which the kernels read
them. Optimizers, gradients and moments therefore cost memory and time in proportion to the blocks present, and no
packing happens between steps. ``state_dict`` shows the dense ``weight`` instead, zeros where blocks are absent, beside
the ``mask``: a state dict of the dense layer loads, and its own loads into the dense layer with ``strict=False``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from resgrow.nn.block_sparse_base import BlockSparseLayer, present_blocks
from resgrow.ops import block_sparse as ops
from resgrow.ops.block_index import check_block


def _mask_of(weight: Tensor, mask: Tensor | None, block: Sequence[int], owner: str) -> Tensor:
    """``mask``, or the blocks that hold anything."""
    return present_blocks(weight, check_block(owner, block)) if mask is None else mask


class BlockSparseConv2d(BlockSparseLayer):
    """``nn.Conv2d`` that skips the absent blocks of its weight, forward and backward.

    Args:
        weight: ``(O, C / groups, kh, kw)``; its present blocks become :attr:`values`.
        bias: ``(O,)`` or None.
        mask: bool ``(ceil(O / bo), ceil(C / groups / bi), kh, kw)``, or over single weights and constant within blocks.
        block: ``(bo, bi)``.
        stride, padding, dilation, groups: as ``nn.Conv2d``; padding in zeros, numbers only.

    Attributes:
        values: parameter ``(blocks, bi, bo)``. mask: bool over blocks. index: the present blocks in kernel order.

    Raises:
        ValueError, TypeError: mask or block does not fit.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        mask: Tensor,
        block: Sequence[int] = (16, 1),
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> None:
        super().__init__(weight, bias, mask, block)
        self.stride, self.padding, self.dilation = (_pair(v) for v in (stride, padding, dilation))
        self.groups = groups
        self.padding_mode = "zeros"
        self.out_channels, self.in_channels = self.shape[0], self.shape[1] * groups
        self.kernel_size = self.shape[2:]
        self._channels_last = _is_channels_last(weight)

    @classmethod
    def from_dense(
        cls, layer: nn.Conv2d, mask: Tensor | None = None, block: Sequence[int] = (16, 1)
    ) -> BlockSparseConv2d:
        """The layer with the blocks that ``mask`` names; without a mask, those that hold anything but zeros.

        Raises:
            ValueError: the layer pads with anything but zeros, or by name ("same").
        """
        if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            raise ValueError(
                "BlockSparseConv2d: padding must be given in numbers and filled with zeros "
                f"(got padding={layer.padding!r}, padding_mode={layer.padding_mode!r})"
            )
        present = _mask_of(layer.weight, mask, block, cls.__name__)
        settings = (layer.stride, layer.padding, layer.dilation, layer.groups)
        return cls(layer.weight, layer.bias, present, block, *settings).train(layer.training)

    def to_dense(self) -> nn.Conv2d:
        """An ``nn.Conv2d`` with the same output; absent blocks are zeros. Its weight has the memory format of the one
        that this layer came from."""
        weight = self.dense_weight().detach()
        layer = nn.utils.skip_init(
            nn.Conv2d,
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.bias is not None,
            device=weight.device,
            dtype=weight.dtype,
        )
        if self._channels_last:
            layer = layer.to(memory_format=torch.channels_last)
        return _filled(layer, self, weight)

    def forward(self, x: Tensor) -> Tensor:
        """x: ``(N, C, H, W)`` or ``(C, H, W)``."""
        batch = x if x.dim() == 4 else x.unsqueeze(0)
        settings = (self.stride, self.padding, self.dilation, self.groups)
        y = ops.packed_conv2d(batch, self.values, self.index, self.bias, self.shape, *settings)
        return y if x.dim() == 4 else y.squeeze(0)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, {self._describe()}"
        )


class BlockSparseLinear(BlockSparseLayer):
    """``nn.Linear`` that skips the absent blocks of its weight, forward and backward.

    Args:
        weight: ``(O, I)``; its present blocks become :attr:`values`.
        bias: ``(O,)`` or None.
        mask: bool ``(ceil(O / bo), ceil(I / bi))``, or over single weights and constant within blocks.
        block: ``(bo, bi)``.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, mask: Tensor, block: Sequence[int] = (16, 1)) -> None:
        super().__init__(weight, bias, mask, block)
        self.out_features, self.in_features = self.shape

    @classmethod
    def from_dense(
        cls, layer: nn.Linear, mask: Tensor | None = None, block: Sequence[int] = (16, 1)
    ) -> BlockSparseLinear:
        """The layer with the blocks that ``mask`` names; without a mask, those that hold anything but zeros."""
        present = _mask_of(layer.weight, mask, block, cls.__name__)
        return cls(layer.weight, layer.bias, present, block).train(layer.training)

    def to_dense(self) -> nn.Linear:
        """An ``nn.Linear`` with the same output; absent blocks are zeros."""
        weight = self.dense_weight().detach()
        layer = nn.utils.skip_init(
            nn.Linear,
            self.in_features,
            self.out_features,
            self.bias is not None,
            device=weight.device,
            dtype=weight.dtype,
        )
        return _filled(layer, self, weight)

    def forward(self, x: Tensor) -> Tensor:
        """x: ``(*, I)``."""
        return ops.packed_linear(x, self.values, self.index, self.bias, self.shape)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self._describe()}"


def from_dense(
    layer: nn.Conv2d | nn.Linear, mask: Tensor | None = None, block: Sequence[int] = (16, 1)
) -> BlockSparseConv2d | BlockSparseLinear:
    """``from_dense`` of the class that stands for the layer's."""
    if isinstance(layer, nn.Linear):
        return BlockSparseLinear.from_dense(layer, mask, block)
    return BlockSparseConv2d.from_dense(layer, mask, block)


def _is_channels_last(weight: Tensor) -> bool:
    """By its strides, which tell the formats apart even where they are the same in memory (1x1 kernels)."""
    usual = torch.empty(weight.shape, device="meta").stride()
    return weight.is_contiguous(memory_format=torch.channels_last) and weight.stride() != usual


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    return (pair[0], pair[1])


def _filled(layer: Any, source: BlockSparseLayer, weight: Tensor) -> Any:
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.weight.requires_grad_(source.values.requires_grad)
        if source.bias is not None:
            layer.bias.copy_(source.bias)
            layer.bias.requires_grad_(source.bias.requires_grad)
    return layer.train(source.training)
