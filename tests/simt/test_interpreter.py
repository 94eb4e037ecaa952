"""The interpreter catches every planted fault, in any order of threads, and lets the right kernel pass."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import ModuleType

import interpreter
import pytest
import torch
from simt_build import NoCompilerError

SEEDS = range(6)


@pytest.fixture
def simt() -> Iterator[ModuleType]:
    try:
        interpreter.library()
    except NoCompilerError as error:
        pytest.skip(str(error))
    with interpreter.installed() as library:
        yield library


def run(name: str, *tensors: torch.Tensor, wrong: bool = False, n: int = 0) -> None:
    torch.ops.resgrow_simt.run(name, wrong, list(tensors), n)


def there_and_back(t: torch.Tensor, width: int) -> torch.Tensor:
    return t.view(-1, width).flip(1).reshape(-1)


# Kernel, size of x, size of y, n, what y must be, and what the wrong kernel is told.
FAULTS = [
    (
        "reversed",
        64,
        64,
        0,
        lambda x: x.flip(0),
        r"race: reads 4 bytes, byte \d+ of shared memory, .*wrote|nobody wrote",
    ),
    (
        "reversed_twice",
        128,
        128,
        0,
        lambda x: there_and_back(x, 64),
        r"race: .* 4 bytes, byte \d+ of shared memory, which .*(read|wrote)",
    ),
    ("swapped", 32, 32, 0, lambda x: there_and_back(x, 2), r"race: .* shared memory|nobody wrote"),
    ("swapped_after_shuffle", 32, 32, 0, lambda x: there_and_back(x, 2), r"race: reads .* wrote at"),
    ("sum_over_blocks", 4, 4, 0, lambda x: x + 1, r"race: .* blocks of one launch are not ordered"),
    ("overlapping", 32, 32, 0, None, r"race: writes 2 bytes, byte 64 of a tensor .* blocks of one launch"),
    ("differences", 40, 39, 40, torch.diff, r"out of bounds: reads 4 bytes, 0 bytes past the end of .* of 160 bytes"),
    ("shifted", 40, 40, 40, lambda x: x, r"out of bounds: writes 4 bytes, 4 bytes before a tensor"),
    ("filled", 40, 40, 40, torch.ones_like, r"out of bounds: writes 4 bytes, 0 bytes past the end of"),
    ("shared_end", 32, 32, 0, lambda x: x, r"out of bounds: writes 4 bytes at byte 128 of 128 bytes of shared"),
    ("shared_end_read", 32, 32, 0, lambda x: x, r"out of bounds: reads 4 bytes at byte 128 of 128 bytes of shared"),
    ("half_filled", 32, 32, 0, lambda x: x, r"reads 4 bytes that nobody wrote, byte 124 of shared"),
    (
        "barrier_of_some",
        64,
        64,
        0,
        lambda x: x,
        r"deadlock .* 15 more: returned.* 47 more: waits at __syncthreads",
    ),
    ("barrier_after_return", 64, 64, 0, lambda x: x, r"deadlock .*thread \(5,0,0\): returned"),
    ("two_barriers", 64, 64, 0, lambda x: x, r"divergent barrier: __syncthreads at .*faults.cu.* while others wait at"),
    ("local_end", 32, 32, 0, lambda x: x[:4].repeat(8), r"index out of an array's bounds"),
    ("vectors", 129, 128, 0, lambda x: x[:128], r"reads at an address that is not a multiple of 16: byte"),
    ("vectors_by_pointer", 65, 32, 0, lambda x: x[:64:2], r"accesses a type at an address that is not a multiple of 8"),
    ("local_of_another", 32, 32, 0, lambda x: x, r"reads another thread's local memory"),
    ("histogram", 64, 64, 0, lambda x: x, r"race: .* shared memory"),
    ("waited", 256, 256, 0, lambda x: x, r"while the copy_async .* has not been waited for"),
    ("committed", 256, 256, 0, lambda x: x, r"while the copy_async .* has not been waited for"),
    ("waited_for_both", 256, 256, 0, lambda x: x, r"while the copy_async .* has not been waited for"),
    ("published", 256, 256, 0, lambda x: x, r"race|has not been waited for"),
    (
        "refilled",
        128,
        128,
        0,
        lambda x: x,
        r"race: .* 4 bytes, byte \d+ of shared memory, which .*(read|wrote)|not been waited for",
    ),
    (
        "cut_off",
        252,
        256,
        252,
        lambda x: torch.cat([x, torch.zeros(4)]),
        r"out of bounds: reads 16 bytes, 0 bytes past",
    ),
    ("copied_aligned", 258, 256, 0, lambda x: x[:256], r"reads at an address that is not a multiple of 16: byte"),
    ("rows_aligned", 160, 128, 0, None, r"reads at an address that is not a multiple of 16: byte \d+ of shared"),
    ("rows_together", 128, 128, 0, None, r"the lanes of a warp part: load_matrices at .* others wait at load_matrices"),
    ("rows_written", 128, 128, 0, None, r"race: reads 16 bytes, .* wrote|nobody wrote"),
    ("shuffle_of_some", 32, 32, 0, lambda x: x, r"deadlock .* 15 more: returned.* 15 more: waits at a shuffle"),
    (
        "shuffle_and_vote",
        32,
        32,
        0,
        lambda x: x,
        r"the lanes of a warp part: a (vote|shuffle) .* wait at a (vote|shuffle)",
    ),
    ("partly_masked", 32, 32, 0, lambda x: x, r"shuffle: the mask must be full \(got 0xffff\)"),
]


@pytest.mark.parametrize(
    ("name", "in_size", "out_size", "n", "expected", "message"), FAULTS, ids=[f[0] for f in FAULTS]
)
def test_faults(simt: ModuleType, name: str, in_size: int, out_size: int, n: int, expected, message: str) -> None:
    for seed in SEEDS:
        simt.set_seed(seed)
        x, y = torch.randn(in_size), torch.ones(out_size)
        run(name, x, y, n=n)
        if expected is not None:
            torch.testing.assert_close(y, expected(x), rtol=0, atol=0)
        with pytest.raises(RuntimeError) as raised:
            run(name, x, y, wrong=True, n=n)
        text = str(raised.value)
        assert re.search(message, text, re.DOTALL), text
        # Who and where: kernel, thread and line.
        assert re.search(rf"in .*{name}<false>", text), text
        assert re.search(r"tests/simt/kernels/\w+\.cu:\d+", text), text
        assert "deadlock" in text or re.search(r"by thread \(\d+,0,0\) of block \(\d+,0,0\)", text), text


def test_last_block_adds_up_behind_a_fence(simt: ModuleType) -> None:
    for seed in SEEDS:
        simt.set_seed(seed)
        x, y, parts = torch.randn(4), torch.zeros(1), torch.zeros(4)
        run("last_block", x, y, parts, torch.zeros(1, dtype=torch.int32))
        torch.testing.assert_close(y, x.sum(0, keepdim=True))
        with pytest.raises(RuntimeError, match=r"race: reads 4 bytes.* blocks of one launch are not ordered"):
            run("last_block", x, y, parts, torch.zeros(1, dtype=torch.int32), wrong=True)


def test_memory_that_torch_left_unwritten(simt: ModuleType) -> None:
    x = torch.empty(32)
    assert x.isnan().all()  # poison: no number in any type
    with pytest.raises(RuntimeError, match=r"reads 4 bytes that nobody wrote, byte \d+ of a tensor"):
        run("shared_end", x, torch.empty(32))
    run("shared_end", x.fill_(1), torch.empty(32))


def test_tensors_from_before_are_named(simt: ModuleType) -> None:
    with interpreter.on_host():
        x = torch.ones(1 << 20)
    with pytest.raises(RuntimeError, match=r"copy .*machine\.put"):
        run("shared_end", x, torch.ones(32))


def test_waiting_for_ever(simt: ModuleType) -> None:
    tensors = torch.randn(32), torch.empty(32), torch.empty(1), torch.zeros(1, dtype=torch.int32)
    simt.set_patience(10_000)
    try:
        run("waiting", *tensors)
        with pytest.raises(RuntimeError, match="a block has made 10000 accesses"):
            run("waiting", *tensors, wrong=True)
    finally:
        simt.set_patience(1 << 30)


def test_goes_on_after_a_fault(simt: ModuleType) -> None:
    x, y = torch.randn(64), torch.empty(64)
    with pytest.raises(RuntimeError):
        run("barrier_of_some", x, y, wrong=True)
    run("barrier_of_some", x, y)
    assert torch.equal(x, y)


def test_leaves_the_cpu_operators_as_they_were() -> None:
    x = torch.ones(2, 3)
    before = torch.ops.resgrow.squared_grad_linear(x, x)
    with interpreter.installed():
        inside = torch.ones(2)
    assert torch.equal(torch.ops.resgrow.squared_grad_linear(x, x), before)
    assert torch.equal(inside + torch.ones(2), torch.full((2,), 2.0))  # its memory outlives the interpreter
