"""Rules of elementwise functions: ``d_x = f'^2 d_y + f'' g_y``, with ``g_y`` the loss's gradient (Becker & LeCun 1989).

``f'`` and ``f''`` are in closed form where a network spends its time and come from autograd elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from resgrow.curvature.lecun.tape import Call, Rule, Tape, is_parameter, weighted_input, weighted_output

# (operands, which of them, is f'' wanted) -> (f', f'' or None)
Derivatives = Callable[[tuple[Tensor, ...], int, bool], tuple[Tensor, Tensor | None]]


class _Elementwise(Rule):
    """``f`` of operands of one shape. ``slot``: the tape's, where f is curved."""

    @staticmethod
    def forward(
        ctx: Any,
        tape: Tape,
        slot: int | None,
        function: Callable[..., Tensor],
        derivatives: Derivatives,
        *operands: Tensor,
    ) -> Tensor:
        ctx.tape, ctx.slot, ctx.derivatives = tape, slot, derivatives
        ctx.save_for_backward(*operands)
        return function(*operands)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (d,) = grads
        gradient = None
        if ctx.slot is not None and not ctx.tape.gradient_pass:
            gradient = ctx.tape.gradient(ctx.slot)
        found: list[Tensor | None] = []
        for i, needed in enumerate(ctx.needs_input_grad[4:]):
            if not needed:
                found.append(None)
                continue
            first, second = ctx.derivatives(ctx.saved_tensors, i, gradient is not None)
            d_x = first * d if ctx.tape.gradient_pass else first.square() * d
            if second is not None and gradient is not None:
                d_x = d_x.addcmul_(second, gradient)
            found.append(d_x)
        return None, None, None, None, *found


def _by_autograd(function: Callable[..., Tensor]) -> Derivatives:
    def derivatives(operands: tuple[Tensor, ...], which: int, curved: bool) -> tuple[Tensor, Tensor | None]:
        with torch.enable_grad():
            inputs = [t.detach() for t in operands]
            x = inputs[which] = inputs[which].clone().requires_grad_()
            (first,) = torch.autograd.grad(function(*inputs).sum(), x, create_graph=curved)
            if not first.requires_grad:  # piecewise linear
                return first, None
            (second,) = torch.autograd.grad(first.sum(), x)
        return first.detach(), second

    return derivatives


