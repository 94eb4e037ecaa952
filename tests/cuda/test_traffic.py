"""Kernels on tensor cores ask for memory as the machine likes to give it, counted in the interpreter.

Shared memory without bank conflicts, global memory in whole sectors: what a profiler would show of a GPU, line by line.
Where a floor is below 1, its comment says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import interpreter
import pytest
import torch
from simt_build import NoCompilerError

from resgrow import ops


@pytest.fixture(autouse=True)
def simt() -> Iterator[None]:
    try:
        interpreter.library()
    except NoCompilerError as error:
        pytest.skip(str(error))
    with interpreter.installed():
        yield


def pixels(dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(1, 64, 8, 8, dtype=dtype).to(memory_format=torch.channels_last)


def block_sparse(block: tuple[int, int], dtype: torch.dtype) -> None:
    x, w = pixels(dtype).requires_grad_(), torch.randn(64, 64, 3, 3, dtype=dtype, requires_grad=True)
    mask = torch.rand(64 // block[0], 64 // block[1], 3, 3) < 0.3
    y = ops.block_sparse_conv2d(x, w, mask, None, padding=1, block=block)
    y.backward(torch.ones_like(y))


def squared_grad(dtype: torch.dtype) -> None:
    torch.ops.resgrow.squared_grad_conv2d(pixels(dtype), pixels(dtype), [3, 3], [1, 1], [1, 1], [1, 1], 1)


CLEAN = {"shared read": 0.99, "global read": 0.97}  # a row of pixels may begin within a sector
CASES: dict[str, tuple[Callable[[], None], dict[str, dict[str, float]]]] = {
    "block_sparse 16x16 bfloat16": (
        lambda: block_sparse((16, 16), torch.bfloat16),
        {"tiles_kernel": CLEAN, "sum_pieces": CLEAN},
    ),
    "block_sparse 16x16 float32": (
        lambda: block_sparse((16, 16), torch.float32),
        {"tiles_kernel": CLEAN, "sum_pieces": CLEAN},
    ),
    "block_sparse 16x1 bfloat16": (
        lambda: block_sparse((16, 1), torch.bfloat16),
        # Columns of pixels are gathered by their numbers: two may share a bank.
        {"multiply_columns": {"shared read": 0.85, "global read": 0.97}},
    ),
    "squared_grad bfloat16": (lambda: squared_grad(torch.bfloat16), {"contract_tiles": CLEAN}),
    "squared_grad float32": (lambda: squared_grad(torch.float32), {"contract_tiles": CLEAN}),
}


@pytest.mark.parametrize("case", CASES)
def test_hot_kernels_waste_no_traffic(case: str) -> None:
    call, floors = CASES[case]
    with interpreter.traffic() as lines:
        call()
    for kernel, of_kernel in floors.items():
        for what, floor in of_kernel.items():
            of_line = [line for line in lines if kernel in line.kernel and line.what == what]
            needed, taken = sum(line.needed for line in of_line), sum(line.taken for line in of_line)
            assert taken > 0, f"{kernel} makes no {what}: is it the kernel of this case?"
            assert needed >= floor * taken, "\n".join([f"{kernel}, {what}", *interpreter.table(of_line)])
