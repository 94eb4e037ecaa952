"""A problem that trains in a moment: bright against dark images."""

from __future__ import annotations

import torch

from resgrow.data import Dataset


def small_data(train: int = 40, test: int = 20, size: int = 8) -> Dataset:
    generator = torch.Generator().manual_seed(0)

    def half(count: int):
        y = torch.arange(count) % 2
        x = torch.randn(count, 1, size, size, generator=generator) * 0.3 + (2 * y - 1)[:, None, None, None]
        return x, y

    return Dataset("bright", *half(train), *half(test), ("dark", "bright"))
