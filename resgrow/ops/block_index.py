"""Masks over blocks of a weight, the order in which kernels walk the present blocks, and packing into that order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_GROUP = 16  # input channels that lie side by side for the kernels


def mask_shape(shape: Sequence[int], block: tuple[int, int]) -> tuple[int, ...]:
    """Shape of the mask over blocks of a weight ``(O, I, *k)``: ``(ceil(O / bo), ceil(I / bi), *k)``."""
    return (-(-shape[0] // block[0]), -(-shape[1] // block[1]), *shape[2:])


def check_block(op: str, block: Sequence[int]) -> tuple[int, int]:
    """``block`` as a pair of positive ints.

    Raises:
        ValueError: it is not one.
    """
    pair = tuple(block)
    if len(pair) != 2 or any(not isinstance(b, int) or b < 1 for b in pair):
        raise ValueError(f"{op}: block must be a pair (outputs, inputs) of positive integers (got {block!r})")
    return pair


def check_mask(op: str, mask: Tensor, shape: Sequence[int], block: tuple[int, int]) -> None:
    """Raises TypeError or ValueError where ``mask`` is no mask over blocks of a weight of ``shape``."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        found = mask.dtype if isinstance(mask, Tensor) else type(mask)
        raise TypeError(f"{op}: mask must be a bool tensor (got {found}); compare scores with a threshold")
    expected = mask_shape(shape, block)
    if tuple(mask.shape) != expected:
        raise ValueError(
            f"{op}: mask must be {expected}, one entry per block {block} of the weight {tuple(shape)} "
            f"(got {tuple(mask.shape)})"
        )


def block_index(mask: Tensor, block: tuple[int, int]) -> Tensor:
    """The present blocks in kernel order: int32 ``(4, blocks)``.

    Args:
        mask: bool ``(rows, columns, *k)``, True where a block is present.
        block: ``(bo, bi)``.

    Returns:
        Rows ``row``, ``column`` and ``tap`` (row-major over ``*k``) of every block, sorted by row, then such that
        neighbouring blocks read neighbouring input: by 16 input channels, tap and column. The last row holds the
        numbers of the blocks sorted by row, tap and column, the order of the input gradient.
    """
    flat = mask.flatten(2) if mask.dim() > 2 else mask.unsqueeze(2)
    columns, taps = flat.shape[1:]
    row, column, tap = flat.nonzero().unbind(1)
    group = column * block[1] // _GROUP
    groups = columns * block[1] // _GROUP + 1
    order = (((row * groups + group) * taps + tap) * columns + column).argsort()
    row, column, tap = row[order], column[order], tap[order]
    by_tap = ((row * taps + tap) * columns + column).argsort()
    return torch.stack([row, column, tap, by_tap]).to(torch.int32).contiguous()


def pack(weight: Tensor, index: Tensor, block: tuple[int, int]) -> Tensor:
    """The blocks that ``index`` names, ``(blocks, bi, bo)``; zero where a block hangs over the weight's edge.

    Differentiable in ``weight``, ``(O, I, *k)``.
    """
    rows, columns = mask_shape(weight.shape, block)[:2]
    bo, bi = block
    flat = weight.flatten(2) if weight.dim() > 2 else weight.unsqueeze(2)
    padding = (0, 0, 0, columns * bi - flat.shape[1], 0, rows * bo - flat.shape[0])
    if any(padding):
        flat = F.pad(flat, padding)
    blocks = flat.unflatten(1, (columns, bi)).unflatten(0, (rows, bo)).permute(0, 2, 4, 3, 1)
    row, column, tap = index[:3].long().unbind()
    return blocks[row, column, tap]


def unpack(values: Tensor, index: Tensor, shape: Sequence[int]) -> Tensor:
    """The weight ``(O, I, *k)`` of ``shape`` that :func:`pack` was given, with zeros in absent blocks.

    Differentiable in ``values``, ``(blocks, bi, bo)``.
    """
    bi, bo = values.shape[1:]
    rows, columns = mask_shape(shape, (bo, bi))[:2]
    taps = 1
    for k in shape[2:]:
        taps *= k
    row, column, tap = index[:3].long().unbind()
    blocks = values.new_zeros(rows, columns, taps, bi, bo).index_put((row, column, tap), values)
    weight = blocks.permute(0, 4, 1, 3, 2).reshape(rows * bo, columns * bi, taps)
    return weight[: shape[0], : shape[1]].reshape(tuple(shape))
