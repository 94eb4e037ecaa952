"""Our BlockSparseConv2d with blocks (16, 1) against sparseprop's SparseConv2d with single weights, equal densities.

    pip install pybind11 scipy && pip install --no-build-isolation --no-deps sparseprop==0.1.14
    pytest benchmarks/bench_sparseprop.py -s --benchmark-columns=median,rounds

Shapes are those of sparseprop's own comparison scripts (``examples/compare_conv2d.py``, ``correctness_conv2d.py``),
without padding as there, and ResNet-18's layers as its fine-tuning example trains them; sparsities are the script's.
Each contestant has its best settings: sparseprop NCHW tensors and the better of its two vectorisations, found anew for
each measurement; ours channels_last ones. Both are verified against the dense layer first. ``forward`` and ``step``
(forward and backward, to input and weight) are sparseprop's time over ours: target above 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from _timing import interleave, median_ratio, report
from torch import Tensor, nn

from resgrow.nn import BlockSparseConv2d

sparseprop = pytest.importorskip("sparseprop.modules", reason="sparseprop is not installed (see this file's docstring)")

# name: (batch, channels in, image side, channels out, kernel, padding, stride)
LAYERS = {
    "compare_conv2d": (64, 128, 32, 128, 3, 0, 1),
    "correctness_conv2d": (256, 512, 7, 512, 3, 0, 1),
    "ResNet-18 layer1": (64, 64, 56, 64, 3, 1, 1),
    "ResNet-18 layer2, stride 2": (64, 64, 56, 128, 3, 1, 2),
    "ResNet-18 layer3": (64, 256, 14, 256, 3, 1, 1),
    "ResNet-18 downsampling": (64, 128, 28, 256, 1, 0, 2),
}
DENSITIES = (0.2, 0.1, 0.05, 0.02, 0.01)
BLOCK = (16, 1)


@pytest.fixture(params=sorted({1, torch.get_num_threads()}), ids=lambda n: f"{n} thread{'s' * (n > 1)}")
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)  # OpenMP's, which sparseprop uses too
    yield request.param
    torch.set_num_threads(before)


def sparse(layer: nn.Conv2d, keep: Tensor) -> nn.Conv2d:
    """A copy of the layer with zeros where ``keep`` is False."""
    result = nn.Conv2d(
        layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, bias=False
    )
    with torch.no_grad():
        result.weight.copy_(layer.weight * keep)
    return result


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-3, atol=2e-5 * want.abs().max().item())


class Contestant:
    """One layer with an input in the memory format that suits it."""

    def __init__(self, layer: nn.Module, x: Tensor, grad: Tensor, memory_format: torch.memory_format) -> None:
        self.layer = layer
        self.x, self.grad = (t.contiguous(memory_format=memory_format) for t in (x, grad))

    @torch.no_grad()
    def forward(self) -> Tensor:
        return self.layer(self.x)

    def step(self) -> Tensor:
        x = self.x.detach().requires_grad_()
        self.layer.zero_grad()
        self.layer(x).backward(self.grad)
        assert x.grad is not None
        return x.grad

    def verify(self, dense: nn.Conv2d, present: Callable[[Tensor], Tensor]) -> None:
        """Values, input gradient, and the sum of the weight gradient's entries, which need not be in one order."""
        x = self.x.detach().requires_grad_()
        dense.zero_grad()
        y = dense(x)
        y.backward(self.grad)
        close(self.forward(), y.detach())
        close(self.step(), x.grad)
        (weight,) = self.layer.parameters()
        close(weight.grad.flatten().sort().values, present(dense.weight.grad).sort().values)


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("name", LAYERS)
def test_sparseprop(benchmark: Any, name: str, density: float, threads: int) -> None:
    torch.manual_seed(0)
    batch, inputs, side, outputs, kernel, padding, stride = LAYERS[name]
    plain = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
    blocks = torch.rand(outputs // BLOCK[0], inputs, kernel, kernel) < density
    # As many single weights as the blocks hold.
    scores = torch.rand(outputs, inputs, kernel, kernel)
    kept = int(blocks.sum()) * BLOCK[0]
    single = scores <= scores.flatten().kthvalue(kept).values
    x = torch.randn(batch, inputs, side, side)
    grad = torch.randn_like(plain(x))

    ours_dense, theirs_dense = sparse(plain, blocks.repeat_interleave(BLOCK[0], 0)), sparse(plain, single)
    contestants = {
        "ours": Contestant(BlockSparseConv2d.from_dense(ours_dense, blocks, BLOCK), x, grad, torch.channels_last)
    }
    for over in (False, True):
        layer = sparseprop.SparseConv2d.from_dense(theirs_dense, vectorizing_over_on=over)
        contestants[f"over {'width' if over else 'batch'}"] = Contestant(layer, x, grad, torch.contiguous_format)
    contestants["ours"].verify(ours_dense, lambda g: g[blocks.repeat_interleave(BLOCK[0], 0)])
    for other in list(contestants)[1:]:
        contestants[other].verify(theirs_dense, lambda g: g[single])

    ratios = {}
    for what in ("forward", "step"):
        times = interleave({key: getattr(c, what) for key, c in contestants.items()}, 7)
        ratios[what] = min(median_ratio(times[key], times["ours"]) for key in list(contestants)[1:])
    report(benchmark, threads=threads, density=blocks.float().mean().item(), **ratios)
    benchmark.group = f"sparseprop, {threads} threads"
    benchmark.pedantic(contestants["ours"].forward, rounds=3)
