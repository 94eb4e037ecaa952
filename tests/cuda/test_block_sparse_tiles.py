"""block_sparse's path for whole tiles of blocks: tensor cores, in all their types, against float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from block_sparse_cases import CONVS, close, conv_case, draw, draw_mask
from torch import Tensor

from resgrow import ops
from resgrow.ops import reference
from resgrow.ops.block_index import block_index, pack
from resgrow.ops.block_sparse import packed_conv2d, packed_linear

# Sums are in float32 whatever the type. Three passes of tf32 are near float32, one keeps 10 bits of mantissa.
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
HALVES = [torch.bfloat16, torch.float16]

# What is peculiar to tiles: their pixels, their patches, their lists. (case, block)
TILES = {
    "one pixel": (conv_case(1, 48, (1, 1), 32, 1), (16, 16)),
    "1x1 of several tiles of pixels": (conv_case(3, 32, (9, 7), 48, 1), (16, 16)),
    "1x1 stride 2": (conv_case(2, 32, (7, 6), 32, 1, stride=2), (16, 16)),
    "1x1 padded": (conv_case(1, 16, (3, 4), 32, 1, padding=1), (16, 16)),
    "1x1 of several chunks of channels": (conv_case(1, 144, (3, 5), 16, 1), (16, 16)),
    "1x1 of more visits than threads that list them": (conv_case(1, 8320, (1, 1), 16, 1), (16, 16)),
    "1x1 of several tiles of outputs": (conv_case(1, 16, (3, 5), 304, 1), (16, 16)),
    "1x1 of two columns of warps": (conv_case(2, 48, (16, 17), 272, 1), (16, 16)),
    "channels of no multiple of 16": (conv_case(1, 40, (4, 4), 24, 3, padding=1), (16, 16)),
    "3x3": (conv_case(2, 32, (6, 5), 48, 3, padding=1), (16, 16)),
    "3x3 split sums": (conv_case(1, 64, (3, 3), 64, 3, padding=1), (16, 16)),
    "3x3 many small images": (conv_case(40, 16, (2, 2), 16, 3, padding=1), (16, 16)),
    "3x3 wide": (conv_case(1, 16, (3, 131), 16, 3, padding=1), (16, 16)),
    "3x3 tall": (conv_case(1, 16, (131, 3), 16, 3, padding=1), (16, 16)),
    "3x3 many pixels": (conv_case(4, 16, (17, 16), 32, 3, padding=1), (16, 16)),
    "3x3 not padded": (conv_case(2, 16, (6, 7), 16, 3), (16, 16)),
    "3x3 stride 2": (conv_case(2, 32, (9, 8), 32, 3, stride=2, padding=1), (16, 16)),
    "3x3 stride 3, 2": (conv_case(2, 16, (13, 11), 16, 3, stride=(3, 2), padding=(0, 2)), (16, 16)),
    "3x3 dilated": (conv_case(2, 16, (9, 8), 16, 3, padding=2, dilation=2), (16, 16)),
    "3x3 dilated, stride 2": (conv_case(1, 16, (9, 10), 16, 3, stride=2, padding=2, dilation=(3, 2)), (16, 16)),
    "3x2 uneven": (conv_case(1, 16, (8, 9), 32, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(2, 3)), (16, 16)),
    "stride beyond the kernel": (conv_case(1, 16, (9, 10), 16, 2, stride=(5, 4)), (16, 16)),
    "padding beyond the kernel": (conv_case(1, 16, (5, 5), 16, 3, padding=3), (16, 16)),
    "far dilation": (conv_case(1, 16, (4, 50), 16, 3, padding=(1, 20), dilation=(1, 20)), (16, 16)),
    "7x7 stride 2": (conv_case(1, 16, (11, 9), 16, 7, stride=2, padding=3), (16, 16)),
    "groups": (conv_case(1, 64, (5, 4), 96, 3, padding=1, groups=2), (16, 16)),
    "groups of several tiles": (conv_case(1, 32, (2, 3), 288, 1, groups=2), (16, 16)),
    "blocks of 32 x 16": (conv_case(1, 48, (5, 4), 72, 3, padding=1), (32, 16)),
    "blocks of 16 x 32": (conv_case(1, 72, (5, 4), 48, 3, padding=1), (16, 32)),
    "blocks of 32 x 32": (conv_case(2, 64, (5, 4), 64, 3, padding=1), (32, 32)),
    "blocks of 64 x 64": (conv_case(1, 64, (4, 4), 128, 3, stride=2, padding=1), (64, 64)),
    "blocks over an edge": (conv_case(1, 24, (4, 4), 40, 3, padding=1), (32, 32)),
    "blocks far over an edge": (conv_case(2, 24, (4, 3), 24, 3, padding=1), (64, 64)),
}


@pytest.fixture
def tf32() -> Iterator[None]:
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(precision)


def products(machine, case: tuple, block: tuple[int, int], dtype: torch.dtype, density: float = 0.4) -> list[Tensor]:
    """Output and gradient at the input, and both in float64 from the very same numbers."""
    x, weight, bias, options = case
    mask = draw_mask(weight.shape, block, density)
    x = x.contiguous(memory_format=torch.channels_last)
    ours = [machine.put(t.to(dtype)).requires_grad_() for t in (x, weight, bias)]
    theirs = [t.to(dtype).double().requires_grad_() for t in (x, weight, bias)]
    y = ops.block_sparse_conv2d(ours[0], ours[1], machine.put(mask), ours[2], block=block, **options)
    expected = reference.block_sparse_conv2d(theirs[0], theirs[1], mask, theirs[2], block=block, **options)
    grad = draw(*expected.shape, dtype=dtype, seed=3).contiguous(memory_format=torch.channels_last)
    (grad_x,) = torch.autograd.grad(y, ours[0], machine.put(grad))
    (expected_x,) = torch.autograd.grad(expected, theirs[0], grad.double())
    return [y.detach().cpu(), grad_x.cpu(), expected.detach(), expected_x]


def check(machine, case: tuple, block: tuple[int, int], dtype: torch.dtype, density: float = 0.4) -> None:
    y, grad_x, expected, expected_x = products(machine, case, block, dtype, density)
    close(y, expected, TOLERANCE[dtype])
    close(grad_x, expected_x, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", TILES)
def test_tiles(case: str, dtype: torch.dtype, machine) -> None:
    check(machine, *TILES[case], dtype)


@pytest.mark.parametrize("case", TILES)
def test_tf32_where_it_is_allowed(case: str, machine, tf32: None) -> None:
    """Its rounding also tells this path from the one without tensor cores."""
    y, grad_x, expected, expected_x = products(machine, *TILES[case], torch.float32)
    for got, want in ((y, expected), (grad_x, expected_x)):
        if want.any():
            error = (got.double() - want).abs().max() / want.abs().max()
            assert 1e-5 < error < 2e-3


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("case", CONVS)
def test_convolutions_of_the_cpu_suite(case: str, dtype: torch.dtype, machine) -> None:
    if machine.is_simt and CONVS[case][0].numel() > 4000:
        pytest.skip("long to interpret")
    check(machine, CONVS[case], (16, 16), dtype)


@pytest.mark.parametrize("density", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("case", ["3x3", "3x3 stride 2", "1x1 of two columns of warps", "groups"])
def test_empty_sparse_and_full_masks(case: str, density: float, machine) -> None:
    check(machine, *TILES[case], torch.bfloat16, density)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", ["3x3", "3x3 split sums", "1x1 of several tiles of pixels"])
def test_bits_do_not_depend_on_the_order_of_threads(case: str, dtype: torch.dtype, machine) -> None:
    results = [products(machine, *TILES[case], dtype)[:2] for _ in machine.seeds]
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("outputs", [48, 44])
@pytest.mark.parametrize(("with_slopes", "with_residual"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("channels", [16, 64])
def test_epilogue(channels: int, with_slopes: bool, with_residual: bool, outputs: int, dtype, machine) -> None:
    """Ragged outputs go element by element; 64 channels of few pixels are summed in parts."""
    x, weight = draw(2, channels, 5, 3, dtype=dtype), draw(outputs, channels, 3, 3, dtype=dtype, seed=1)
    bias, *slopes = (draw(outputs, dtype=dtype, seed=seed) for seed in (2, 5, 6))
    residual = draw(2, outputs, 5, 3, dtype=dtype, seed=8).contiguous(memory_format=torch.channels_last)
    mask = draw_mask(weight.shape, (16, 16))
    y = reference.block_sparse_conv2d(x.double(), weight.double(), mask, bias.double(), padding=1, block=(16, 16))
    expected = reference.block_sparse_activated(
        y, tuple(s.double() for s in slopes) if with_slopes else None, residual.double() if with_residual else None
    )
    index = block_index(mask, (16, 16))
    got = packed_conv2d(
        *(machine.put(t) for t in (x, pack(weight, index, (16, 16)).contiguous(), index, bias)),
        tuple(weight.shape),
        padding=1,
        slopes=tuple(machine.put(s) for s in slopes) if with_slopes else None,
        residual=machine.put(residual) if with_residual else None,
    )
    close(got.cpu(), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("rows", [1, 70])
def test_linear(rows: int, dtype: torch.dtype, machine) -> None:
    x, weight, bias = draw(rows, 80, dtype=dtype), draw(56, 80, dtype=dtype, seed=1), draw(56, dtype=dtype, seed=2)
    mask = draw_mask(weight.shape, (16, 16))
    index = block_index(mask, (16, 16))
    values = pack(weight, index, (16, 16)).contiguous()
    got = packed_linear(*(machine.put(t) for t in (x, values, index, bias)), tuple(weight.shape))
    expected = reference.block_sparse_linear(*(t.double() for t in (x, weight)), mask, bias.double(), block=(16, 16))
    close(got.cpu(), expected, TOLERANCE[dtype])


def test_an_index_of_another_mask_stays_within_the_tensors(machine) -> None:
    """Blocks out of range are left out: nothing is checked on the host, which would have to wait."""
    x, weight, _, options = TILES["3x3"][0]
    index = block_index(torch.ones(3, 2, 3, 3, dtype=torch.bool), (16, 16))
    values = pack(weight, index, (16, 16)).to(torch.bfloat16)
    wrong = index.clone()
    wrong[0, ::5], wrong[1, 1::5], wrong[2, 2::5], wrong[0, 3::5] = 3, 2, 9, -1
    kept = torch.tensor([i % 5 == 4 for i in range(index.shape[1])])
    present = torch.zeros(3, 2, 9, dtype=torch.bool)
    row, column, tap = index[:3, kept].long()
    present[row, column, tap] = True
    x = x.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    got = packed_conv2d(*(machine.put(t) for t in (x, values, wrong)), None, tuple(weight.shape), **options)
    expected = reference.block_sparse_conv2d(
        x.double(), weight.to(torch.bfloat16).double(), present.view(3, 2, 3, 3), **options, block=(16, 16)
    )
    close(got.cpu(), expected, TOLERANCE[torch.bfloat16])


def test_an_empty_batch(machine) -> None:
    _, weight, bias, options = TILES["3x3"][0]
    check(machine, (draw(0, 32, 6, 5), weight, bias, options), (16, 16), torch.bfloat16)
