"""What the rules of one forward pass share, and how a rule becomes a node of autograd's graph.

A rule replaces a call by nodes whose backward maps ``d_y`` to ``d_x``, where an ordinary node maps ``g_y`` to ``g_x``.
Autograd then does the rest of the recursion: sums over uses, views, concatenations, the order of the layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge


class Tape:
    """One batch's recording.

    Attributes:
        gradient_pass: whether rules send gradients back (``g_x``, nothing for parameters) or curvature.
    """

    def __init__(self) -> None:
        self.gradient_pass = False
        self._edges: list[GradientEdge] = []
        self._gradients: list[Tensor | None] = []

    def next_slot(self) -> int:
        return len(self._edges)

    def mark(self, output: Tensor) -> None:
        """``output`` leaves a curved function, which needs the loss's gradient there; takes the next slot."""
        self._edges.append(get_gradient_edge(output))

    def gradient(self, slot: int) -> Tensor | None:
        """The loss's gradient where the function of that slot left its output; taken once."""
        gradient, self._gradients[slot] = self._gradients[slot], None
        return gradient

    def send_gradient(self, output: Tensor, gradient: Callable[[], Tensor]) -> None:
        """An ordinary backward pass, as far as the curved functions need it; none where there are none."""
        if not self._edges:
            return
        self.gradient_pass = True
        edges, self._edges = self._edges, []
        self._gradients = list(
            torch.autograd.grad(output, edges, gradient(), retain_graph=True, allow_unused=True),
        )
        self.gradient_pass = False


class Rule(torch.autograd.Function):
    """A node of the recursion. Every call gets the tape first, and nothing flows back to it."""


@dataclass(frozen=True)
class Call:
    """One call that a rule replaces.

    Attributes:
        func: computes the values, out of place.
        refuse: raises the error that names the function and the place; takes what is to be said besides.
    """

    tape: Tape
    func: Callable[..., Any]
    refuse: Callable[[str], NoReturn]


class _Weighted(Rule):
    """The identity; curvature on its way back is multiplied by ``weight``. ``output``: a detached ``x``, or None."""

    @staticmethod
    def forward(ctx: Any, tape: Tape, x: Tensor, output: Tensor | None, weight: Tensor | float) -> Tensor:
        ctx.tape, ctx.number = tape, weight
        if isinstance(weight, Tensor):
            ctx.number = None
            ctx.save_for_backward(weight)
        if output is None:
            return x.view_as(x)
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None, None]:
        (d,) = grads
        if not ctx.tape.gradient_pass:
            d = (d * (ctx.saved_tensors[0] if ctx.number is None else ctx.number)).to(d.dtype)
        return None, d, None, None


def weighted_output(tape: Tape, output: Tensor, weight: Tensor | float) -> Tensor:
    """The fresh output of a linear function with entries ``weight`` or zero, ``weight`` broadcasting to the output.

    Autograd's own backward multiplies by an entry once; this does so a second time.
    """
    if not output.requires_grad:
        return output
    # Not a view: what is a view by a Function could not be modified in place later.
    return _Weighted.apply(tape, output, output.detach(), weight)


def weighted_input(tape: Tape, x: Tensor, weight: Tensor | float) -> Tensor:
    """The same at the input of a function whose entries are ``weight`` or zero for all elements of ``x``."""
    return _Weighted.apply(tape, x, None, weight) if x.requires_grad else x


def is_parameter(t: Tensor) -> bool:
    """A leaf, or a view of one: not an activation."""
    return t.is_leaf or (t._is_view() and t._base is not None and t._base.is_leaf)
