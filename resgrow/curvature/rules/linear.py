"""Matrix products of an input with a weight."""

from __future__ import annotations

from torch import Tensor

from resgrow import ops
from resgrow.curvature.rules.site import Formula, Site, tapped, wide
from resgrow.curvature.tapped import Tapped


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Site:
    """``input (*, I) @ weight (O, I)^T + bias (O,)``."""
    return Site(input, _formula("linear", tapped(weight=weight, bias=bias)), range(input.dim() - 1))


def matmul(input: Tensor, other: Tensor) -> Site | None:
    """``input (*, I) @ other (I, O)``; products with a parameter of another rank or on the left have no rule."""
    operands = tapped(transposed=other)
    if not operands or other.dim() != 2 or isinstance(input, Tapped):
        return None
    return Site(input, _formula("matmul", operands), range(input.dim() - 1))


def addmm(input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> Site | None:
    """``input (O,) + mat1 (M, I) @ mat2 (I, O)``."""
    if beta != 1 or alpha != 1 or input.dim() != 1:
        return None
    return Site(mat1, _formula("addmm", tapped(bias=input, transposed=mat2)), (0,))


def _formula(kind: str, operands: dict[str, Tapped]) -> Formula:
    return Formula(operands, _squares, _per_sample, joins=kind)


def _squares(x: Tensor, grad: Tensor, roles: frozenset[str]) -> dict[str, Tensor]:
    found = {}
    if "weight" in roles:
        found["weight"] = ops.squared_grad_linear(x, grad)
    if "transposed" in roles:
        found["transposed"] = ops.squared_grad_linear(grad, x)
    if "bias" in roles:
        found["bias"] = ops.squared_grad_bias(grad, grad.dim() - 1)
    return found


def _per_sample(role: str, x: Tensor, grad: Tensor) -> Tensor:
    x, grad = (wide(t).reshape(t.shape[0], -1, t.shape[-1]) for t in (x, grad))
    if role == "bias":
        return grad.sum(1)
    return grad.mT @ x if role == "weight" else x.mT @ grad
