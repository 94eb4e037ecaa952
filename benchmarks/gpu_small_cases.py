"""Every CUDA operator once or twice on sizes that tools which slow kernels down a thousandfold can bear.

    compute-sanitizer --tool racecheck python benchmarks/gpu_small_cases.py

Sizes are ragged: no multiples of tiles, vectors or blocks. Inputs are made on the CPU and copied, so that initcheck
knows them for written. Values and gradients are compared with float64 on the CPU; exit code 1 where they differ.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from resgrow import ops
from resgrow.ops.block_index import block_index, pack

# Relative to the norm of the result: rounding of the inputs of products and of the result.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
Case = tuple[str, Callable[..., object], list[Tensor]]


def draw(*shape: int, channels_last: bool = False) -> Tensor:
    t = torch.randn(shape)
    return t.contiguous(memory_format=torch.channels_last) if channels_last else t


def pointwise_cases() -> Iterator[Case]:
    gates = torch.tensor([0.2, 0.5, 0.9]).repeat(13)[:37]
    for name, x in [("NCHW", draw(3, 37, 5, 7)), ("channels_last", draw(3, 37, 5, 7, channels_last=True))]:
        yield f"tristate_relu {name}", ops.tristate_relu, [x, gates, torch.tensor(0.7)]
    yield "tristate_relu columns", ops.tristate_relu, [draw(70, 37), gates, torch.tensor(0.3)]


def squared_cases() -> Iterator[Case]:
    settings = {"kernel_size": 3, "stride": (1, 2), "padding": 1, "dilation": 1}
    for family in ("squared_grad", "squared_input_grad"):
        linear, conv2d, norm = (getattr(ops, f"{family}_{layer}") for layer in ("linear", "conv2d", "norm"))
        yield f"{family}_linear", linear, [draw(33, 45), draw(33, 19)]
        yield f"{family}_linear on sequences", linear, [draw(3, 21, 37), draw(3, 21, 70)]
        images, grads = draw(2, 19, 7, 9, channels_last=True), draw(2, 37, 7, 5, channels_last=True)
        yield f"{family}_conv2d", lambda x, g, f=conv2d: f(x, g, **settings), [images, grads]
        yield f"{family}_conv2d 1x1", lambda x, g, f=conv2d: f(x, g, 1), [draw(2, 35, 5, 5), draw(2, 18, 5, 5)]
        grouped = [draw(2, 12, 6, 6), draw(2, 20, 6, 6)]
        yield f"{family}_conv2d groups", lambda x, g, f=conv2d: f(x, g, 3, padding=1, groups=4), grouped
        yield f"{family}_norm", norm, [draw(3, 19, 5, 7), draw(3, 19, 5, 7), draw(19), draw(19).abs()]
    yield "squared_grad_bias", ops.squared_grad_bias, [draw(3, 19, 5, 7)]


def select_cases() -> Iterator[Case]:
    scores = [draw(1000), draw(31, 7), draw(1)]
    for k in (1, 700, 1218):
        yield f"select_threshold {k}", lambda *s, k=k: ops.select_threshold(s, k), scores
        yield f"select_mask {k}", lambda *s, k=k: ops.select_mask(s, k), scores
    curvatures = [draw(*t.shape) for t in scores]
    yield "select_mask_obd", lambda *t: ops.select_mask_obd(t[:3], t[3:], 0.1, 700), [*scores, *curvatures]


def block_cases() -> Iterator[Case]:
    for block in ((16, 1), (16, 16), (32, 32), (8, 4)):
        outputs, inputs = 70, 37
        mask = torch.rand(-(-outputs // block[0]), -(-inputs // block[1]), 3, 3) < 0.4
        weight, bias = draw(outputs, inputs, 3, 3) / 18, draw(outputs)
        images = draw(2, inputs, 7, 9, channels_last=True)

        def conv(x: Tensor, w: Tensor, b: Tensor, mask: Tensor = mask, block: tuple[int, int] = block) -> Tensor:
            return ops.block_sparse_conv2d(x, w, mask.to(x.device), b, stride=(2, 1), padding=1, block=block)

        yield f"block_sparse_conv2d {block}", conv, [images, weight, bias]
        flat = mask[:, :, 0, 0].contiguous()

        def linear(x: Tensor, w: Tensor, b: Tensor, mask: Tensor = flat, block: tuple[int, int] = block) -> Tensor:
            return ops.block_sparse_linear(x, w, mask.to(x.device), b, block=block)

        yield f"block_sparse_linear {block}", linear, [draw(35, inputs), weight[:, :, 0, 0].contiguous(), bias]

    def activated(x: Tensor, w: Tensor, b: Tensor, residual: Tensor, up: Tensor, down: Tensor) -> Tensor:
        index = block_index(mask.to(x.device), (16, 1))
        values = pack(w, index, (16, 1))
        with torch.no_grad():
            return ops.block_sparse.packed_conv2d(
                x, values, index, b, (48, 37, 3, 3), padding=1, slopes=(up, down), residual=residual
            )

    mask = torch.rand(3, 37, 3, 3) < 0.4
    tensors = [draw(2, 37, 6, 7, channels_last=True), draw(48, 37, 3, 3) / 18, draw(48)]
    yield "block_sparse_conv2d activated", activated, [*tensors, draw(2, 48, 6, 7), torch.ones(48), torch.zeros(48)]


def results(function: Callable[..., object], tensors: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
    """Values, and gradients of all inputs for the given ones of all outputs, where there are any."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    found = function(*leaves)
    outputs = [found] if isinstance(found, Tensor) else list(found)  # type: ignore[call-overload]
    if outputs[0].requires_grad:
        if not grads:
            grads.extend(torch.randn(y.shape, dtype=torch.float64).to(y.device, y.dtype) for y in outputs)
        like = [g.to(y.device, y.dtype) for g, y in zip(grads, outputs, strict=True)]
        outputs = [*(y.detach() for y in outputs), *torch.autograd.grad(outputs, leaves, like)]
    return outputs


def cases() -> list[Case]:
    torch.manual_seed(0)
    return [*pointwise_cases(), *squared_cases(), *select_cases(), *block_cases()]


def worst(
    case: Case,
    dtype: torch.dtype,
    put: Callable[[Tensor], Tensor],
    on_host: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> float:
    """Largest relative error of the case's results, from tensors that ``put`` puts on the device."""
    _, function, tensors = case
    rounded = [t.to(dtype) for t in tensors]
    grads: list[Tensor] = []
    found = results(function, [put(t) for t in rounded], grads)
    with on_host():
        wanted = results(function, [t.double() for t in rounded], grads)
    errors = [
        (a.cpu().double() - b.double()).norm() / b.double().norm().clamp_min(1e-30)
        for a, b in zip(found, wanted, strict=True)
    ]
    return max(float(error) if torch.isfinite(error) else float("inf") for error in errors)


def main() -> int:
    parser = argparse.ArgumentParser(description="Small cases of every CUDA operator, for compute-sanitizer.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtypes", default="float32,bfloat16,float16", help="default: all three")
    arguments = parser.parse_args()
    wrong, chosen = 0, cases()
    for dtype in (getattr(torch, name) for name in arguments.dtypes.split(",")):
        for case in chosen:
            error = worst(case, dtype, lambda t: t.to(arguments.device))
            right = error <= TOLERANCES[dtype]
            wrong += not right
            print(f"{'ok   ' if right else 'WRONG'} {error:8.1e} {dtype!s:15} {case[0]}", flush=True)
    print(f"{wrong} wrong of {len(chosen)} cases in each of {arguments.dtypes}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
