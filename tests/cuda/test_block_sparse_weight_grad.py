"""Weight gradients of blocks of multiples of 16 x 16: every way in which the work is divided."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from block_sparse_cases import close, conv_case, draw, draw_mask
from torch import Tensor
from torch.nn import functional as F

from resgrow.ops import reference
from resgrow.ops.block_index import block_index, unpack

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
# (convolution, block): what is particular about it.
CASES = {
    "half a piece of channels": (conv_case(2, 24, (9, 10), 40, 3, padding=1), (16, 16)),
    "pieces of several warps and shares": (conv_case(1, 96, (5, 4), 160, 3, padding=1), (16, 16)),
    "rows that fragments cross": (conv_case(1, 16, (6, 14), 16, 3, padding=1), (16, 16)),
    "many patches": (conv_case(3, 16, (17, 9), 16, 3, padding=1), (16, 16)),
    "stride": (conv_case(2, 32, (9, 17), 32, 3, stride=2, padding=1), (16, 32)),
    "stride of one tap": (conv_case(2, 32, (5, 7), 48, 1, stride=(2, 3)), (16, 16)),
    "uneven steps": (conv_case(1, 16, (12, 11), 48, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(2, 3)), (48, 16)),
    "stride and dilation": (conv_case(1, 16, (9, 19), 16, 3, stride=(1, 3), padding=2, dilation=2), (16, 16)),
    "pointwise": (conv_case(2, 64, (9, 11), 48, 1), (16, 32)),
    "padded pointwise": (conv_case(1, 16, (3, 4), 16, 1, padding=1), (16, 16)),
    "large blocks": (conv_case(1, 128, (4, 4), 64, 1), (64, 128)),
    "groups": (conv_case(1, 64, (5, 6), 64, 3, padding=1, groups=2), (16, 16)),
    "linear": (conv_case(70, 64, (1, 1), 64, 1), (32, 32)),
    "one pixel": (conv_case(1, 16, (1, 1), 16, 3, padding=1), (16, 16)),
}


def gradient(machine, case: str, mask: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What the operator finds for the blocks of mask, and what plain torch does, of the same numbers."""
    (x, weight, _, options), block = CASES[case]
    x, grad = x.to(dtype), draw(*F.conv2d(x, weight, **options).shape, seed=3).to(dtype)
    pairs = [[v, v] if isinstance(v, int) else list(v) for k, v in options.items() if k != "groups"]
    kernel, groups = list(weight.shape[2:]), options["groups"]
    index = block_index(mask, block)
    ours = [machine.put(t.contiguous(memory_format=torch.channels_last)) for t in (grad, x)]
    got = torch.ops.resgrow.block_sparse_conv2d_weight_grad(
        *ours, machine.put(index), list(block), kernel, *pairs, groups
    )
    with machine.on_host():
        expected = reference.block_sparse_probe(grad.double(), x.double(), mask, *pairs, groups, block)
    return unpack(got.cpu(), index, tuple(weight.shape)), expected


@pytest.mark.parametrize("density", [0.1, 0.4, 1.0])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_gradient(case: str, dtype: torch.dtype, density: float, machine) -> None:
    (_, weight, _, _), block = CASES[case]
    got, expected = gradient(machine, case, draw_mask(weight.shape, block, density), dtype)
    close(got, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("case", ["many patches", "pointwise"])
def test_any_order_of_threads_and_number_of_multiprocessors(case: str, machine) -> None:
    (_, weight, _, _), block = CASES[case]
    for _ in machine.seeds:
        got, expected = gradient(machine, case, draw_mask(weight.shape, block), torch.float16)
        close(got, expected, TOLERANCE[torch.float16])


@pytest.mark.parametrize("full", [0, 1])
def test_masks_of_some_rows_or_columns_only(full: int, machine) -> None:
    """Regions without a block, regions with more than a random mask's, channels that no block reads."""
    (_, weight, _, _), block = CASES["pieces of several warps and shares"]
    mask = torch.zeros_like(draw_mask(weight.shape, block))
    mask.select(full, 1).fill_(True)
    mask.select(full, 4).fill_(True)
    got, expected = gradient(machine, "pieces of several warps and shares", mask, torch.bfloat16)
    close(got, expected, TOLERANCE[torch.bfloat16])


@pytest.fixture
def tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("case", ["stride", "pointwise"])
def test_tf32_where_it_is_allowed(case: str, tf32: None, machine) -> None:
    (_, weight, _, _), block = CASES[case]
    got, expected = gradient(machine, case, draw_mask(weight.shape, block), torch.float32)
    close(got, expected, 1e-3)
    assert not torch.allclose(got.double(), expected, rtol=1e-6, atol=1e-6)
