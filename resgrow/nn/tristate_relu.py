"""The tri-state ReLU as a layer with trainable gates."""

from __future__ import annotations

import torch
from torch import nn

from resgrow import ops

# What a layer learns: (width, depth).
LEARN = {"both": (True, True), "width": (True, False), "depth": (False, True), "neither": (False, False)}


class TriStateReLU(nn.Module):
    """Gated ReLU: each channel is removed, rectified or passed on unchanged (Srinivas & Babu, "Learning neural
    network architectures using backpropagation").

    With the hard gates ``w' = 1[w >= .5]`` (one per channel) and ``d' = 1[d >= .5]`` (one per layer)::

        y = w' x  for x >= 0,   y = w' d' x  for x < 0

    so ``w' = 0`` removes a channel, ``w' = 1, d' = 0`` is ReLU and ``w' = d' = 1`` is the identity. Gradients pass
    straight through the gates, so closed ones still learn and can reopen. :class:`resgrow.Gates` looks after the gates
    of a whole model: their penalty, their step size, and their bounds.

    A layer before max-pooling must not learn its depth: without the rectifier nothing there could be merged.

    Args:
        num_channels: size of dimension 1 of the input.
        w: initial value of the width gates; by default .7 where they are learnt and 1 where not. The binarising
            penalty keeps gates that start at 1 there (its peak lies a little above .5), so they start nearer to it.
        d: initial value of the depth gate; by default .45 where it is learnt and 0 where not. Below .5 the layer starts
            as a ReLU; the penalty's peak lies at .25, and the nearer to .5 the more layers end up linear: with .45 the
            depth that is learnt hardly depends on the depth at the start, with .3 it does.
        learn: "both", "width", "depth" or "neither". Gates that are not learnt are parameters that need no gradient.
        inplace: write over the input wherever no gradient is recorded; see `resgrow.ops.tristate_relu`.

    Raises:
        ValueError: num_channels below 1, an initial gate outside [0, 1], or another word for ``learn``.
    """

    def __init__(
        self,
        num_channels: int,
        w: float | None = None,
        d: float | None = None,
        *,
        learn: str = "both",
        inplace: bool = False,
    ) -> None:
        super().__init__()
        if num_channels < 1:
            raise ValueError(f"TriStateReLU: num_channels must be at least 1 (got {num_channels})")
        if learn not in LEARN:
            raise ValueError(f"TriStateReLU: learn must be one of {', '.join(LEARN)} (got {learn!r})")
        width, depth = LEARN[learn]
        w = (0.7 if width else 1.0) if w is None else w
        d = (0.45 if depth else 0.0) if d is None else d
        if not (0 <= w <= 1 and 0 <= d <= 1):
            raise ValueError(f"TriStateReLU: gates must start in [0, 1] (got w={w}, d={d})")
        self.num_channels, self.learn, self.inplace = num_channels, learn, inplace
        self.w = nn.Parameter(torch.full((num_channels,), float(w)), requires_grad=width)
        self.d = nn.Parameter(torch.tensor(float(d)), requires_grad=depth)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(N, num_channels, *)`` to the same shape."""
        return ops.tristate_relu(x, self.w, self.d, self.inplace)

    @torch.no_grad()
    def clip_(self) -> None:
        """Bring the gates back into [0, 1]; to be called after each optimizer step."""
        self.w.clamp_(0, 1)
        self.d.clamp_(0, 1)

    def extra_repr(self) -> str:
        learn = "" if self.learn == "both" else f", learn={self.learn!r}"
        return f"{self.num_channels}{learn}{', inplace=True' if self.inplace else ''}"