def _closed(formula: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Derivatives:
    return lambda operands, which, curved: formula(operands[0])


def _sigmoid(x: Tensor) -> tuple[Tensor, Tensor]:
    s = x.sigmoid()
    first = s * (1 - s)
    return first, first * (1 - 2 * s)


def _tanh(x: Tensor) -> tuple[Tensor, Tensor]:
    t = x.tanh()
    first = 1 - t.square()
    return first, -2 * t * first


def _silu(x: Tensor) -> tuple[Tensor, Tensor]:
    s = x.sigmoid()
    slope = s * (1 - s)
    return torch.addcmul(s, x, slope), slope * (2 + x * (1 - 2 * s))


def _gelu(x: Tensor) -> tuple[Tensor, Tensor]:
    density = torch.exp(-0.5 * x.square()) * (1 / math.sqrt(2 * math.pi))
    below = 0.5 * (1 + torch.erf(x * math.sqrt(0.5)))
    return torch.addcmul(below, x, density), density * (2 - x.square())


def _apply(
    call: Call, function: Callable[..., Tensor], derivatives: Derivatives, curved: bool, *operands: Tensor
) -> Tensor:
    slot = call.tape.next_slot() if curved and torch.is_grad_enabled() else None
    output = _Elementwise.apply(call.tape, slot, function, derivatives, *operands)
    if slot is not None:
        call.tape.mark(output)
    return output


def activation(curved: bool, formula: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None) -> Callable[..., Tensor]:
    """The rule of a function of one tensor. Options beyond the tensor leave the closed form to autograd."""

    def rule(call: Call, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        def function(t: Tensor) -> Tensor:
            return call.func(t, *args, **kwargs)

        plain = formula is not None and not args and not any(kwargs[k] not in (False, "none") for k in kwargs)
        derivatives = _closed(formula) if plain and formula is not None else _by_autograd(function)
        return _apply(call, function, derivatives, curved, x)

    return rule


sigmoid, tanh = activation(True, _sigmoid), activation(True, _tanh)
silu, gelu = activation(True, _silu), activation(True, _gelu)


def rrelu(call: Call, x: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False) -> Tensor:
    if training:
        call.refuse("in training mode it is random")
    return activation(False)(call, x, lower, upper, False)


def prelu(call: Call, x: Tensor, weight: Tensor) -> Tensor:
    """``x`` or ``w x``: ``h_w = sum_{x < 0} d x^2`` over the positions of a channel."""
    slope = weight.view(-1, *(1,) * (x.dim() - 2)) if weight.numel() > 1 and x.dim() > 1 else weight.view(())

    def derivatives(operands: tuple[Tensor, ...], which: int, curved: bool) -> tuple[Tensor, None]:
        t, w = operands
        return (torch.where(t > 0, 1.0, w) if which == 0 else t.clamp(max=0)), None

    return _apply(call, lambda *_: call.func(x, weight), derivatives, False, x, slope.expand_as(x))


def multiply(call: Call, a: Tensor | float, b: Tensor | float) -> Tensor:
    """By a constant: its square. By a parameter: ``h_p = sum d x^2`` as well."""
    if _constant(b):
        return weighted_output(call.tape, call.func(a, b), b)
    if _constant(a):
        return weighted_output(call.tape, call.func(a, b), a)

    def derivatives(operands: tuple[Tensor, ...], which: int, curved: bool) -> tuple[Tensor, None]:
        return operands[1 - which], None

    return _pair(call, derivatives, False, a, b)


def divide(call: Call, a: Tensor | float, b: Tensor | float, *, rounding_mode: str | None = None) -> Tensor:
    if rounding_mode is not None:
        call.refuse("it has one without rounding_mode")
    if _constant(b):
        return weighted_output(call.tape, call.func(a, b), 1 / b)

    def derivatives(operands: tuple[Tensor, ...], which: int, curved: bool) -> tuple[Tensor, Tensor | None]:
        x, y = operands
        return (y.reciprocal(), None) if which == 0 else (-x / y.square(), 2 * x / (y * y.square()))

    return _pair(call, derivatives, True, torch.as_tensor(a, dtype=b.dtype, device=b.device), b)  # type: ignore


def power(call: Call, a: Tensor | float, b: Tensor | float) -> Tensor:
    if _constant(b):
        return activation(True)(call, a, b)
    base = torch.as_tensor(a, dtype=b.dtype, device=b.device)  # type: ignore[union-attr]
    return _pair(call, _by_autograd(torch.pow), True, base, b)


def reflected(rule: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``x.__rop__(c)`` is ``c op x``."""

    def flipped(call: Call, x: Tensor, other: Tensor | float, **options: Any) -> Tensor:
        forward = Call(call.tape, lambda a, b, **options: call.func(b, a, **options), call.refuse)
        return rule(forward, other, x, **options)

    return flipped


def _pair(call: Call, derivatives: Derivatives, curved: bool, a: Any, b: Any) -> Tensor:
    if all(t.requires_grad and not is_parameter(t) for t in (a, b)):
        call.refuse("both operands are activations, whose common influence a recursion of diagonals cannot see")
    return _apply(call, lambda x, y: call.func(x, y), derivatives, curved, *torch.broadcast_tensors(a, b))


def _constant(value: Any) -> bool:
    return not isinstance(value, Tensor) or not value.requires_grad


def add(call: Call, a: Tensor | float, b: Tensor | float, **options: Any) -> Tensor:
    """Sends ``d`` to both; ``alpha`` is an entry of the second operand's Jacobian."""
    return call.func(a, _entered(call, b, options.get("alpha", 1)), **options)


def subtract(call: Call, a: Tensor | float, b: Tensor | float, **options: Any) -> Tensor:
    return call.func(a, _entered(call, b, -options.get("alpha", 1)), **options)


def negate(call: Call, x: Tensor) -> Tensor:
    return weighted_output(call.tape, call.func(x), -1.0)


def _entered(call: Call, t: Tensor | float, weight: float) -> Tensor | float:
    """``t`` where autograd multiplies by ``weight`` on the way back."""
    return weighted_input(call.tape, t, weight) if isinstance(t, Tensor) and weight != 1 else t
