"""The machine that tests of CUDA code run on: a GPU, or the interpreter of tests/simt."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import interpreter
import pytest
import torch
from simt_build import NoCompilerError

# Orders of threads and blocks, and numbers of multiprocessors, that a test may ask for.
SEEDS = (1, 2, 3)


class Gpu:
    """A real device."""

    is_simt = False
    device = torch.device("cuda")
    seeds = (0,)

    def put(self, t: torch.Tensor) -> torch.Tensor:
        """The tensor on the device, laid out as it is here."""
        return _copied(t, self.device)

    def on_host(self) -> AbstractContextManager[None]:
        """Within it, CPU tensors go to the CPU kernels."""
        return nullcontext()


class Simt:
    """The interpreter: the device is the host, and within the test its operators are the CUDA ones, interpreted."""

    is_simt = True
    device = torch.device("cpu")

    @property
    def seeds(self) -> Iterator[int]:
        """``for seed in machine.seeds``: the same once more, in another order of threads."""
        for seed in SEEDS:
            interpreter.library().set_seed(seed)
            yield seed

    def put(self, t: torch.Tensor) -> torch.Tensor:
        """A copy laid out as the tensor, in memory that the interpreter watches."""
        return _copied(t, self.device)

    def on_host(self) -> AbstractContextManager[None]:
        return interpreter.on_host()


def _copied(t: torch.Tensor, device: torch.device) -> torch.Tensor:
    if t.numel() == 0:
        return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=device).requires_grad_(t.requires_grad)
    # A view stays a view: what lies between its elements, and before them, is there too.
    extent = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
    offset = t.storage_offset()
    memory = torch.empty(offset + extent, dtype=t.dtype, device=device)
    memory[offset:].copy_(t.detach().as_strided((extent,), (1,)))
    return memory.as_strided(t.shape, t.stride(), offset).requires_grad_(t.requires_grad)


@pytest.fixture(params=["simt", pytest.param("cuda", marks=pytest.mark.cuda)])
def machine(request: pytest.FixtureRequest) -> Iterator[Gpu | Simt]:
    """Runs the test in the interpreter, and on a GPU where there is one and ``resgrow._C_cuda`` is loaded."""
    if request.param == "cuda":
        import resgrow._load

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        if getattr(resgrow._load, "_C_cuda", None) is None:
            pytest.skip("resgrow was built without CUDA")
        yield Gpu()
        return
    try:
        library = interpreter.library()
    except NoCompilerError as error:
        pytest.skip(str(error))
    library.set_seed(SEEDS[0])
    with interpreter.installed():
        if os.environ.get("RESGROW_SIMT_TRAFFIC"):
            with interpreter.traffic() as lines:
                yield Simt()
            print("", *interpreter.table(lines), sep="\n")
        else:
            yield Simt()
