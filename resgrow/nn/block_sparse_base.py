"""What block-sparse layers share: the compact parameter, the mask over blocks, and their dense form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from resgrow._blocks import block_sums
from resgrow.ops.block_index import block_index, check_block, check_mask, pack, unpack


def present_blocks(weights: Tensor, block: tuple[int, int]) -> Tensor:
    """Which blocks of a weight, or of a mask over weights, ``(O, I, *k)``, hold anything but zeros; bool."""
    return block_sums((weights.detach() != 0).float(), block) > 0


class BlockSparseLayer(nn.Module):
    """What both layers share: the compact parameter, its mask, and their dense form.

    Code that only reads ``layer.weight`` (its dtype, or the fused paths of ``nn.TransformerEncoderLayer``) goes on
    working: it is a property here, the dense weight gathered at every access.
    """

    values: nn.Parameter
    index: Tensor
    mask: Tensor
    bias: nn.Parameter | None

    def __init__(self, weight: Tensor, bias: Tensor | None, mask: Tensor, block: Sequence[int]) -> None:
        super().__init__()
        block_out, block_in = check_block(type(self).__name__, block)
        self.shape = tuple(weight.shape)
        # A block wider than the layer is the same block without the part that hangs over, which kernels would compute.
        self.block = (block_out, max(1, min(block_in, self.shape[1])))
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
        values = pack(weight.detach(), self.index if index is None else index, self.block)
        # Copied even where it counts as contiguous: strides of dimensions of size 1 must be those of new tensors, too.
        return values.clone(memory_format=torch.contiguous_format)

    def dense_weight(self) -> Tensor:
        """The weight, zero in absent blocks; differentiable in ``values``."""
        return unpack(self.values, self.index, self.shape)

    @property
    def weight(self) -> Tensor:
        """:meth:`dense_weight`, for code that reads it; it cannot be assigned."""
        return self.dense_weight()

    def packed(self, t: Tensor) -> Tensor:
        """The present blocks of ``t``, a tensor like the dense weight, laid out like :attr:`values`."""
        return self._pack(t)

    def unpacked(self, t: Tensor) -> Tensor:
        """The inverse of :meth:`packed`: a tensor like the dense weight, zero in absent blocks."""
        return unpack(t.detach(), self.index, self.shape)

    def density(self) -> float:
        """Fraction of the blocks that is present."""
        return self.mask.float().mean().item() if self.mask.numel() else 0.0

    @torch.no_grad()
    def set_mask(
        self,
        mask: Tensor,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        weight: Tensor | None = None,
    ) -> None:
        """Changes which blocks are present, in place: ``values`` stays the same parameter and takes a new length.

        Blocks that stay keep their values. Blocks that come are zero, or what ``weight`` holds there.

        Args:
            mask: bool over blocks, as :attr:`mask`, or over single weights and constant within blocks.
            optimizer: one, or several, that hold ``values``. Every tensor of their state for ``values`` that has its
                shape follows: moments of blocks that stay are kept, those of blocks that come are zero. Without it, an
                optimizer with such state fails at its next step.
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
            return self._pack(unpack(t, old_index, self.shape), index)

        values = moved(self.values)
        if weight is not None:
            old = pack(unpack(torch.ones_like(self.values), old_index, self.shape), index, self.block)
            values = torch.where(old != 0, values, self._pack(weight.to(values), index))
        grad = None if self.values.grad is None else moved(self.values.grad)
        for holder in (optimizer,) if isinstance(optimizer, Optimizer) else optimizer or ():
            state = holder.state.get(self.values, {})
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
