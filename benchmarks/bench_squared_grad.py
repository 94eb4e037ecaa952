"""squared_grad kernels against torch's own weight gradient, layer by layer, on ResNet-18 and transformer shapes.

    pytest benchmarks/bench_squared_grad.py -s --benchmark-columns=median,rounds --benchmark-json=out.json

A sum of squared per-sample gradients needs the multiply-adds of one weight gradient, so that torch's own (oneDNN's
``convolution_backward`` for the weight alone, one matrix product for linear layers) is the floor, and a layer above
1.15 times the floor is named slow. That floor is torch's, not the processor's: GFLOP/s stand beside it, two per
multiply-add. channels_last, float32, batch 8 of 224x224 images, batch 16 of 64 tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import pytest
import torch
from _timing import interleave, median_ratio, report
from torch import Tensor

from resgrow import ops
from resgrow.ops import reference

SLOW = 1.15
# name: (channels in, channels out, image side, kernel, stride, padding)
CONVOLUTIONS = {
    "stem 3->64 7x7 s2 at 224": (3, 64, 224, 7, 2, 3),
    "64->64 3x3 at 56": (64, 64, 56, 3, 1, 1),
    "64->128 3x3 s2 at 56": (64, 128, 56, 3, 2, 1),
    "128->128 3x3 at 28": (128, 128, 28, 3, 1, 1),
    "128->256 3x3 s2 at 28": (128, 256, 28, 3, 2, 1),
    "256->256 3x3 at 14": (256, 256, 14, 3, 1, 1),
    "256->512 3x3 s2 at 14": (256, 512, 14, 3, 2, 1),
    "512->512 3x3 at 7": (512, 512, 7, 3, 1, 1),
    "64->128 1x1 s2 at 56": (64, 128, 56, 1, 2, 0),
    "128->256 1x1 s2 at 28": (128, 256, 28, 1, 2, 0),
    "256->512 1x1 s2 at 14": (256, 512, 14, 1, 2, 0),
}
# name: (shape of the leading dimensions, features in, features out)
LINEARS = {
    "256->256 on 16x64 tokens": ((16, 64), 256, 256),
    "256->768 on 16x64 tokens": ((16, 64), 256, 768),
    "256->1024 on 16x64 tokens": ((16, 64), 256, 1024),
    "1024->256 on 16x64 tokens": ((16, 64), 1024, 256),
    "512->1000 on 8 samples": ((8,), 512, 1000),
    "256->10 on 16 samples": ((16,), 256, 10),
}
_WEIGHT = [False, True, False]  # of the gradients of input, weight and bias
# ours, floor, multiply-adds of one call
Contest = tuple[Callable[[], Tensor], Callable[[], Tensor], int]


@pytest.fixture(params=sorted({1, torch.get_num_threads()}), ids=lambda n: f"{n} thread{'s' * (n > 1)}")
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def convolution(inputs: int, outputs: int, side: int, kernel: int, stride: int, padding: int) -> Contest:
    """Our kernel and torch's weight gradient on the same tensors."""
    out_side = (side + 2 * padding - kernel) // stride + 1
    x = torch.randn(8, inputs, side, side).to(memory_format=torch.channels_last)
    grad = torch.randn(8, outputs, out_side, out_side).to(memory_format=torch.channels_last)
    weight = torch.empty(outputs, inputs, kernel, kernel).to(memory_format=torch.channels_last)
    pairs = [stride] * 2, [padding] * 2, [1] * 2
    want = reference.squared_grad_conv2d(x[:2].double(), grad[:2].double(), (kernel, kernel), *pairs, 1)
    verify(ops.squared_grad_conv2d(x[:2], grad[:2], kernel, stride, padding), want)

    def floor() -> Tensor:
        return torch.ops.aten.convolution_backward(grad, x, weight, None, *pairs, False, [0, 0], 1, _WEIGHT)[1]

    return lambda: ops.squared_grad_conv2d(x, grad, kernel, stride, padding), floor, grad.numel() * inputs * kernel**2


def linear(leading: tuple[int, ...], inputs: int, outputs: int) -> Contest:
    x, grad = torch.randn(*leading, inputs), torch.randn(*leading, outputs)
    verify(ops.squared_grad_linear(x[:2], grad[:2]), reference.squared_grad_linear(x[:2].double(), grad[:2].double()))
    return (
        lambda: ops.squared_grad_linear(x, grad),
        lambda: grad.flatten(0, -2).t() @ x.flatten(0, -2),
        grad.numel() * inputs,
    )


def verify(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-5 * want.max().item())


@pytest.mark.parametrize("layer", [*CONVOLUTIONS, *LINEARS])
def test_squared_grad(benchmark: Any, layer: str, threads: int) -> None:
    torch.manual_seed(0)
    ours, floor, work = convolution(*CONVOLUTIONS[layer]) if layer in CONVOLUTIONS else linear(*LINEARS[layer])
    times = interleave({"ours": ours, "floor": floor}, 31)
    ratio = median_ratio(times["ours"], times["floor"])
    report(
        benchmark,
        threads=threads,
        over_weight_gradient=ratio,
        floor_ms=1000 * median(times["floor"]),
        floor_gflops=2e-9 * work / median(times["floor"]),
        verdict="slow" if ratio > SLOW else "at its floor",
    )
    benchmark.group = f"squared_grad, {threads} thread{'s' * (threads > 1)}"
    benchmark.pedantic(ours, rounds=5)
