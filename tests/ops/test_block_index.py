"""The present blocks of a weight, packed and unpacked."""

from __future__ import annotations

import pytest
import torch

from resgrow.ops import reference
from resgrow.ops.block_index import block_index, mask_shape, pack, unpack


@pytest.mark.parametrize("block", [(16, 1), (16, 16), (4, 1), (12, 3), (5, 2)], ids=str)
def test_pack_and_unpack_undo_each_other(block: tuple[int, int]) -> None:
    weight = torch.randn(37, 21, 3, 2)
    mask = torch.rand(mask_shape(weight.shape, block)) < 0.4
    index = block_index(mask, block)
    assert index.shape == (4, int(mask.sum()))
    present = reference.block_mask(mask, weight.shape, block)
    assert torch.equal(unpack(pack(weight, index, block), index, weight.shape), weight * present)


@pytest.mark.parametrize("block", [(16, 1), (16, 16)], ids=str)
def test_order_of_the_blocks(block: tuple[int, int]) -> None:
    mask = torch.rand(3, 40, 3, 3) < 0.4
    row, column, tap, by_tap = block_index(mask, block).long()
    assert torch.equal(row, row.sort().values)
    keys = torch.stack([row, tap, column], 1)[by_tap]
    assert keys.tolist() == sorted(keys.tolist())
    found = torch.zeros_like(mask.flatten(2)).index_put((row, column, tap), torch.tensor(True))
    assert torch.equal(found, mask.flatten(2))
