"""Shapes on which tristate_relu competes, and the composition of torch operations that it competes with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from resgrow.ops import reference

SHAPES = {
    "1e4": (16, 16, 8, 5),
    "1e5": (16, 16, 20, 20),
    "1e6": (32, 32, 32, 32),
    "1e7": (32, 64, 70, 70),
    "1e8": (64, 256, 78, 78),
}


class Eager(torch.autograd.Function):
    """The equations in torch operations, as a user would write them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, d: Tensor) -> Tensor:
        ctx.save_for_backward(x, w, d)
        return reference.tristate_relu(x, w, d)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return reference.tristate_relu_backward(grad, *ctx.saved_tensors)
