"""gpu_bench.py: block-sparse products of ResNet-50's and transformers' shapes against cuDNN and cuBLAS."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
from _block_sparse_cases import Sparse
from _gpu_clock import Times, agree, copies
from _gpu_pointwise import name_of
from _gpu_report import Bench, Cases, Row
from torch import Tensor
from torch.nn import functional as F

from resgrow.ops import reference
from resgrow.ops.block_index import mask_shape, unpack

# (channels in, image side, channels out, kernel) of ResNet-50's layers of stride 1
LAYERS = [
    *((c, side, c, 3) for c, side in ((64, 56), (128, 28), (256, 14), (512, 7))),
    *((c, side, 4 * c, 1) for c, side in ((64, 56), (128, 28), (256, 14), (512, 7))),
    *((4 * c, side, c, 1) for c, side in ((64, 56), (128, 28), (256, 14), (512, 7))),
]
LINEARS = [(768, 3072), (3072, 768), (1024, 4096), (4096, 4096)]  # on 4096 tokens
Variant = tuple[tuple[int, int], float]  # block and density
BLOCKS = ((16, 16), (32, 32), (64, 64), (16, 1))
QUARTER: list[Variant] = [(block, 0.25) for block in BLOCKS]
DENSITIES: list[Variant] = [((32, 32), density) for density in (0.1, 0.5, 0.7)]
BREAK_EVEN: list[Variant] = [(block, density) for block in ((16, 16), (32, 32), (16, 1)) for density in (0.7, 0.8, 0.9)]
PRODUCTS = ("forward", "input_grad", "weight_grad")
TOLERANCES = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 2e-3}  # float32: tf32 products
_NATIVE = torch.ops.resgrow


@dataclass(frozen=True)
class Problem:
    """A layer on its images; a linear layer is a convolution of images of one pixel."""

    batch: int
    inputs: int
    side: int
    outputs: int
    kernel: int
    dtype: torch.dtype
    linear: bool = False

    @property
    def flops(self) -> float:
        return 2.0 * self.batch * self.side**2 * self.inputs * self.outputs * self.kernel**2

    def __str__(self) -> str:
        if self.linear:
            return f"linear {self.inputs}->{self.outputs}, {self.batch} rows, {name_of(self.dtype)}"
        size = f"{self.kernel}x{self.kernel} at {self.side}, batch {self.batch}"
        return f"{self.inputs}->{self.outputs} {size}, {name_of(self.dtype)}"


def block_sparse(bench: Bench) -> Cases:
    """What decides first: density a quarter, then other densities, batches, types and linear layers."""
    bf16, half = torch.bfloat16, torch.float16 if bench.device.type == "cuda" else torch.bfloat16
    if bench.tiny:
        plan = [
            (Problem(2, 32, 5, 48, 3, bf16), [((16, 16), 0.25), ((16, 1), 0.7)]),
            (Problem(5, 64, 1, 32, 1, torch.float32, linear=True), [((16, 16), 0.25)]),
        ]
    else:
        plan = [(Problem(64, *layer, bf16), QUARTER + DENSITIES) for layer in LAYERS]
        plan += [(Problem(256, *layer, bf16), QUARTER) for layer in LAYERS]
        plan += [(Problem(4096, i, 1, o, 1, bf16, linear=True), QUARTER + DENSITIES) for i, o in LINEARS]
        plan += [(Problem(64, *layer, bf16), BREAK_EVEN) for layer in LAYERS[1:8:2]]
        plan += [(Problem(64, *layer, dtype), QUARTER) for dtype in (half, torch.float32) for layer in LAYERS[1:8:2]]
    for problem, variants in plan:
        yield str(problem), partial(_rows, bench, problem, variants)


def _rows(bench: Bench, problem: Problem, variants: Sequence[Variant]) -> Iterator[Row]:
    with tf32_allowed():
        layer = _Layer(bench, problem, variants)
        layer.verify()
        times = bench.clock.measure(layer.contestants(), rounds=7, limit=2.0)
        for name, sparse in layer.sparse.items():
            yield _row(layer, name, sparse, times)


def _row(layer: _Layer, name: str, sparse: Sparse, times: Times) -> Row:
    speedups = {product: times.ratio(f"dense {product}", f"{name} {product}") for product in PRODUCTS}
    present = layer.problem.flops * sparse.density
    rate = present / times.seconds(f"{name} forward")
    figures: dict[str, float | str] = {"us": 1e6 * times.seconds(f"{name} forward")}
    figures |= {f"{product}: dense / ours": speedup for product, speedup in speedups.items()}
    figures |= {
        "TFLOP/s of present blocks": 1e-12 * rate,
        "% of matmul": 100 * rate / layer.matmul_flops * times.seconds("matmul"),
        "dense TFLOP/s": 1e-12 * layer.problem.flops / times.seconds("dense forward"),
    }
    targets = {}
    wanted = layer.variants[name][1]
    if wanted == 0.25 and layer.problem.dtype == torch.bfloat16 and not layer.problem.linear:
        targets["block_sparse forward: cuDNN / ours at density .25"] = speedups["forward"]
        worse = min(speedups["input_grad"], speedups["weight_grad"])
        targets["block_sparse gradients: their speed-up / the forward's"] = worse / speedups["forward"]
    if wanted == 0.7 and layer.problem.dtype == torch.bfloat16 and not layer.problem.linear:
        targets["block_sparse forward: cuDNN / ours at density .7"] = speedups["forward"]
    return Row(f"{layer.problem}, {name}", figures, targets)


class _Layer:
    """Buffers, weights with absent blocks, and the contestants over them."""

    def __init__(self, bench: Bench, problem: Problem, variants: Sequence[Variant]) -> None:
        self.problem, p = problem, problem
        self.tail = ([p.kernel] * 2, [1] * 2, [p.kernel // 2] * 2, [1] * 2, 1)
        with bench.device:
            x = _images(p.batch, p.inputs, p.side).to(p.dtype)
            grad = _images(p.batch, p.outputs, p.side).to(p.dtype)
            self.weight = (torch.randn(p.outputs, p.inputs, p.kernel, p.kernel) / p.kernel).to(p.dtype)
            self.weight = self.weight.to(memory_format=torch.channels_last)
            self.variants = {
                f"{block} at {density:g}": (block, density)
                for block, density in variants
                if bench.tiny or prod(mask_shape(self.weight.shape, block)) >= 16
            }
            self.sparse = {name: Sparse(self.weight, *variant) for name, variant in self.variants.items()}
            side = 64 if bench.tiny else 8192
            self.matmul_operands = torch.randn(2, side, side).to(p.dtype).unbind()
            self.matmul_flops = 2.0 * side**3
        count = bench.clock.sets(min(x.nbytes, grad.nbytes))
        self.xs, self.grads = copies(x, count), copies(grad, count)

    def forward(self, sparse: Sparse, x: Tensor) -> Tensor:
        return _NATIVE.block_sparse_conv2d(x, sparse.values, sparse.index, None, self.problem.outputs, *self.tail)

    def input_grad(self, sparse: Sparse, grad: Tensor, x: Tensor) -> Tensor:
        return _NATIVE.block_sparse_conv2d_input_grad(grad, sparse.values, sparse.index, x.shape, *self.tail)

    def weight_grad(self, sparse: Sparse, grad: Tensor, x: Tensor) -> Tensor:
        return _NATIVE.block_sparse_conv2d_weight_grad(grad, x, sparse.index, sparse.block, *self.tail)

    def dense_forward(self, x: Tensor) -> Tensor:
        if self.problem.linear:
            return F.linear(x.flatten(1), self.weight.flatten(1))
        _, stride, padding, dilation, groups = self.tail
        return F.conv2d(x, self.weight, None, stride, padding, dilation, groups)

    def dense_gradient(self, weight: bool, grad: Tensor, x: Tensor) -> Tensor:
        if self.problem.linear:
            return grad.flatten(1).t() @ x.flatten(1) if weight else grad.flatten(1) @ self.weight.flatten(1)
        _, stride, padding, dilation, groups = self.tail
        wanted = [not weight, weight, False]
        found = torch.ops.aten.convolution_backward(
            grad, x, self.weight, None, stride, padding, dilation, False, [0, 0], groups, wanted
        )
        return found[int(weight)]

    def contestants(self) -> dict[str, list[Callable[[], object]]]:
        pairs = list(zip(self.grads, self.xs, strict=True))
        found: dict[str, list[Callable[[], object]]] = {
            "matmul": [partial(torch.matmul, *self.matmul_operands)],
            "dense forward": [partial(self.dense_forward, x) for x in self.xs],
            "dense input_grad": [partial(self.dense_gradient, False, *pair) for pair in pairs],
            "dense weight_grad": [partial(self.dense_gradient, True, *pair) for pair in pairs],
        }
        for name, sparse in self.sparse.items():
            found[f"{name} forward"] = [partial(self.forward, sparse, x) for x in self.xs]
            found[f"{name} input_grad"] = [partial(self.input_grad, sparse, *pair) for pair in pairs]
            found[f"{name} weight_grad"] = [partial(self.weight_grad, sparse, *pair) for pair in pairs]
        return found

    def verify(self) -> None:
        """Two images, or the first rows of a linear layer."""
        some = 64 if self.problem.linear else 2
        x, grad = self.xs[0][:some], self.grads[0][:some]
        tolerance = TOLERANCES[self.problem.dtype]
        for sparse in self.sparse.values():
            leaves = [t.double().requires_grad_() for t in (x, self.weight)]
            _, stride, padding, *_ = self.tail
            y = reference.block_sparse_conv2d(*leaves, sparse.mask, None, stride, padding, block=sparse.block)
            wanted = torch.autograd.grad(y, leaves, grad.double())
            agree(self.forward(sparse, x), y.detach(), tolerance)
            agree(self.input_grad(sparse, grad, x), wanted[0], tolerance)
            values = self.weight_grad(sparse, grad, x)
            agree(unpack(values, sparse.index, self.weight.shape), wanted[1], tolerance)


def _images(*shape: int) -> Tensor:
    return torch.randn(*shape, shape[-1]).to(memory_format=torch.channels_last)


@contextmanager
def tf32_allowed(allowed: bool = True) -> Iterator[None]:
    """For float32 products, of torch's and of ours."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
