"""Block-sparse products against the dense layer of torch: forward, both gradients, linear, and the optimizer's step.

    pytest benchmarks/bench_block_sparse.py -s --benchmark-columns=median,rounds --benchmark-json=out.json

Each case is verified against the masked reference, then interleaved with torch's dense layer (oneDNN, channels_last,
float32, the same threads). ``share`` is the ratio times the density: 1 means that absent blocks cost nothing and
present ones what they cost oneDNN. Targets: forward .85, both gradients .7, linear 1. ``floor`` is the time of the
cheapest call conceivable, reading the input and writing the output once (a copy of that many bytes), over ours: a case
above .8 is at the memory floor. GFLOP/s count present weights only and stand beside the peak of one thread's
multiply-adds, measured as the dense product of a shape that suits oneDNN best.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import pytest
import torch
from _timing import interleave, median_ratio, report
from torch import Tensor, nn
from torch.nn import functional as F

from resgrow.nn import BlockSparseConv2d
from resgrow.ops import block_sparse as ops
from resgrow.ops import reference
from resgrow.ops.block_index import block_index, mask_shape, pack, unpack

# name: (batch, channels in, image side, channels out, kernel, stride)
CONVOLUTIONS = {
    f"{inputs}->{outputs} {kernel}x{kernel} at {side}, batch {batch}": (batch, inputs, side, outputs, kernel, 1)
    for batch, inputs, side, outputs, kernel in [
        *((b, c, s, c, 3) for b in (32, 1) for c, s in ((64, 56), (128, 28), (256, 14), (512, 7))),
        *((b, c, s, 2 * c, 1) for b in (32, 1) for c, s in ((64, 28), (128, 14), (256, 7))),
        *((64, c, s, c, 3) for c, s in ((16, 32), (32, 16), (64, 8))),
    ]
}
LINEARS = {"512->1000, batch 256": (256, 512, 1000), "768->3072, 1024 tokens": (1024, 768, 3072)}
DENSITIES = (0.85, 0.5, 0.25, 0.1)
BLOCKS = ((16, 1), (16, 16))
_NATIVE = torch.ops.resgrow


@pytest.fixture(params=sorted({1, torch.get_num_threads()}), ids=lambda n: f"{n} thread{'s' * (n > 1)}")
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def rows_last(*shape: int) -> Tensor:
    return torch.randn(shape).to(memory_format=torch.channels_last)


def rounds(flops: float) -> int:
    """Enough for a median, within seconds."""
    return int(min(31, max(7, 5e10 / flops)))


class Convolution:
    """One shape, one mask: our three products and torch's."""

    def __init__(self, shape: tuple[int, ...], block: tuple[int, int], density: float) -> None:
        batch, inputs, side, outputs, kernel, stride = shape
        padding = kernel // 2
        self.x, self.weight = rows_last(batch, inputs, side, side), rows_last(outputs, inputs, kernel, kernel)
        self.pairs = [stride] * 2, [padding] * 2, [1] * 2
        self.mask = torch.rand(mask_shape(self.weight.shape, block)) < density
        self.mask.view(-1)[0] = True
        self.density = self.mask.float().mean().item()
        self.block, self.index = block, block_index(self.mask, block)
        self.values = pack(self.weight, self.index, block).contiguous()
        self.grad = torch.randn_like(self.dense())
        self.flops = 2.0 * self.grad.numel() * inputs * kernel**2

    def dense(self) -> Tensor:
        return F.conv2d(self.x, self.weight, None, *self.pairs)

    def dense_gradients(self) -> object:
        wanted = [True, True, False]
        return torch.ops.aten.convolution_backward(
            self.grad, self.x, self.weight, None, *self.pairs, False, [0, 0], 1, wanted
        )

    def forward(self) -> Tensor:
        return ops.packed_conv2d(self.x, self.values, self.index, None, tuple(self.weight.shape), *self.pairs)

    def gradients(self) -> tuple[Tensor, Tensor]:
        tail = (self.weight.shape[2:], *self.pairs, 1)
        return (
            _NATIVE.block_sparse_conv2d_input_grad(self.grad, self.values, self.index, self.x.shape, *tail),
            _NATIVE.block_sparse_conv2d_weight_grad(self.grad, self.x, self.index, self.block, *tail),
        )

    def verify(self) -> None:
        """Two images: enough to show that the numbers are right."""
        x, grad = self.x[:2], self.grad[:2]
        leaves = [t.double().requires_grad_() for t in (x, self.weight)]
        y = reference.block_sparse_conv2d(*leaves, self.mask, None, *self.pairs, block=self.block)
        expected = torch.autograd.grad(y, leaves, grad.double())
        whole, self.x, self.grad = (self.x, self.grad), x, grad
        forward, (grad_x, grad_values) = self.forward(), self.gradients()
        self.x, self.grad = whole
        close(forward, y)
        close(grad_x, expected[0])
        close(unpack(grad_values, self.index, self.weight.shape), expected[1])


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got.double(), want.detach(), rtol=1e-3, atol=1e-5 * want.abs().max().item())


