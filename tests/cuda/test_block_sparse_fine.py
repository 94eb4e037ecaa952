"""Thin blocks gathered into tensor-core tiles: every product against its plain-torch meaning on the same numbers."""

from __future__ import annotations

import pytest
import torch
from block_sparse_cases import CONVS, close, conv_case, draw, draw_mask
from torch import Tensor

from resgrow import ops
from resgrow.ops import reference
from resgrow.ops.block_index import block_index, pack

from .test_block_sparse import TOLERANCE, at, check, check_conv

BLOCKS = [(16, 1), (32, 2), (16, 3), (48, 5)]
# What the cases of the CPU are too small for.
LARGER = {
    "several chunks of channels": conv_case(2, 150, (5, 7), 24, 3, padding=1),
    "several chunks, pointwise": conv_case(2, 600, (3, 5), 17, 1),
    "several chunks, large kernel": conv_case(1, 50, (9, 9), 16, 7, stride=2, padding=3),
    "several chunks of groups": conv_case(1, 240, (5, 6), 96, 3, padding=1, groups=2),
    "blocks of 512 threads": conv_case(1, 24, (9, 12), 200, 3, padding=1),
    "phases of a stride": conv_case(9, 40, (9, 9), 33, 3, stride=(2, 3), padding=1, dilation=2),
    "tiles of 8": conv_case(1, 8, (16, 16), 16, 3, padding=1),
    "tiles of 4": conv_case(3, 8, (8, 4), 128, 3, padding=1),
}


def cut(case: tuple, block: tuple[int, int]) -> bool:
    """Whether the groups' edges cut blocks: those products go elsewhere."""
    _, weight, _, options = case
    groups = options["groups"]
    return groups > 1 and (weight.shape[0] // groups % block[0] != 0 or weight.shape[1] % block[1] != 0)


SOME = ["3x3 ragged", "3x3 stride 3 of few rows", "3x2 uneven", "1x1 many pixels", "1x1 stride 2", "1xk", "groups"]


@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("case", SOME)
def test_conv2d(case: str, block: tuple[int, int], machine) -> None:
    if not cut(CONVS[case], block):
        check_conv(machine, CONVS[case], block, torch.bfloat16)


@pytest.mark.parametrize(
    ("block", "dtype", "density"),
    [((16, 1), torch.bfloat16, 0.3), ((16, 3), torch.float16, 0.05), ((16, 24), torch.bfloat16, 1.0)],
    ids=str,
)
@pytest.mark.parametrize("case", LARGER)
def test_larger(case: str, block: tuple[int, int], dtype: torch.dtype, density: float, machine) -> None:
    if not cut(LARGER[case], block):
        check_conv(machine, LARGER[case], block, dtype, density)


@pytest.mark.parametrize("density", [0.0, 1.0])
@pytest.mark.parametrize("block", [(16, 1), (48, 5)], ids=str)
@pytest.mark.parametrize("case", ["3x3 ragged", "1x1 stride 2"])
def test_empty_and_full_masks(case: str, block: tuple[int, int], density: float, machine) -> None:
    check_conv(machine, CONVS[case], block, torch.float16, density)


@pytest.mark.parametrize("rows", [1, 70])
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_linear(block: tuple[int, int], rows: int, machine) -> None:
    weight = draw(37, 45, seed=1)
    tensors = at(machine, draw(rows, 45), weight, draw(37, seed=2), dtype=torch.bfloat16)
    mask = draw_mask(weight.shape, block)
    check(machine, ops.block_sparse_linear, reference.block_sparse_linear, tensors, mask, block=block)


def arguments(machine, case: tuple, block: tuple[int, int], dtype: torch.dtype, mask: Tensor) -> tuple:
    """Of block_sparse_conv2d, and of the gradients: (x, values, index, grad, outputs, settings)."""
    x, weight, _, options = case
    index = block_index(mask, block)
    y = torch.nn.functional.conv2d(x, weight, **options)
    tensors = x.contiguous(memory_format=torch.channels_last), pack(weight, index, block), draw(*y.shape)
    pairs = [[v, v] if isinstance(v, int) else list(v) for k, v in options.items() if k != "groups"]
    tail = (list(weight.shape[2:]), *pairs, options["groups"])
    x, values, grad = (machine.put(t.to(dtype)) for t in tensors)
    return x, values, machine.put(index), grad, len(weight), tail


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_bits_do_not_depend_on_the_order_of_threads(block: tuple[int, int], machine) -> None:
    case = LARGER["several chunks of channels"]
    mask = draw_mask(case[1].shape, block)
    x, values, index, grad, outputs, tail = arguments(machine, case, block, torch.bfloat16, mask)
    native = torch.ops.resgrow
    runs = [
        (
            native.block_sparse_conv2d(x, values, index, None, outputs, *tail),
            native.block_sparse_conv2d_input_grad(grad, values, index, list(x.shape), *tail),
            native.block_sparse_conv2d_weight_grad(grad, x, index, list(block), *tail),
        )
        for _ in machine.seeds
        for _ in range(2)
    ]
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))


