"""Block-sparse products against the dense layer of torch: forward, both gradients, linear, and the optimizer's step.

    pytest benchmarks/bench_block_sparse.py -s --benchmark-columns=median,rounds --benchmark-json=out.json

Each case is verified against the masked reference, then interleaved with torch's dense layer (oneDNN, channels_last,
float32, the same threads). ``share`` is the ratio times the density: 1 means that absent blocks cost nothing and
present ones what they cost oneDNN. Targets: forward .85, both gradients .7, linear 1. ``floor`` is the time of the
cheapest call conceivable, reading the input and writing the output once (a copy of that many bytes), over ours: a case
above .8 is at the memory floor. ``peak`` is the part of the machine's measured peak of multiply-adds that present
weights reach, ``dense_peak`` the dense layer's; see ``figures`` in _block_sparse_cases.py.

Blocks and densities are chosen with pytest's ``-k``, e.g. ``-k "8x1 and 0.25"``; block_sparse_table.py writes a
table of all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from _block_sparse_cases import BLOCKS, CONVOLUTIONS, DENSITIES, LINEARS, Convolution, Linear, figures
from _peak import peak
from _timing import interleave, median_ratio, report
from torch import Tensor, nn

from resgrow.nn import BlockSparseConv2d


@pytest.fixture(params=sorted({1, torch.get_num_threads()}), ids=lambda n: f"{n} thread{'s' * (n > 1)}")
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def publish(benchmark: Any, case: Convolution | Linear, product: str, threads: int) -> None:
    case.verify()
    found = figures(case, product, peak(threads))
    report(benchmark, what=product, threads=threads, **found)
    benchmark.group = f"block_sparse {product}, {threads} threads"
    benchmark.pedantic(case.calls(product)[0]["ours"], rounds=3)


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("block", BLOCKS, ids="{0[0]}x{0[1]}".format)
@pytest.mark.parametrize("layer", CONVOLUTIONS)
@pytest.mark.parametrize("product", ["forward", "gradients"])
def test_convolution(
    benchmark: Any, product: str, layer: str, block: tuple[int, int], density: float, threads: int
) -> None:
    torch.manual_seed(0)
    publish(benchmark, Convolution(CONVOLUTIONS[layer], block, density), product, threads)


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("block", BLOCKS, ids="{0[0]}x{0[1]}".format)
@pytest.mark.parametrize("layer", LINEARS)
def test_linear(benchmark: Any, layer: str, block: tuple[int, int], density: float, threads: int) -> None:
    torch.manual_seed(0)
    publish(benchmark, Linear(LINEARS[layer], block, density), "linear", threads)


@pytest.mark.parametrize("density", [0.5, 0.1])
def test_optimizer(benchmark: Any, density: float) -> None:
    """An Adam step and its memory on the compact parameter against the dense one: 512->512, 3x3."""
    torch.manual_seed(0)
    dense = nn.Conv2d(512, 512, 3, padding=1, bias=False)
    sparse = BlockSparseConv2d.from_dense(dense, torch.rand(32, 512, 3, 3) < density)
    steps, numbers = {}, {}
    for name, layer in (("dense", dense), ("ours", sparse)):
        optimizer = torch.optim.Adam(layer.parameters())
        for p in layer.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
        state = [t for entry in optimizer.state.values() for t in entry.values() if isinstance(t, Tensor)]
        numbers[name] = sum(t.numel() for t in (*layer.parameters(), *(p.grad for p in layer.parameters()), *state))
        steps[name] = optimizer.step
    times = interleave(steps, 31)
    report(
        benchmark,
        density=density,
        time=median_ratio(times["ours"], times["dense"]),
        memory=numbers["ours"] / numbers["dense"],
    )
    benchmark.pedantic(steps["ours"], rounds=3)
