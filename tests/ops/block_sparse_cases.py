"""Convolutions and helpers that the tests of block_sparse share."""

from __future__ import annotations

import torch
from torch import Tensor

from resgrow.ops.block_index import mask_shape


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64).to(dtype)


def draw_mask(shape: tuple[int, ...], block: tuple[int, int], density: float = 0.4) -> Tensor:
    return torch.rand(mask_shape(shape, block), generator=torch.Generator().manual_seed(7)) < density


def conv_case(n: int, c: int, size: tuple[int, int], o: int, k: int | tuple[int, int], **given_: object) -> tuple:
    """(x, weight, bias, settings) of one convolution, float64, contiguous."""
    kernel = k if isinstance(k, tuple) else (k, k)
    options = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1} | given_
    return draw(n, c, *size), draw(o, c // options["groups"], *kernel, seed=1), draw(o, seed=2), options


CONVS = {
    "3x3": conv_case(3, 16, (8, 8), 32, 3, padding=1),
    "3x3 ragged": conv_case(2, 13, (7, 6), 37, 3, padding=1),
    "3x3 wide": conv_case(1, 5, (6, 61), 16, 3, padding=1),
    "3x3 many images": conv_case(19, 7, (5, 5), 20, 3, padding=1),
    "3x3 one image": conv_case(1, 8, (33, 30), 16, 3, padding=1),
    "3x3 stride 2": conv_case(3, 18, (9, 9), 32, 3, stride=2, padding=1),
    "3x3 stride 3 of few rows": conv_case(2, 6, (13, 11), 16, 3, stride=(3, 2), padding=(0, 2)),
    "3x3 dilated": conv_case(2, 16, (11, 12), 17, 3, padding=2, dilation=2),
    "3x2 uneven": conv_case(2, 8, (12, 11), 9, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(2, 3)),
    "1x1": conv_case(3, 20, (5, 7), 33, 1),
    "1x1 many pixels": conv_case(2, 17, (12, 11), 16, 1),
    "1x1 stride 2": conv_case(3, 16, (8, 7), 32, 1, stride=2),
    "1x1 padded": conv_case(2, 16, (4, 4), 16, 1, padding=1),
    "1xk": conv_case(2, 16, (4, 9), 16, (1, 5), padding=(0, 2)),
    "large kernel": conv_case(2, 3, (12, 12), 16, 7, stride=2, padding=3),
    "padding beyond the kernel": conv_case(2, 16, (5, 5), 16, 3, padding=3),
    "groups": conv_case(2, 32, (6, 6), 64, 3, padding=1, groups=2),
    "groups that blocks cut": conv_case(2, 12, (6, 6), 18, 3, padding=1, groups=3),
    "depthwise": conv_case(2, 12, (6, 6), 12, 3, padding=1, groups=12),
}


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    scale = expected.abs().max().item() if expected.numel() else 1.0
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance * scale + 1e-300)
