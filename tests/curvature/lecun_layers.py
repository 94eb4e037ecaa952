"""Layers with weights, averages and extremes: what ``lecun`` is compared on. The rest is in ``lecun_functions``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

DOUBLE = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed + sum(shape)))


def positive(*shape: int) -> Tensor:
    return draw(*shape, seed=7).abs() * 0.5 + 0.2


def words(text: str) -> list[str]:
    return text.split()


def third(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: function(x / 3)


Case = tuple[Callable[..., Tensor], list[Tensor], list[Tensor], bool]


def case(function: Callable[..., Tensor], *xs: Tensor, p: tuple[Tensor, ...] = (), curved: bool = True) -> Case:
    return function, list(xs), list(p), curved


X, ROW, SEQ = draw(2, 4, 5, 4), draw(3, 5), draw(2, 3, 4)
LINE, BOX = draw(2, 4, 7), draw(1, 2, 4, 3, 3)
STATS = draw(4), positive(4)
MASK = draw(2, 4, 5, 4, seed=5) > 0

LAYERS: dict[str, Case] = {
    "linear": case(F.linear, ROW, p=(draw(4, 5), draw(4))),
    "linear without bias": case(F.linear, SEQ, p=(draw(5, 4),)),
    "linear on a vector": case(lambda x, w, b: F.linear(x[0], w, b), ROW, p=(draw(4, 5), draw(4))),
    "matmul": case(torch.matmul, SEQ, p=(draw(4, 3),)),
    "mm": case(torch.mm, ROW, p=(draw(5, 2),)),
    "matmul constant": case(lambda x: x @ draw(4, 3), SEQ),
    "addmm": case(lambda x, b, w: torch.addmm(b, x, w), ROW, p=(draw(2), draw(5, 2))),
    "conv2d": case(F.conv2d, X, p=(draw(3, 4, 3, 3), draw(3))),
    "conv2d options": case(lambda x, w: F.conv2d(x, w, None, (2, 1), (1, 2), (1, 2), 2), X, p=(draw(6, 2, 3, 2),)),
    "conv2d same": case(lambda x, w, b: F.conv2d(x, w, b, padding="same"), X, p=(draw(2, 4, 2, 3), draw(2))),
    "conv2d valid": case(lambda x, w: F.conv2d(x, w, padding="valid"), X, p=(draw(2, 4, 2, 3),)),
    "conv2d one image": case(lambda x, w: F.conv2d(x[0], w), X, p=(draw(2, 4, 2, 2),)),
    "depthwise": case(lambda x, w, b: F.conv2d(x, w, b, padding=1, groups=4), X, p=(draw(8, 1, 3, 3), draw(8))),
    "conv1d": case(lambda x, w, b: F.conv1d(x, w, b, 2, 1, 2, 2), LINE, p=(draw(4, 2, 3), draw(4))),
    "conv1d same": case(lambda x, w: F.conv1d(x, w, padding="same"), LINE, p=(draw(2, 4, 4),)),
    "conv3d": case(lambda x, w, b: F.conv3d(x, w, b, 1, (1, 0, 1)), BOX, p=(draw(2, 2, 3, 2, 2), draw(2))),
    "conv_transpose1d": case(F.conv_transpose1d, LINE, p=(draw(4, 2, 3), draw(2))),
    "conv_transpose2d": case(lambda x, w, b: F.conv_transpose2d(x, w, b, 2, 1, 1, 2), X, p=(draw(4, 3, 3, 3), draw(6))),
    "conv_transpose3d": case(F.conv_transpose3d, draw(1, 2, 2, 2, 2), p=(draw(2, 1, 2, 2, 2), draw(1))),
    "embedding": case(lambda w: F.embedding(torch.tensor([[1, 3, 1], [0, 1, 4]]), w), p=(draw(5, 3),)),
    "batch_norm": case(lambda x, w, b: F.batch_norm(x, *STATS, w, b), X, p=(draw(4), draw(4))),
    "batch_norm of rows": case(lambda x, w, b: F.batch_norm(x, *STATS, w, b), draw(3, 4), p=(draw(4), draw(4))),
    "batch_norm plain": case(lambda x: F.batch_norm(x, *STATS), BOX[:, [0, 1, 0, 1]]),
    "instance_norm running": case(
        lambda x, w, b: F.instance_norm(x, *STATS, w, b, use_input_stats=False), X, p=(draw(4), draw(4))
    ),
    "instance_norm": case(lambda x, w, b: F.instance_norm(x, weight=w, bias=b), X, p=(draw(4), draw(4)), curved=False),
    "layer_norm": case(lambda x, w, b: F.layer_norm(x, (4,), w, b), SEQ, p=(draw(4), draw(4)), curved=False),
    "layer_norm two": case(lambda x, w: F.layer_norm(x, (3, 4), w), SEQ, p=(draw(3, 4),), curved=False),
    "layer_norm plain": case(lambda x: F.layer_norm(x, (4,)), SEQ, curved=False),
    "group_norm": case(lambda x, w, b: F.group_norm(x, 2, w, b), X, p=(draw(4), draw(4)), curved=False),
    "rms_norm": case(lambda x, w: F.rms_norm(x, (4,), w, 0.1), SEQ, p=(draw(4),), curved=False),
    "rms_norm plain": case(lambda x: F.rms_norm(x, (4,)), SEQ, curved=False),
    "prelu": case(F.prelu, X, p=(draw(4),)),
    "prelu one slope": case(F.prelu, X, p=(draw(1),)),
}

POOLS: dict[str, Case] = {
    "mean": case(torch.mean, X),
    "mean dims": case(lambda x: x.mean((2, 3), keepdim=True), X),
    "mean dim": case(lambda x: x.mean(dim=1), X),
    "sum": case(lambda x: x.sum((0, 2)), X),
    "cumsum": case(lambda x: x.cumsum(1), X),
    "avg_pool1d": case(lambda x: F.avg_pool1d(x, 3, 2, 1), LINE),
    "avg_pool1d ceil": case(lambda x: F.avg_pool1d(x, 3, ceil_mode=True, count_include_pad=False), LINE),
    "avg_pool2d": case(lambda x: F.avg_pool2d(x, 2), X),
    "avg_pool2d padded": case(lambda x: F.avg_pool2d(x, (3, 2), 1, 1), X),
    "avg_pool2d ceil": case(lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True), X),
    "avg_pool2d without pad": case(lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), X),
    "avg_pool2d divisor": case(lambda x: F.avg_pool2d(x, 3, 2, 1, divisor_override=5), X),
    "avg_pool2d one image": case(lambda x: F.avg_pool2d(x[0], 2), X),
    "avg_pool3d": case(lambda x: F.avg_pool3d(x, 2, 1, 1), BOX),
    "adaptive_avg_pool1d": case(lambda x: F.adaptive_avg_pool1d(x, 3), LINE),
    "adaptive_avg_pool2d": case(lambda x: F.adaptive_avg_pool2d(x, (3, None)), X),
    "adaptive_avg_pool2d one": case(lambda x: F.adaptive_avg_pool2d(x, 1), X),
    "adaptive_avg_pool3d": case(lambda x: F.adaptive_avg_pool3d(x, (3, 2, 1)), BOX),
    "max_pool1d": case(lambda x: F.max_pool1d(x, 3, 2), LINE),
    "max_pool2d": case(lambda x: F.max_pool2d(x, 3, 1, 1), X),
    "max_pool2d with indices": case(lambda x: F.max_pool2d(x, 2, return_indices=True)[0], X),
    "max_pool3d": case(lambda x: F.max_pool3d(x, 2), BOX),
    "adaptive_max_pool1d": case(lambda x: F.adaptive_max_pool1d(x, 3), LINE),
    "adaptive_max_pool2d": case(lambda x: F.adaptive_max_pool2d(x, 2), X),
    "adaptive_max_pool3d": case(lambda x: F.adaptive_max_pool3d(x, 1), BOX),
    "max_pool1d indices": case(lambda x: F.max_pool1d_with_indices(x, 2)[0], LINE),
    "max_pool2d indices": case(lambda x: F.max_pool2d_with_indices(x, 2)[0], X),
    "max_pool3d indices": case(lambda x: F.max_pool3d_with_indices(x, 2)[0], BOX),
    "adaptive_max_pool1d indices": case(lambda x: F.adaptive_max_pool1d_with_indices(x, 2)[0], LINE),
    "adaptive_max_pool2d indices": case(lambda x: F.adaptive_max_pool2d_with_indices(x, 2)[0], X),
    "adaptive_max_pool3d indices": case(lambda x: F.adaptive_max_pool3d_with_indices(x, 2)[0], BOX),
    "max_unpool1d": case(lambda x: F.max_unpool1d(*F.max_pool1d(x, 2, return_indices=True), 2), LINE),
    "max_unpool2d": case(lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2), X),
    "max_unpool3d": case(lambda x: F.max_unpool3d(*F.max_pool3d(x, 2, return_indices=True), 2), draw(1, 2, 4, 2, 2)),
    "amax": case(lambda x: x.amax((2, 3)), X),
    "amax with ties": case(lambda x: x.amax((2, 3)), X.round(), curved=False),
    "amin": case(lambda x: x.amin(1), X),
    "max": case(torch.max, X),
    "max dim": case(lambda x: x.max(1).values, X),
    "min dim": case(lambda x: torch.min(x, dim=1, keepdim=True)[0], X),
    "max of two": case(torch.max, X, draw(2, 4, 1, 4)),
    "maximum": case(lambda x: torch.maximum(x, draw(4, 1, 1)), X),
    "minimum": case(torch.minimum, X, draw(2, 4, 5, 4, seed=9)),
    "interpolate": case(lambda x: F.interpolate(x, scale_factor=2), draw(1, 2, 2, 3)),
    "interpolate uneven": case(lambda x: F.interpolate(x, (3, 5), mode="nearest-exact"), X),
}
