"""gpu_bench.py: sums of squared per-sample gradients against weight gradients, and a pass over ResNet-50."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count

import torch
from _gpu_block_sparse import tf32_allowed
from _gpu_clock import agree, copies
from _gpu_models import resnet50
from _gpu_pointwise import name_of
from _gpu_report import Bench, Cases, Row
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional as F

import resgrow
from resgrow import ops
from resgrow._memory import peak_bytes
from resgrow.ops import reference

Shape = tuple[int, int, int, int, int]  # channels in, out, image side, kernel, stride
# ResNet-50's convolutions, and how many of each it has
LAYERS: dict[Shape, int] = {
    (3, 64, 224, 7, 2): 1,
    (64, 64, 56, 1, 1): 1,
    (64, 64, 56, 3, 1): 3,
    (64, 256, 56, 1, 1): 4,
    (256, 64, 56, 1, 1): 2,
    (256, 128, 56, 1, 1): 1,
    (128, 128, 56, 3, 2): 1,
    (256, 512, 56, 1, 2): 1,
    (128, 128, 28, 3, 1): 3,
    (128, 512, 28, 1, 1): 4,
    (512, 128, 28, 1, 1): 3,
    (512, 256, 28, 1, 1): 1,
    (256, 256, 28, 3, 2): 1,
    (512, 1024, 28, 1, 2): 1,
    (256, 256, 14, 3, 1): 5,
    (256, 1024, 14, 1, 1): 6,
    (1024, 256, 14, 1, 1): 5,
    (1024, 512, 14, 1, 1): 1,
    (512, 512, 14, 3, 2): 1,
    (1024, 2048, 14, 1, 2): 1,
    (512, 512, 7, 3, 1): 2,
    (512, 2048, 7, 1, 1): 3,
    (2048, 512, 7, 1, 1): 2,
}
TOLERANCES = {torch.bfloat16: 1e-2, torch.float32: 1e-4}
LARGEST = 2**31  # bytes of per-sample gradients


def squared_grad(bench: Bench) -> Cases:
    """Each layer against its own weight gradient, then all layers of the network together."""
    layers = {(3, 4, 6, 3, 1): 1, (4, 6, 6, 1, 2): 2} if bench.tiny else LAYERS
    for dtype in bench.dtypes:
        for batch in (3,) if bench.tiny else (256, 64):
            sums = {"ours": 0.0, "weight gradient": 0.0}
            for shape, multiple in layers.items():
                yield f"{shape}", partial(_layer, bench, shape, batch, dtype, multiple, sums)
            yield "all layers", partial(_all, batch, dtype, sums)


def _layer(
    bench: Bench, shape: Shape, batch: int, dtype: torch.dtype, multiple: int, sums: dict[str, float]
) -> Iterator[Row]:
    inputs, outputs, side, kernel, stride = shape
    out_side = (side + 2 * (kernel // 2) - kernel) // stride + 1
    with bench.device:
        x = torch.randn(batch, inputs, side, side).to(dtype, memory_format=torch.channels_last)
        grad = torch.randn(batch, outputs, out_side, out_side).to(dtype, memory_format=torch.channels_last)
        weight = torch.randn(outputs, inputs, kernel, kernel).to(dtype, memory_format=torch.channels_last)
    settings = [stride] * 2, [kernel // 2] * 2, [1] * 2

    def ours(x: Tensor, grad: Tensor) -> Tensor:
        return ops.squared_grad_conv2d(x, grad, kernel, *settings)

    def gradient(x: Tensor, grad: Tensor) -> Tensor:
        wanted = [False, True, False]
        return torch.ops.aten.convolution_backward(grad, x, weight, None, *settings, False, [0, 0], 1, wanted)[1]

    def per_sample(x: Tensor, grad: Tensor) -> Tensor:
        return vmap(lambda x, grad: gradient(x[None], grad[None]))(x, grad).square().sum(0)

    want = reference.squared_grad_conv2d(x[:2].double(), grad[:2].double(), (kernel, kernel), *settings, 1)
    agree(ours(x[:2], grad[:2]), want, TOLERANCES[dtype])
    sets = bench.clock.sets(x.nbytes + grad.nbytes)
    pairs = list(zip(copies(x, sets), copies(grad, sets), strict=True))
    contestants: dict[str, list[Callable[[], object]]] = {
        "ours": [partial(ours, *pair) for pair in pairs],
        "weight gradient": [partial(gradient, *pair) for pair in pairs],
    }
    if batch <= 64 and dtype == torch.bfloat16 and batch * weight.nbytes <= LARGEST:
        contestants["vmap"] = [partial(per_sample, x, grad)]
    with tf32_allowed(False):
        times = bench.clock.measure(contestants, limit=0.5)
    for name in sums:
        sums[name] += multiple * times.seconds(name)
    flops = 2.0 * grad.numel() * inputs * kernel**2
    figures: dict[str, float | str] = {
        "us": 1e6 * times.seconds("ours"),
        "ours / weight gradient": times.ratio("ours", "weight gradient"),
        "TFLOP/s": 1e-12 * flops / times.seconds("ours"),
    }
    if "vmap" in contestants:
        figures["vmap / ours"] = times.ratio("vmap", "ours")
    size = f"{kernel}x{kernel}{' s2' * (stride == 2)} at {side}"
    yield Row(f"{inputs}->{outputs} {size}, batch {batch}, {name_of(dtype)}", figures)


def _all(batch: int, dtype: torch.dtype, sums: dict[str, float]) -> Iterator[Row]:
    figures = {"us": 1e6 * sums["ours"], "ours / weight gradient": sums["ours"] / sums["weight gradient"]}
    yield Row(f"all convolutions, batch {batch}, {name_of(dtype)}", figures)


def curvature(bench: Bench) -> Cases:
    """A pass for diagonal curvature against forward and backward, under autocast."""
    for batch in (4,) if bench.tiny else (256, 64):
        yield f"batch {batch}", partial(_pass, bench, batch)


def _pass(bench: Bench, batch: int) -> Iterator[Row]:
    model, x, y = resnet50(bench, batch)
    model.eval()
    seeds = count()

    def forward_backward() -> None:
        model.zero_grad()
        with torch.autocast(bench.device.type, torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
        loss.backward()

    def ggn_mc() -> dict[str, Tensor]:
        generator = torch.Generator(bench.device).manual_seed(next(seeds))
        with torch.autocast(bench.device.type, torch.bfloat16):
            return resgrow.curvature(model, nn.CrossEntropyLoss(), (x, y), method="ggn-mc", generator=generator)

    found = ggn_mc()
    assert found.keys() == dict(model.named_parameters()).keys(), "parameters without curvature"
    assert all(bool((h >= 0).all() and h.isfinite().all()) for h in found.values()), "not a sum of squares"
    del found
    calls: dict[str, Callable[[], object]] = {"ggn-mc": ggn_mc, "forward+backward": forward_backward}
    times = bench.clock.measure({name: [call] for name, call in calls.items()}, rounds=7, limit=6.0, graphs=False)
    peaks = {name: 1e-6 * peak_bytes(call, bench.device) for name, call in calls.items()}
    ratio = times.ratio("ggn-mc", "forward+backward")
    figures: dict[str, float | str] = {
        "ms": 1e3 * times.seconds("ggn-mc"),
        "ggn-mc / forward+backward": ratio,
        **{f"peak MB of {name}": peak for name, peak in peaks.items()},
    }
    targets = {"ggn-mc / forward+backward": ratio} if batch == 256 else {}
    yield Row(f"ggn-mc, ResNet-50, batch {batch}, bfloat16 autocast", figures, targets)
