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

from resgrow.ops import block_sparse as ops
from resgrow.ops.block_index import block_index, check_block, check_mask, mask_shape, pack, unpack


class _BlockSparse(nn.Module):
    """What both layers share: the compact parameter, its mask, and their dense form."""

    values: nn.Parameter
    index: Tensor
    mask: Tensor
    bias: nn.Parameter | None

    def __init__(self, weight: Tensor, bias: Tensor | None, mask: Tensor, block: Sequence[int]) -> None:
        super().__init__()
        self.block = check_block(type(self).__name__, block)
        self.shape = tuple(weight.shape)
        mask = self._checked(mask)
        self.register_buffer("mask", mask.clone())
        self.register_buffer("index", block_index(mask, self.block), persistent=False)
        self.values = nn.Parameter(self._pack(weight), requires_grad=weight.requires_grad)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)

    def _checked(self, mask: Tensor) -> Tensor:
        """``mask`` over blocks; one over single weights is accepted where it is constant within every block."""
        op = type(self).__name__
        device = self.values.device if "values" in self._parameters else mask.device
        if isinstance(mask, Tensor) and mask.dtype == torch.bool and tuple(mask.shape) == self.shape:
            rows, columns = (torch.arange(0, size, step) for size, step in zip(self.shape, self.block, strict=False))
            pooled = mask[rows.to(mask.device)][:, columns.to(mask.device)]
            spread = pooled.repeat_interleave(self.block[0], 0)[: self.shape[0]]
            if not torch.equal(spread.repeat_interleave(self.block[1], 1)[:, : self.shape[1]], mask):
                raise ValueError(
                    f"{op}: a mask over weights must be constant within every block (got one that cuts blocks "
                    f"{self.block}); prune with block={self.block}"
                )
            mask = pooled
        check_mask(op, mask, self.shape, self.block)
        return mask.to(device)

    def _pack(self, weight: Tensor, index: Tensor | None = None) -> Tensor:
        return pack(weight.detach(), self.index if index is None else index, self.block).contiguous()

    def dense_weight(self) -> Tensor:
        """The weight, zero in absent blocks; differentiable in ``values``."""
        return unpack(self.values, self.index, self.shape)

    def density(self) -> float:
        """Fraction of the blocks that is present."""
        return self.mask.float().mean().item() if self.mask.numel() else 0.0

    @torch.no_grad()
    def set_mask(
        self, mask: Tensor, optimizer: torch.optim.Optimizer | None = None, weight: Tensor | None = None
    ) -> None:
        """Changes which blocks are present, in place: ``values`` stays the same parameter and takes a new length.

        Blocks that stay keep their values. Blocks that come are zero, or what ``weight`` holds there.

        Args:
            mask: bool over blocks, as :attr:`mask`, or over single weights and constant within blocks.
            optimizer: one that holds ``values``. Every tensor of its state for ``values`` that has its shape follows:
                moments of blocks that stay are kept, those of blocks that come are zero. Without it, an optimizer with
                such state fails at its next step.
            weight: like the dense weight; where new blocks take their values from.

        A gradient follows in the same way. Nothing changes if an argument does not fit.

        Raises:
            ValueError, TypeError: the mask or the weight does not fit.
        """
        mask = self._checked(mask)
        if weight is not None and tuple(weight.shape) != self.shape:
            raise ValueError(
                f"{type(self).__name__}: weight must have the dense weight's shape {self.shape} "
                f"(got {tuple(weight.shape)})"
            )
        index = block_index(mask, self.block)
        old_index, old_shape = self.index, self.values.shape

        def moved(t: Tensor) -> Tensor:
            return pack(unpack(t, old_index, self.shape), index, self.block).contiguous()

        values = moved(self.values)
        if weight is not None:
            old = pack(unpack(torch.ones_like(self.values), old_index, self.shape), index, self.block)
            values = torch.where(old != 0, values, self._pack(weight.to(values), index))
        grad = None if self.values.grad is None else moved(self.values.grad)
        state = {} if optimizer is None else optimizer.state.get(self.values, {})
        for name, entry in state.items():
            if isinstance(entry, Tensor) and entry.shape == old_shape:
                state[name] = moved(entry)
        self.values.grad = None
        self.values.data = values
        self.values.grad = grad
        self.mask, self.index = mask.clone(), index

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        values = destination.pop(prefix + "values")
        destination[prefix + "weight"] = unpack(values, self.index, self.shape)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Takes a dense ``weight`` and, where there is one, a ``mask``; without it the present one stays."""
        local = dict(state_dict)
        mask = local.setdefault(prefix + "mask", self.mask)
        if mask.shape == self.mask.shape and not torch.equal(mask.to(self.mask.device), self.mask):
            self.set_mask(mask)
        local[prefix + "values"] = self.values.detach()
        weight = local.pop(prefix + "weight", None)
        if weight is None:
            missing_keys.append(prefix + "weight")
        elif tuple(weight.shape) != self.shape:
            error_msgs.append(f"size mismatch for {prefix}weight: got {tuple(weight.shape)}, need {self.shape}.")
        else:
            local[prefix + "values"] = self._pack(weight.to(self.values.device))
        super()._load_from_state_dict(local, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)

    def _describe(self) -> str:
        return f"block={self.block}, density={self.density():.3g}, bias={self.bias is not None}"


def _mask_of(weight: Tensor, mask: Tensor | None, block: Sequence[int], owner: str) -> Tensor:
    """``mask``, or the blocks that hold anything."""
    if mask is not None:
        return mask
    pair = check_block(owner, block)
    full = torch.ones(mask_shape(weight.shape, pair), dtype=torch.bool, device=weight.device)
    index = block_index(full, pair)
    row, column, tap = index[:3].long().unbind()
    found = full.flatten(2) if full.dim() > 2 else full.unsqueeze(2)
    found[row, column, tap] = (pack(weight.detach(), index, pair) != 0).flatten(1).any(1)
    return found.view_as(full)


class BlockSparseConv2d(_BlockSparse):
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
        """An ``nn.Conv2d`` with the same output; absent blocks are zeros."""
        outputs, inputs, *kernel = self.shape
        weight = self.dense_weight().detach()
        layer = nn.utils.skip_init(
            nn.Conv2d,
            inputs * self.groups,
            outputs,
            tuple(kernel),
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.bias is not None,
            device=weight.device,
            dtype=weight.dtype,
        )
        return _filled(layer, self, weight)

    def forward(self, x: Tensor) -> Tensor:
        """x: ``(N, C, H, W)`` or ``(C, H, W)``."""
        batch = x if x.dim() == 4 else x.unsqueeze(0)
        settings = (self.stride, self.padding, self.dilation, self.groups)
        y = ops.packed_conv2d(batch, self.values, self.index, self.bias, self.shape, *settings)
        return y if x.dim() == 4 else y.squeeze(0)

    def extra_repr(self) -> str:
        outputs, inputs, *kernel = self.shape
        return (
            f"{inputs * self.groups}, {outputs}, kernel_size={tuple(kernel)}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, {self._describe()}"
        )


class BlockSparseLinear(_BlockSparse):
    """``nn.Linear`` that skips the absent blocks of its weight, forward and backward.

    Args:
        weight: ``(O, I)``; its present blocks become :attr:`values`.
        bias: ``(O,)`` or None.
        mask: bool ``(ceil(O / bo), ceil(I / bi))``, or over single weights and constant within blocks.
        block: ``(bo, bi)``.
    """

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
            nn.Linear, self.shape[1], self.shape[0], self.bias is not None, device=weight.device, dtype=weight.dtype
        )
        return _filled(layer, self, weight)

    def forward(self, x: Tensor) -> Tensor:
        """x: ``(*, I)``."""
        return ops.packed_linear(x, self.values, self.index, self.bias, self.shape)

    def extra_repr(self) -> str:
        return f"{self.shape[1]}, {self.shape[0]}, {self._describe()}"


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    return (pair[0], pair[1])


def _filled(layer: Any, source: _BlockSparse, weight: Tensor) -> Any:
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.weight.requires_grad_(source.values.requires_grad)
        if source.bias is not None:
            layer.bias.copy_(source.bias)
            layer.bias.requires_grad_(source.bias.requires_grad)
    return layer.train(source.training)
