"""Rules of averages, whose entries are equal for all inputs of an output: the rule is ``d_x = J^T (w d_y)``, ``w`` the
entry. A k x k window gives ``d / k^4``, a mean over n elements ``d / n^2``. And of extremes, which may tie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from resgrow.curvature.lecun.tape import Call, Rule, Tape, weighted_output


def mean(call: Call, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    output = call.func(x, *args, **kwargs)
    return weighted_output(call.tape, output, output.numel() / max(1, x.numel()))


def _ones(x: Tensor, spatial: int) -> Tensor:
    lead = x.dim() - spatial
    return torch.ones((*(1,) * lead, *x.shape[lead:]), dtype=x.dtype, device=x.device)


def avg_pool(spatial: int) -> Callable[..., Tensor]:
    """The entry of a window is one over its divisor, which depends on padding, ``ceil_mode`` and options."""

    def rule(call: Call, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        ones = _ones(x, spatial)
        share = call.func(ones, *args, **kwargs)  # of a window's elements that are real, times divisor's inverse
        return weighted_output(call.tape, call.func(x, *args, **kwargs), share / _elements(ones, *args, **kwargs))

    def _elements(
        ones: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Tensor:
        """Real elements of every window."""
        if spatial == 3:
            return F.avg_pool3d(ones, kernel_size, stride, padding, ceil_mode, divisor_override=1)
        if spatial == 2:
            return F.avg_pool2d(ones, kernel_size, stride, padding, ceil_mode, divisor_override=1)
        kernel, pad = _first(kernel_size), _first(padding)
        step = kernel if stride is None or stride == () else _first(stride)
        flat = F.avg_pool2d(ones.unsqueeze(-2), (1, kernel), (1, step), (0, pad), ceil_mode, divisor_override=1)
        return flat.squeeze(-2)

    return rule


def _first(value: int | Sequence[int]) -> int:
    return value if isinstance(value, int) else value[0]


def adaptive_avg_pool(spatial: int) -> Callable[..., Tensor]:
    def rule(call: Call, x: Tensor, output_size: Any) -> Tensor:
        output = call.func(x, output_size)
        share = torch.ones((), dtype=x.dtype, device=x.device)
        for i in range(spatial):
            entries = _window_shares(x.shape[i - spatial], output.shape[i - spatial]).to(share)
            share = share * entries.view(-1, *(1,) * (spatial - 1 - i))
        return weighted_output(call.tape, output, share)

    return rule


def _window_shares(size: int, outputs: int) -> Tensor:
    """One over the length of every window ``[floor(i size / outputs), ceil((i + 1) size / outputs))``."""
    lengths = [-(-(i + 1) * size // outputs) - i * size // outputs for i in range(outputs)]
    return torch.tensor(lengths, dtype=torch.float64).reciprocal()


class _Extreme(Rule):
    """A function of which every input reaches one output only: ``d_x = (J^T d) (J^T 1)``."""

    @staticmethod
    def forward(ctx: Any, tape: Tape, function: Callable[..., Tensor], *operands: Tensor) -> Tensor:
        ctx.tape, ctx.function = tape, function
        ctx.save_for_backward(*operands)
        return function(*operands)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (d,) = grads
        with torch.enable_grad():
            operands = [t.detach().requires_grad_() for t in ctx.saved_tensors]
            output = ctx.function(*operands)
        sent = torch.autograd.grad(output, operands, d, retain_graph=True)
        if not ctx.tape.gradient_pass:
            entries = torch.autograd.grad(output, operands, torch.ones_like(output))
            sent = tuple(a * b for a, b in zip(sent, entries, strict=True))
        return None, None, *sent


def extreme(call: Call, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """``max`` and ``min`` over dimensions or of two tensors. Where elements tie, autograd shares out, ``1/k`` each."""
    if args and isinstance(args[0], Tensor):
        return _Extreme.apply(call.tape, call.func, *torch.broadcast_tensors(x, args[0]))
    return _Extreme.apply(call.tape, lambda t: call.func(t, *args, **kwargs), x)


def extreme_along(call: Call, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """``max`` and ``min`` as torch overloads them: with a dimension they route to the index they return."""
    if kwargs.get("dim") is not None or (args and not isinstance(args[0], Tensor)):
        return call.func(x, *args, **kwargs)
    return extreme(call, x, *args, **kwargs)


def interpolate(
    call: Call,
    x: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """Copies have entries one or zero."""
    if mode not in ("nearest", "nearest-exact"):
        call.refuse("it has one for the modes 'nearest' and 'nearest-exact'")
    return call.func(x, size, scale_factor, mode, *args, **kwargs)
