"""Shuffles, votes, atomics, matrix instructions and conversions of the interpreter against plain loops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType

import interpreter
import pytest
import torch
from simt_build import NoCompilerError


@pytest.fixture(params=range(3))
def simt(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    try:
        interpreter.library()
    except NoCompilerError as error:
        pytest.skip(str(error))
    with interpreter.installed() as library:
        library.set_seed(request.param)
        yield library


def run(name: str, x: torch.Tensor, y: torch.Tensor, n: int = 0) -> torch.Tensor:
    torch.ops.resgrow_simt.run(name, False, [x, y], n)
    return y


def words(count: int) -> torch.Tensor:
    return torch.randint(-(2**31), 2**31, (count,), dtype=torch.int64).to(torch.int32)


def unsigned(values: torch.Tensor) -> list[int]:
    return [v % 2**32 for v in values.tolist()]


def test_shuffles(simt: ModuleType) -> None:
    v = words(32)
    y = unsigned(run("shuffles", v, torch.zeros(9 * 32, dtype=torch.int32)))
    sources: list[Callable[[int], int]] = [
        lambda lane: 5,
        lambda lane: 31 - lane,
        lambda lane: lane ^ 6,
        lambda lane: lane - 3 if lane >= 3 else lane,
        lambda lane: lane + 3 if lane + 3 < 32 else lane,
        lambda lane: lane // 8 * 8 + 1,
        lambda lane: lane - 2 if lane % 8 >= 2 else lane,
        lambda lane: lane + 2 if lane % 8 < 6 else lane,
    ]
    for row, source in enumerate(sources):
        assert y[32 * row : 32 * row + 32] == [unsigned(v)[source(lane)] for lane in range(32)], row
    assert y[8 * 32 :] == [1] * 32


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_votes(simt: ModuleType, share: float) -> None:
    bits = torch.rand(3, 32) < share
    v = words(32) & ~7 | bits[0] * 1 | bits[1] * 2 | bits[2] * 4
    v = v.to(torch.int32)
    y = unsigned(run("votes", v, torch.zeros(7 * 32, dtype=torch.int32)))
    rows = [y[32 * i : 32 * i + 32] for i in range(7)]
    assert rows[0] == [sum(int(b) << i for i, b in enumerate(bits[0]))] * 32
    assert rows[1] == [int(bits[1].any())] * 32
    assert rows[2] == [int(bits[2].all())] * 32
    assert rows[3] == [w.bit_count() for w in unsigned(v)]
    assert rows[4] == [32 - w.bit_length() for w in unsigned(v)]
    assert rows[5] == [int(f"{w:032b}"[::-1], 2) for w in unsigned(v)]
    assert rows[6] == [(w & -w).bit_length() for w in unsigned(v)]


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_votes_of_a_block(simt: ModuleType, share: float) -> None:
    bits = torch.rand(3, 64) < share
    v = (bits[0] * 1 | bits[1] * 2 | bits[2] * 4).to(torch.int32)
    y = run("block_votes", v, torch.zeros(3 * 64, dtype=torch.int32)).view(3, 64)
    expected = [bits[0].sum(), bits[1].any(), bits[2].all()]
    assert torch.equal(y, torch.tensor([[int(e)] for e in expected], dtype=torch.int32).expand(3, 64))


def test_atomics(simt: ModuleType) -> None:
    v = words(256)
    y = torch.zeros(9, dtype=torch.int32)
    y[1], y[4], y[5] = -1, 2**31 - 1, -(2**31)  # as unsigned, the largest; the largest; the smallest
    run("atomics", v, y)
    got, given, total = unsigned(y), unsigned(v), sum(unsigned(v))
    every = 0
    for w in given:
        every |= w
    assert got[:4] == [total % 2**32, min(given), max(given), every]
    assert y[4:6].tolist() == [v.min(), v.max()]
    assert got[6] + (got[7] << 32) == total
    assert got[8] == total % 2**32


def test_matrices(simt: ModuleType) -> None:
    rows = torch.randint(0, 2**16, (4, 8, 8))
    x = rows.to(torch.uint16).view(torch.int32).reshape(-1)
    y = unsigned(run("matrices", x, torch.zeros(12 * 32, dtype=torch.int32)))

    def registers(matrices: torch.Tensor) -> list[int]:
        pairs = matrices.view(-1, 8, 4, 2)  # matrix, row, lane % 4, half
        return (pairs[..., 0] + (pairs[..., 1] << 16)).reshape(-1).tolist()

    columns = rows.transpose(1, 2).contiguous()
    assert y == registers(rows) + registers(columns) + registers(rows[:2]) + registers(columns[:2])


@pytest.mark.parametrize(("name", "dtype"), [("BFloat16", torch.bfloat16), ("Half", torch.float16)])
def test_products(simt: ModuleType, name: str, dtype: torch.dtype) -> None:
    a, b, d = torch.randn(16, 16).to(dtype), torch.randn(16, 8).to(dtype), torch.randn(16, 8)
    expected = d.double() + a.double() @ b.double()
    run(f"products<{name}>", torch.cat([a.flatten(), b.flatten()]), d)
    torch.testing.assert_close(d.double(), expected, rtol=1e-6, atol=1e-5)


def tf32(t: torch.Tensor, rounded: bool) -> torch.Tensor:
    bits = t.view(torch.int32) + (0x1000 if rounded else 0)
    return (bits & ~0x1FFF).view(torch.float32).double()


@pytest.mark.parametrize("rounded", [False, True])
def test_products_tf32(simt: ModuleType, rounded: bool) -> None:
    a, b, d = torch.randn(16, 8), torch.randn(8, 8), torch.randn(16, 8)
    expected = d.double() + tf32(a, rounded) @ tf32(b, rounded)
    run("products_tf32", torch.cat([a.flatten(), b.flatten()]), d, n=int(rounded))
    torch.testing.assert_close(d.double(), expected, rtol=1e-6, atol=5e-6)


@pytest.mark.parametrize(("name", "dtype"), [("BFloat16", torch.bfloat16), ("Half", torch.float16)])
def test_conversions(name: str, dtype: torch.dtype) -> None:
    """All 65,536 of 16 bits, and floats at, next to and between them."""
    every = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(dtype)
    wide = every.float()
    steps = wide.nan_to_num(nan=1.0)
    up = torch.nextafter(steps, torch.full_like(steps, torch.inf))
    ends = torch.nextafter(every.nan_to_num(nan=1.0), torch.tensor(torch.inf, dtype=dtype)).float()
    halfway = torch.where(ends.isinf() | steps.isinf(), steps, (steps.double() + ends.double()).mul(0.5).float())
    around = [torch.nextafter(halfway, torch.full_like(steps, sign * torch.inf)) for sign in (-1, 1)]
    with interpreter.installed():
        y = run(f"widened<{name}>", torch.zeros(1), torch.empty(2**16))
        assert torch.equal(y.isnan(), wide.isnan())
        assert torch.equal(y.nan_to_num(nan=1.0).view(torch.int32), steps.view(torch.int32))
        for values in (wide, up, halfway, *around, torch.randn(2**16) * 1e5):
            bits = run(f"narrowed<{name}>", values.clone(), torch.zeros(2**16, dtype=torch.int32))
            got = bits.to(torch.uint16).view(dtype)
            torch.testing.assert_close(got, values.to(dtype), rtol=0, atol=0, equal_nan=True)
