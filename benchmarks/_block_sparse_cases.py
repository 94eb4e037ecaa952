"""Layers that bench_block_sparse.py and block_sparse_table.py compare with torch's dense ones, and what they report."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch
from _peak import Peak
from _timing import interleave, median_ratio
from torch import Tensor
from torch.nn import functional as F

from resgrow.ops import block_sparse as ops
from resgrow.ops import reference
from resgrow.ops.block_index import block_index, mask_shape, pack, unpack

Calls = dict[str, Callable[[], object]]
Block = tuple[int, int]

# name: (batch, channels in, image side, channels out, kernel, stride)
CONVOLUTIONS = {
    f"{inputs}->{outputs} {kernel}x{kernel} at {side}, batch {batch}": (batch, inputs, side, outputs, kernel, 1)
    for batch, inputs, side, outputs, kernel in [
        *((b, c, s, c, 3) for b in (32, 1) for c, s in ((64, 56), (128, 28), (256, 14), (512, 7))),
        *((b, c, s, 2 * c, 1) for b in (32, 1) for c, s in ((64, 28), (128, 14), (256, 7))),
        *((64, c, s, c, 3) for c, s in ((16, 32), (32, 16), (64, 8))),
    ]
}
# name: (rows, inputs, outputs)
LINEARS = {
    f"{inputs}->{outputs}, {rows} {what}": (rows, inputs, outputs)
    for rows, what, inputs, outputs in [
        *((rows, "images", 512, 1000) for rows in (1, 32, 256)),
        *((rows, "tokens", 768, 3072) for rows in (1, 32, 1024, 4096)),
    ]
}
DENSITIES = (0.85, 0.5, 0.25, 0.1)
BLOCKS = ((16, 1), (16, 16), (8, 1), (4, 1))
TARGETS = {"forward": 0.85, "gradients": 0.7, "linear": 1.0}  # shares
FLOOR = 0.8  # of the memory floor, which a forward product may meet instead
BREAK_EVEN = 0.85  # from this density on, being no slower is the target
TURN = 2e-3  # seconds: shorter calls are repeated
_NATIVE = torch.ops.resgrow


def rows_last(*shape: int) -> Tensor:
    return torch.randn(shape).to(memory_format=torch.channels_last)


def rounds(flops: float) -> int:
    """Enough for a median, within seconds."""
    return int(min(31, max(7, 5e10 / flops)))


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got.double(), want.detach(), rtol=1e-3, atol=1e-5 * want.abs().max().item())


def copy_of(*tensors: Tensor) -> Callable[[], object]:
    """Reads half of the tensors' bytes and writes the other half."""
    half = sum(t.numel() for t in tensors) // 2
    source, target = torch.randn(half), torch.randn(half)
    return lambda: target.copy_(source)


class Sparse:
    """A weight with absent blocks, packed."""

    def __init__(self, weight: Tensor, block: Block, density: float) -> None:
        self.weight, self.block = weight, block
        self.mask = torch.rand(mask_shape(weight.shape, block)) < density
        self.mask.view(-1)[0] = True
        self.density = self.mask.float().mean().item()
        self.index = block_index(self.mask, block)
        self.values = pack(weight, self.index, block).contiguous()


class Convolution(Sparse):
    """One shape, one mask: our three products and torch's."""

    def __init__(self, shape: tuple[int, ...], block: Block, density: float) -> None:
        batch, inputs, side, outputs, kernel, stride = shape
        super().__init__(rows_last(outputs, inputs, kernel, kernel), block, density)
        self.x = rows_last(batch, inputs, side, side)
        self.pairs = [stride] * 2, [kernel // 2] * 2, [1] * 2
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

    def calls(self, product: str) -> tuple[Calls, float]:
        """The contestants of "forward" or "gradients", and the dense one's floating-point operations."""
        if product == "forward":
            return {"ours": self.forward, "dense": self.dense, "copy": copy_of(self.x, self.grad)}, self.flops
        twice = copy_of(self.x, self.x, self.grad, self.grad)
        return {"ours": self.gradients, "dense": self.dense_gradients, "copy": twice}, 2 * self.flops

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


class Linear(Sparse):
    """One shape, one mask: our product and torch's."""

    def __init__(self, shape: tuple[int, ...], block: Block, density: float) -> None:
        rows, inputs, outputs = shape
        super().__init__(torch.randn(outputs, inputs), block, density)
        self.x = torch.randn(rows, inputs)

    def dense(self) -> Tensor:
        return F.linear(self.x, self.weight)

    def linear(self) -> Tensor:
        return ops.packed_linear(self.x, self.values, self.index, None, tuple(self.weight.shape))

    def calls(self, product: str) -> tuple[Calls, float]:
        copy = copy_of(self.x, torch.empty(len(self.x), len(self.weight)))
        return {"ours": self.linear, "dense": self.dense, "copy": copy}, 2.0 * len(self.x) * self.weight.numel()

    def verify(self) -> None:
        close(
            self.linear(),
            reference.block_sparse_linear(self.x.double(), self.weight.double(), self.mask, block=self.block),
        )


def figures(case: Convolution | Linear, product: str, peak: Peak | None) -> dict[str, float]:
    """Times the product against the dense one, a copy and the peak; ratios are medians over interleaved rounds.

    ``ratio`` and ``share`` are as in bench_block_sparse.py. ``peak`` and ``dense_peak`` are the parts of the machine's
    peak of multiply-adds that present weights and the dense product reach. Where our time goes: ``products`` is the
    part that the present multiply-adds take at the pace of such operands, ``floor`` what a copy of input and output
    takes; the rest is packing, ragged tiles, reading weights and dealing out work.
    """
    calls, flops = case.calls(product)
    if peak is not None:
        calls |= {"registers": peak.registers, "broadcast": peak.broadcast}
    times = interleave(calls, rounds(flops), TURN)
    ratio, present = median_ratio(times["dense"], times["ours"]), flops * case.density
    found = {
        "density": case.density,
        "ratio": ratio,
        "share": ratio * case.density,
        "floor": median_ratio(times["copy"], times["ours"]),
        "gflops": 1e-9 * present / median(times["ours"]),
        "dense_gflops": 1e-9 * flops / median(times["dense"]),
    }
    if peak is not None:
        found |= {
            "peak_gflops": 1e-9 * peak.flops / median(times["registers"]),
            "peak": median_ratio(times["registers"], times["ours"]) * present / peak.flops,
            "dense_peak": median_ratio(times["registers"], times["dense"]) * flops / peak.flops,
            "products": median_ratio(times["broadcast"], times["ours"]) * present / peak.flops,
        }
    return found


def verdict(product: str, wanted: float, found: dict[str, float]) -> str:
    """Whether the case of nominal density ``wanted`` meets its target."""
    if wanted >= BREAK_EVEN:
        return "met" if found["ratio"] >= 1 else "missed"
    if found["share"] >= TARGETS[product]:
        return "met"
    return "memory floor" if product == "forward" and found["floor"] >= FLOOR else "missed"
