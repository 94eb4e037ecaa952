"""Fixtures shared by all tests."""

from collections.abc import Iterator

import pytest
import torch

from resgrow._load import _C


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same numbers, whichever tests run before it."""
    torch.manual_seed(0)


@pytest.fixture(params=_C.build_info()["usable_isas"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once with the kernels of every instruction set that this processor has."""
    before = _C.cpu_isa()
    _C.set_cpu_isa(request.param)
    yield request.param
    _C.set_cpu_isa(before)


@pytest.fixture
def threads() -> Iterator[None]:
    """Restores torch's number of threads after a test that changes it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
