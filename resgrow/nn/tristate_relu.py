"""The tri-state ReLU as a layer with trainable gates."""

import torch
from torch import nn

from resgrow import ops


class TriStateReLU(nn.Module):
    """Gated ReLU: each channel is removed, rectified or passed on unchanged (Srinivas & Babu, "Learning neural
    network architectures using backpropagation").

    With the hard gates ``w' = 1[w >= .5]`` (one per channel) and ``d' = 1[d >= .5]`` (one per layer)::

        y = w' x  for x >= 0,   y = w' d' x  for x < 0

    so ``w' = 0`` removes a channel, ``w' = 1, d' = 0`` is ReLU and ``w' = d' = 1`` is the identity. Gradients pass
    straight through the gates, so closed ones still learn and can reopen; clip both to [0, 1] after each update
    (`clip_`). Give the gates their own parameter group with a small step (Adam 1e-3).

    Args:
        num_channels: size of dimension 1 of the input.
        w: initial value of the width gates. The regulariser ``w (1 - w)`` keeps gates that start at 1 there, so
            gates that are to be learnt start nearer the middle; 0.7 works.
        d: initial value of the depth gate; below .5 the layer starts as a ReLU.

    Raises:
        ValueError: num_channels below 1, or an initial gate outside [0, 1].
    """

    def __init__(self, num_channels: int, w: float = 0.7, d: float = 0.3) -> None:
        super().__init__()
        if num_channels < 1:
            raise ValueError(f"TriStateReLU: num_channels must be at least 1 (got {num_channels})")
        if not (0 <= w <= 1 and 0 <= d <= 1):
            raise ValueError(f"TriStateReLU: gates must start in [0, 1] (got w={w}, d={d})")
        self.num_channels = num_channels
        self.w = nn.Parameter(torch.full((num_channels,), float(w)))
        self.d = nn.Parameter(torch.tensor(float(d)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(N, num_channels, *)`` to the same shape."""
        return ops.tristate_relu(x, self.w, self.d)

    @torch.no_grad()
    def clip_(self) -> None:
        """Bring the gates back into [0, 1]; to be called after each optimizer step."""
        self.w.clamp_(0, 1)
        self.d.clamp_(0, 1)

    def extra_repr(self) -> str:
        return str(self.num_channels)
