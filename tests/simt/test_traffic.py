"""What lines of a kernel ask of memory: sectors, and turns at the banks of shared memory."""

from __future__ import annotations

from collections.abc import Iterator

import interpreter
import pytest
import torch
from simt_build import NoCompilerError


@pytest.fixture(autouse=True)
def simt() -> Iterator[None]:
    try:
        interpreter.library()
    except NoCompilerError as error:
        pytest.skip(str(error))
    with interpreter.installed():
        yield


def lines_of(name: str, n: int, size: int, results: int) -> list[tuple[str, int, int]]:
    x, y = torch.randn(size), torch.empty(results)
    with interpreter.traffic() as lines:
        torch.ops.resgrow_simt.run(name, False, [x, y], n)
    assert all(name in line.kernel and line.place.startswith("tests/simt/kernels/warps.cu:") for line in lines)
    assert all(line.requests == 1 for line in lines)
    return sorted((line.what, line.taken, line.needed) for line in lines)


@pytest.mark.parametrize(("n", "sectors", "turns"), [(1, 4, 1), (2, 8, 2), (5, 20, 1), (8, 32, 8), (32, 32, 32)])
def test_strides(n: int, sectors: int, turns: int) -> None:
    assert lines_of("strided", n, 31 * n + 1, 32) == [
        ("global read", sectors, 4),
        ("global write", 4, 4),
        ("shared read", turns, 1),
        ("shared write", turns, 1),
    ]


@pytest.mark.parametrize(("n", "turns"), [(4, 4), (20, 4), (8, 8), (16, 16)])
def test_rows_of_vectors(n: int, turns: int) -> None:
    """16 bytes each: 8 lanes a turn, if their rows lie in different banks, as 20 floats' do and 16 floats' do not."""
    assert lines_of("strided_vectors", n, 31 * n + 4, 128) == [
        ("global read", 16 if n == 4 else 32, 16),
        ("global write", 16, 16),
        ("shared read", turns, 4),
        ("shared write", turns, 4),
    ]


def test_nothing_is_counted_unasked() -> None:
    torch.ops.resgrow_simt.run("strided", False, [torch.randn(32), torch.empty(32)], 1)
    with interpreter.traffic() as lines:
        pass
    assert lines == []