def test_absent_columns_do_not_meet_the_input(machine) -> None:
    """Steps are filled up with columns of zeros, which must not be multiplied with what is infinite in the input."""
    case = CONVS["3x3 ragged"]
    mask = draw_mask(case[1].shape, (16, 1))
    mask[:, 4] = False
    x, values, index, _, outputs, tail = arguments(machine, case, (16, 1), torch.bfloat16, mask)
    expected = torch.ops.resgrow.block_sparse_conv2d(x, values, index, None, outputs, *tail)
    x[:, 4] = torch.inf
    assert torch.equal(torch.ops.resgrow.block_sparse_conv2d(x, values, index, None, outputs, *tail), expected)


@pytest.mark.parametrize("outputs", [40, 37])
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_epilogue(block: tuple[int, int], outputs: int, machine) -> None:
    case = conv_case(2, 19, (5, 6), outputs, 3, padding=1)
    mask = draw_mask(case[1].shape, block)
    x, values, index, _, _, tail = arguments(machine, case, block, torch.float16, mask)
    plain = torch.ops.resgrow.block_sparse_conv2d(x, values, index, None, outputs, *tail)
    bias, residual, positive, negative = (
        machine.put(t.half())
        for t in (case[2], draw(*plain.shape, seed=4), draw(outputs, seed=5), draw(outputs, seed=6))
    )
    residual = residual.contiguous(memory_format=torch.channels_last)
    got = torch.ops.resgrow.block_sparse_conv2d_activated(
        x, values, index, bias, residual, [positive, negative], outputs, *tail
    )
    total = plain.double() + bias.double()[:, None, None] + residual.double()
    slope = torch.where(total >= 0, positive.double()[:, None, None], negative.double()[:, None, None])
    close(got.cpu(), (total * slope).cpu(), TOLERANCE[torch.float16])


@pytest.mark.parametrize("block", [(16, 1), (32, 5)], ids=str)
def test_tf32(block: tuple[int, int], machine) -> None:
    """Where float may be rounded to tf32, thin blocks are multiplied as whole tiles."""
    case = conv_case(2, 24, (5, 6), 36, 3, stride=2, padding=1)
    mask = draw_mask(case[1].shape, block)
    x, values, index, grad, outputs, tail = arguments(machine, case, block, torch.float32, mask)
    native = torch.ops.resgrow

    def products() -> list[Tensor]:
        return [
            native.block_sparse_conv2d(x, values, index, None, outputs, *tail),
            native.block_sparse_conv2d_input_grad(grad, values, index, list(x.shape), *tail),
            native.block_sparse_conv2d_weight_grad(grad, x, index, list(block), *tail),
        ]

    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        exact = products()
        torch.set_float32_matmul_precision("high")
        tf32 = products()
    finally:
        torch.set_float32_matmul_precision(before)
    for rounded, expected in zip(tf32, exact, strict=True):
        close(rounded.cpu(), expected.cpu().double(), 3e-3)
        assert not torch.equal(rounded, expected)
