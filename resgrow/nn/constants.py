"""What is left of branches that compute the same whatever their input: `resgrow.compact` puts it in their places."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Shift(nn.Module):
    """``x + value``, as a residual block whose branch is constant.

    Args:
        value: anything that can be broadcast to the inputs, such as ``(C, 1, 1)`` for images; it goes on learning.
    """

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.value

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    def extra_repr(self) -> str:
        return f"{self.shape}"


class Zero(nn.Module):
    """Zeros like the input, as a branch that other people's code adds to something."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)