def copy_of(*tensors: Tensor) -> Callable[[], object]:
    """Reads half of the tensors' bytes and writes the other half."""
    half = sum(t.numel() for t in tensors) // 2
    source, target = torch.randn(half), torch.randn(half)
    return lambda: target.copy_(source)


def publish(benchmark: Any, times: dict[str, list[float]], density: float, flops: float, **figures: object) -> None:
    ratio = median_ratio(times["dense"], times["ours"])
    report(
        benchmark,
        **figures,
        density=density,
        ratio=ratio,
        share=ratio * density,
        floor=median_ratio(times["copy"], times["ours"]),
        gflops=1e-9 * flops * density / median(times["ours"]),
        dense_gflops=1e-9 * flops / median(times["dense"]),
    )


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("layer", CONVOLUTIONS)
def test_convolution(benchmark: Any, layer: str, block: tuple[int, int], density: float, threads: int) -> None:
    torch.manual_seed(0)
    case = Convolution(CONVOLUTIONS[layer], block, density)
    case.verify()
    contestants = {"ours": case.forward, "dense": case.dense, "copy": copy_of(case.x, case.grad)}
    times = interleave(contestants, rounds(case.flops))
    publish(benchmark, times, case.density, case.flops, what="forward", threads=threads)
    benchmark.group = f"block_sparse forward, {threads} threads"
    benchmark.pedantic(case.forward, rounds=3)


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("layer", CONVOLUTIONS)
def test_gradients(benchmark: Any, layer: str, block: tuple[int, int], density: float, threads: int) -> None:
    torch.manual_seed(0)
    case = Convolution(CONVOLUTIONS[layer], block, density)
    case.verify()
    twice = copy_of(case.x, case.x, case.grad, case.grad)
    contestants = {"ours": case.gradients, "dense": case.dense_gradients, "copy": twice}
    times = interleave(contestants, rounds(2 * case.flops))
    publish(benchmark, times, case.density, 2 * case.flops, what="gradients", threads=threads)
    benchmark.group = f"block_sparse gradients, {threads} threads"
    benchmark.pedantic(case.gradients, rounds=3)


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("layer", LINEARS)
def test_linear(benchmark: Any, layer: str, block: tuple[int, int], density: float, threads: int) -> None:
    torch.manual_seed(0)
    batch, inputs, outputs = LINEARS[layer]
    x, weight = torch.randn(batch, inputs), torch.randn(outputs, inputs)
    mask = torch.rand(mask_shape(weight.shape, block)) < density
    index = block_index(mask, block)
    values = pack(weight, index, block).contiguous()

    def ours() -> Tensor:
        return ops.packed_linear(x, values, index, None, tuple(weight.shape))

    close(ours(), reference.block_sparse_linear(x.double(), weight.double(), mask, block=block))
    flops = 2.0 * batch * weight.numel()
    contestants = {"ours": ours, "dense": lambda: F.linear(x, weight), "copy": copy_of(x, torch.empty(batch, outputs))}
    times = interleave(contestants, rounds(flops))
    publish(benchmark, times, mask.float().mean().item(), flops, what="linear", threads=threads)
    benchmark.group = f"block_sparse linear, {threads} threads"
    benchmark.pedantic(ours, rounds=3)


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
