"""From a loss module, function or ``functools.partial`` of a function to its head."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn import functional as F

from resgrow.curvature.heads.base import Head, LossFn
from resgrow.curvature.heads.cross_entropy import CrossEntropy
from resgrow.curvature.heads.custom import Custom
from resgrow.curvature.heads.elementwise import BceWithLogits, Mse

_Kind = type[CrossEntropy] | type[Mse] | type[BceWithLogits]

_MODULES: dict[type, _Kind] = {
    nn.CrossEntropyLoss: CrossEntropy,
    nn.MSELoss: Mse,
    nn.BCEWithLogitsLoss: BceWithLogits,
}
_FUNCTIONS: dict[Callable[..., Any], _Kind] = {
    F.cross_entropy: CrossEntropy,
    F.mse_loss: Mse,
    F.binary_cross_entropy_with_logits: BceWithLogits,
}


def reduction_of(op: str, loss_fn: LossFn) -> str:
    """ "mean" or "sum": the loss's attribute ``reduction``, or a function's argument of that name, bound or default.

    Raises:
        ValueError: neither, or another one.
    """
    function, options = _unwrap(loss_fn)
    if {"size_average", "reduce"} & options.keys():
        raise ValueError(f"{op}: size_average and reduce are not supported (got {_name(function)}); use reduction=")
    found = getattr(loss_fn, "reduction", None) or options.get("reduction") or getattr(function, "reduction", None)
    if found is None:
        try:
            found = inspect.signature(function).parameters["reduction"].default
        except (KeyError, TypeError, ValueError):
            found = None
    if found not in ("mean", "sum"):
        raise ValueError(
            f"{op}: the loss must say how it reduces over samples (got {_name(function)} with reduction "
            f"{found!r}); pass a torch loss module, or an object with reduction 'mean' or 'sum'"
        )
    return found


def head_of(op: str, loss_fn: LossFn, temperature: float = 1.0) -> Head:
    """The head for a loss module, function, or ``functools.partial`` of a function.

    Losses without a row in the tables go by their Hessian at the output, see ``Custom``.

    Raises:
        ValueError: the loss does not say how it reduces, or ``temperature`` is not positive, or not 1 for a loss
            other than cross-entropy and binary cross-entropy with logits.
    """
    if not 0 < temperature < float("inf"):
        raise ValueError(f"{op}: temperature must be positive and finite (got {temperature})")
    reduction = reduction_of(op, loss_fn)
    function, options = _unwrap(loss_fn)
    # A subclass that computes something else must not inherit its parent's curvature.
    kind = _FUNCTIONS.get(function) if inspect.isfunction(function) else _MODULES.get(type(function))
    if isinstance(loss_fn, nn.Module) and kind is not None:
        options = {name: getattr(loss_fn, name) for name in kind.OPTIONS}
    options.pop("reduction", None)
    if temperature != 1 and (kind is None or not kind.TEMPERED):
        raise ValueError(
            f"{op}: temperature applies to cross-entropy and binary cross-entropy with logits only "
            f"(got {temperature} with {_name(function)}); leave it at 1"
        )
    if kind is None or not options.keys() <= set(kind.OPTIONS):
        return Custom(op, loss_fn, _name(function), reduction)
    return kind(op, reduction, temperature, **options)


def _unwrap(loss_fn: LossFn) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The function inside nested partials, and its bound keywords."""
    if isinstance(loss_fn, functools.partial) and not loss_fn.args:
        # Nested partials of plain functions are flattened by functools itself.
        return loss_fn.func, dict(loss_fn.keywords)
    return loss_fn, {}


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", type(function).__name__)
