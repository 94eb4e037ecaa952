"""gpu_bench.py: the ceilings of the device, and the families that memory bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from _gpu_clock import Clock, agree, copies
from _gpu_report import Bench, Cases, Row
from _tristate_cases import SHAPES, Eager
from torch import Tensor
from torch.nn import functional as F

from resgrow import ops
from resgrow.ops import reference

LARGE = 10**7  # values from which on a launch does not show
BACKWARD = torch.ops.resgrow.tristate_relu_backward.default


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def ceilings(bench: Bench) -> Cases:
    """What the device reaches with nothing of ours."""

    def copy() -> Iterator[Row]:
        source = torch.randn(10**4 if bench.tiny else 2**29, device=bench.device)
        target = torch.empty_like(source)
        times = bench.clock.measure({"copy": [lambda: target.copy_(source)]})
        yield Row("copy", {"GB/s, read and written": 2e-9 * source.nbytes / times.seconds("copy")})

    def matmul(dtype: torch.dtype, tf32: bool = False) -> Iterator[Row]:
        side = 64 if bench.tiny else 8192
        a, b = torch.randn(2, side, side, device=bench.device).to(dtype).unbind()
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        try:
            times = bench.clock.measure({"matmul": [lambda: a @ b]})
        finally:
            torch.set_float32_matmul_precision(before)
        name = f"matmul {side}, {'tf32' if tf32 else name_of(dtype)}"
        yield Row(name, {"TFLOP/s": 2e-12 * side**3 / times.seconds("matmul")})

    yield "copy", copy
    yield "matmul bfloat16", partial(matmul, torch.bfloat16)
    yield "matmul float16", partial(matmul, torch.float16)
    yield "matmul tf32", partial(matmul, torch.float32, tf32=True)
    yield "matmul float32", partial(matmul, torch.float32)


def tristate_relu(bench: Bench) -> Cases:
    """Forward, backward and both, against the composition, ReLU and a copy."""
    shapes = {"1e7": (1, 3, 5, 7)} if bench.tiny else dict(reversed(SHAPES.items()))
    for size, shape in shapes.items():
        for layout in (torch.channels_last, torch.contiguous_format):
            for dtype in bench.dtypes:
                yield f"{size} {name_of(dtype)} {layout}", partial(_tristate, bench, size, shape, dtype, layout)
            if size == "1e7":
                yield f"compiled {layout}", partial(_compiled, bench, size, shape, layout)


class _Rectifier:
    """One shape: buffers, gates and the contestants over them."""

    def __init__(
        self, clock: Clock, shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format, count: int = 0
    ) -> None:
        x = torch.randn(shape, device=clock.device).to(dtype, memory_format=layout)
        count = count or clock.sets(2 * x.nbytes)
        self.xs, self.grads = copies(x, count), copies(torch.randn_like(x), count)
        self.w = torch.rand(shape[1], device=clock.device)
        self.d = torch.tensor(0.3, device=clock.device)

    def forward(self, function: Callable[..., Tensor]) -> list[Callable[[], object]]:
        return [partial(function, x, self.w, self.d) for x in self.xs]

    def both(self, function: Callable[..., Tensor], gates: bool = True) -> list[Callable[[], object]]:
        extra = [t.clone().requires_grad_(gates) for t in (self.w, self.d)]

        def step(x: Tensor, grad: Tensor) -> object:
            leaves = [x, *extra] if gates else [x]
            return torch.autograd.grad(function(x, *extra), leaves, grad)

        return [partial(step, x.detach().requires_grad_(), grad) for x, grad in zip(self.xs, self.grads, strict=True)]

    def verify(self) -> None:
        x, grad = self.xs[0], self.grads[0]
        agree(ops.tristate_relu(x, self.w, self.d), reference.tristate_relu(x, self.w, self.d), 0.0)
        found = BACKWARD(grad, x, self.w, self.d, True, True)
        wanted = reference.tristate_relu_backward(grad.double(), x.double(), self.w.double(), self.d.double())
        for got, want, tolerance in zip(found, wanted, (0.0, 1e-4, 1e-4), strict=True):
            agree(got, want, tolerance)


def _relu(x: Tensor, w: Tensor, d: Tensor) -> Tensor:
    return F.relu(x)


def _tristate(
    bench: Bench, size: str, shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format
) -> Iterator[Row]:
    case = _Rectifier(bench.clock, shape, dtype, layout)
    case.verify()
    targets = copies(torch.empty_like(case.xs[0]), len(case.xs))
    pairs = list(zip(case.grads, case.xs, strict=True))
    copy = [partial(t.copy_, x) for t, x in zip(targets, case.xs, strict=True)]
    kinds: dict[str, tuple[float, dict[str, list[Callable[[], object]]]]] = {
        # copies that its bytes are worth: forward reads x and writes y; backward reads x and grad and writes grad_x
        "forward": (
            1.0,
            {
                "ours": case.forward(ops.tristate_relu),
                "eager": case.forward(reference.tristate_relu),
                "relu": case.forward(_relu),
            },
        ),
        "backward": (
            1.5,
            {
                "ours": [partial(BACKWARD, grad, x, case.w, case.d, True, True) for grad, x in pairs],
                "eager": [partial(reference.tristate_relu_backward, grad, x, case.w, case.d) for grad, x in pairs],
            },
        ),
        "forward+backward": (
            2.5,
            {
                "ours": case.both(ops.tristate_relu),
                "eager": case.both(Eager.apply),
                "relu": case.both(_relu, gates=False),
            },
        ),
    }
    for kind, (worth, contestants) in kinds.items():
        times = bench.clock.measure({**contestants, "copy": copy}, limit=0.7)
        share, faster = worth * times.ratio("copy", "ours"), times.ratio("eager", "ours")
        figures: dict[str, float | str] = {
            "us": 1e6 * times.seconds("ours"),
            "bandwidth / copy": share,
            "eager / ours": faster,
        }
        if "relu" in contestants:
            figures["relu / ours"] = times.ratio("relu", "ours")
        targets = {"tristate_relu: eager / ours": faster}
        if case.xs[0].numel() >= 0.9 * LARGE:
            targets["tristate_relu: bandwidth / copy, from 1e7 values"] = share
        format_ = "channels_last" if layout == torch.channels_last else "NCHW"
        yield Row(f"{kind}, {size} {name_of(dtype)}, {format_}", figures, targets)


def _compiled(bench: Bench, size: str, shape: tuple[int, ...], layout: torch.memory_format) -> Iterator[Row]:
    """Against what the compiler makes of the composition: seconds to compile, so of one size only."""
    case = _Rectifier(bench.clock, shape, torch.bfloat16, layout, count=1)
    compiled = torch.compile(Eager.apply, dynamic=False, backend="eager" if bench.tiny else "inductor")
    times = bench.clock.measure({"ours": case.both(ops.tristate_relu), "compiled": case.both(compiled)})
    format_ = "channels_last" if layout == torch.channels_last else "NCHW"
    figures: dict[str, float | str] = {
        "us": 1e6 * times.seconds("ours"),
        "compiled / ours": times.ratio("compiled", "ours"),
    }
    yield Row(f"forward+backward against torch.compile, {size} bfloat16, {format_}", figures)


def select(bench: Bench) -> Cases:
    """Thresholds and masks, of one tensor and of as many as a network has."""
    for n in [10**4] if bench.tiny else [10**8, 10**7, 10**6]:
        for dtype in reversed(bench.dtypes):
            for tensors in (1, 161):
                yield f"{n:.0e} {name_of(dtype)} in {tensors}", partial(_select, bench, n, dtype, tensors)


def _select(bench: Bench, n: int, dtype: torch.dtype, tensors: int) -> Iterator[Row]:
    clock, k = bench.clock, n // 2
    flat = torch.randn(n, device=bench.device).to(dtype)
    sets = [list(s.tensor_split(tensors)) for s in copies(flat, clock.sets(flat.nbytes))]
    threshold, mask = ops.select_threshold(sets[0], k), ops.select_mask(sets[0], k)
    assert threshold == flat.sort().values[k - 1], f"threshold {threshold} is not the {k}-th smallest"
    assert sum(int(m.sum()) for m in mask) == n - k, "the mask keeps another number than it should"
    target = torch.empty_like(flat)
    times = clock.measure(
        {
            "threshold": [partial(ops.select_threshold, s, k) for s in sets],
            "mask": [partial(ops.select_mask, s, k) for s in sets],
            "copy": [partial(target.copy_, torch.cat(s)) for s in sets],
        }
    )
    once = 0.5 * times.ratio("copy", "threshold")  # a copy reads and writes
    figures: dict[str, float | str] = {
        "us": 1e6 * times.seconds("threshold"),
        "bandwidth of one reading / copy": once,
        "threshold / copy": times.ratio("threshold", "copy"),
        "mask / copy": times.ratio("mask", "copy"),
    }
    if tensors == 1:
        slow = clock.measure(
            {
                "threshold": [lambda: ops.select_threshold(flat, k)],
                "mask": [lambda: ops.select_mask(flat, k)],
                "kthvalue": [lambda: flat.kthvalue(k)],
                "topk mask": [
                    lambda: torch.zeros_like(flat, dtype=torch.bool).index_fill_(0, flat.topk(n - k)[1], True)
                ],
                "sort mask": [lambda: flat > flat.sort()[0][k - 1]],
            },
            rounds=3,
            graphs=False,
        )
        figures["kthvalue / threshold"] = slow.ratio("kthvalue", "threshold")
        figures |= {f"{name} / mask": slow.ratio(name, "mask") for name in ("topk mask", "sort mask")}
    targets = {}
    if n >= LARGE:
        targets["select_threshold: bandwidth of one reading / copy, from 1e7 scores"] = once
        targets["select: time / three copies, from 1e7 scores"] = times.ratio("threshold", "copy") / 3
    queued = " (not captured)" if "threshold" in times.queued and bench.device.type == "cuda" else ""
    yield Row(f"{n:.0e} {name_of(dtype)} in {tensors} tensors{queued}", figures, targets)
