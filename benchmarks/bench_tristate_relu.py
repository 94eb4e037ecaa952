"""tristate_relu, forward and backward, against F.relu and the composition of torch operations, eager and compiled.

    pytest benchmarks/bench_tristate_relu.py --benchmark-columns=median,rounds --benchmark-json=out.json

Floors: at most 1.1 times the time of F.relu, at least 3 times as fast as eager and faster than compiled. At 1e8
elements, of 400 MB a tensor, eager needs 5 GB.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from _timing import interleave, median_ratio, report
from _tristate_cases import SHAPES, Eager
from torch import Tensor
from torch.nn import functional as F

from resgrow import ops


def step(function: Callable[..., Tensor], grad: Tensor, *leaves: Tensor) -> Callable[[], list[Tensor | None]]:
    """A call that runs function forward and backward and gives the gradients of its leaves."""

    def run() -> list[Tensor | None]:
        for leaf in leaves:
            leaf.grad = None
        function(*leaves).backward(grad)
        return [leaf.grad for leaf in leaves]

    return run


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("layout", ["contiguous_format", "channels_last"])
@pytest.mark.parametrize("size", SHAPES)
def test_tristate_relu(benchmark: Any, size: str, layout: str, dtype: torch.dtype, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        memory_format = getattr(torch, layout)
        run(benchmark, torch.randn(SHAPES[size]).to(dtype, memory_format=memory_format))
    finally:
        torch.set_num_threads(before)


def run(benchmark: Any, x: Tensor) -> None:
    grad = torch.randn_like(x)
    w = torch.rand(x.shape[1], requires_grad=True)
    d = torch.tensor(0.3, requires_grad=True)
    x.requires_grad_()
    torch.compiler.reset()  # what was compiled for another number of threads
    contestants = {
        "ours": step(ops.tristate_relu, grad, x, w, d),
        "frozen_gates": step(lambda x: ops.tristate_relu(x, w.detach(), d.detach()), grad, x),
        "relu": step(F.relu, grad, x),
        "eager": step(Eager.apply, grad, x, w, d),
        "compiled": step(torch.compile(Eager.apply, dynamic=False), grad, x, w, d),
    }
    tolerance = 1e-4 if x.dtype == torch.float32 else 2e-2
    for other in ("ours", "compiled"):
        verify(contestants[other](), contestants["eager"](), tolerance, tolerance * x.numel() ** 0.5)
    times = interleave(contestants, max(5, min(300, 10**8 // x.numel())), turn=2e-3)
    report(
        benchmark,
        threads=torch.get_num_threads(),
        bytes=5 * x.nbytes,  # forward: x, y; backward: grad, x, grad_x
        over_relu=median_ratio(times["ours"], times["relu"]),
        frozen_gates_over_relu=median_ratio(times["frozen_gates"], times["relu"]),
        eager_over_ours=median_ratio(times["eager"], times["ours"]),
        compiled_over_ours=median_ratio(times["compiled"], times["ours"]),
    )
    benchmark.pedantic(contestants["ours"], rounds=5)


def verify(found: list[Tensor | None], wanted: list[Tensor | None], rtol: float, atol: float) -> None:
    for got, want in zip(found, wanted, strict=True):
        assert got is not None
        assert want is not None
        torch.testing.assert_close(got, want, rtol=rtol, atol=atol)
