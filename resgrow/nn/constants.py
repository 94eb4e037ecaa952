"""What is left of branches that compute the same whatever their input: `resgrow.compact` puts it in their places."""

from __future__ import annotations

from typing import Any

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


class Zeros(nn.Module):
    """`Zero` in the place of a module that takes more than a tensor, returns more, or changes a size.

    Zeros are like the first tensor among its arguments.

    Args:
        results: how many things it returns in a tuple, None behind the first; 0: the zeros alone.
        features: their size along ``dim``; None: that of the argument.
    """

    # What torch's encoder layers ask of their attention, to run it without shortcuts.
    batch_first, in_proj_bias = True, None

    def __init__(self, results: int = 0, features: int | None = None, dim: int = -1) -> None:
        super().__init__()
        self.results, self.features, self.dim = results, features, dim

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        given = (*args, *kwargs.values())
        # What torch.fx passes while it traces is no tensor, and has no sizes.
        x = next((each for each in given if isinstance(each, Tensor)), given[0])
        if self.features is None:
            zeros = torch.zeros_like(x)
        elif isinstance(x, Tensor):
            shape = list(x.shape)
            shape[self.dim] = self.features
            zeros = x.new_zeros(shape)
        else:
            zeros = torch.zeros_like(x.narrow(self.dim, 0, 1)).repeat_interleave(self.features, self.dim)
        return (zeros, *[None] * (self.results - 1)) if self.results else zeros

    def extra_repr(self) -> str:
        sizes = "" if self.features is None else f"features={self.features}, dim={self.dim}"
        return ", ".join(filter(None, (f"results={self.results}" if self.results else "", sizes)))
