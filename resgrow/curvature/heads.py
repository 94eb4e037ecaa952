"""Losses: what each one's Hessian with respect to the model's output looks like.

With ``l`` the loss of one sample and ``f`` the output, a head gives factors ``S`` with ``sum_c S_c S_c^T = d2l/df2``,
either all of them or one random vector ``v`` with ``E[v v^T] = d2l/df2``. Backpropagating them gives the generalised
Gauss-Newton diagonal (Schraudolph 2002; Martens 2014, section 6).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LossFn = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Head:
    """Curvature of one loss at the output.

    Attributes:
        factors: output ``(N, C)`` -> one ``(N, C)`` tensor per factor ``S_c`` of the per-sample Hessian.
        sample: output ``(N, C)``, generator -> one random ``(N, C)`` tensor ``v`` with ``E[v v^T]`` that Hessian.
    """

    factors: Callable[[Tensor], Iterator[Tensor]]
    sample: Callable[[Tensor, torch.Generator], Tensor]


def reduction_of(op: str, loss_fn: LossFn) -> str:
    """ "mean" or "sum"; functions of ``torch.nn.functional`` count with their default, "mean"."""
    reduction = "mean" if loss_fn in _FUNCTIONS else getattr(loss_fn, "reduction", None)
    if reduction not in ("mean", "sum"):
        raise ValueError(
            f"{op}: the loss must say how it reduces over samples (got {_name(loss_fn)} with reduction "
            f"{reduction!r}); pass a torch loss module, or an object with reduction 'mean' or 'sum'"
        )
    return reduction


def head_of(op: str, loss_fn: LossFn, temperature: float) -> Head:
    """The head for a loss module or function.

    Raises:
        ValueError: the loss is none of the supported ones, or has options that change its curvature.
    """
    if not temperature > 0:
        raise ValueError(f"{op}: temperature must be positive (got {temperature})")
    kind = _FUNCTIONS.get(loss_fn) or next((k for k in _HEADS if type(loss_fn) is k), None)
    if kind is None:
        raise ValueError(
            f"{op}: methods 'ggn' and 'ggn-mc' know the curvature of CrossEntropyLoss and MSELoss "
            f"(got {_name(loss_fn)}); use one of those, or method='fisher', which works with any loss"
        )
    reduction_of(op, loss_fn)
    return _HEADS[kind](op, loss_fn, temperature)


def _cross_entropy(op: str, loss_fn: LossFn, temperature: float) -> Head:
    """Hessian of ``T^2 CE(f / T)``: ``diag(q) - q q^T`` with ``q = softmax(f / T)``. Targets play no part in it."""
    if getattr(loss_fn, "weight", None) is not None:
        raise ValueError(f"{op}: class weights are not supported with 'ggn'; use a CrossEntropyLoss without them")

    def probabilities(output: Tensor) -> Tensor:
        if output.dim() != 2:
            raise ValueError(f"{op}: cross-entropy needs outputs of shape (N, classes) (got {tuple(output.shape)})")
        return (output / temperature).softmax(1)

    def factors(output: Tensor) -> Iterator[Tensor]:
        q = probabilities(output)
        for c in range(q.shape[1]):
            factor = -q.clone()
            factor[:, c] += 1
            yield q[:, c : c + 1].sqrt() * factor

    def sample(output: Tensor, generator: torch.Generator) -> Tensor:
        q = probabilities(output)
        label = torch.multinomial(q.float(), 1, generator=generator)
        return q.scatter_add(1, label, -torch.ones_like(q[:, :1]))

    return Head(factors, sample)


def _mse(op: str, loss_fn: LossFn, temperature: float) -> Head:
    """Hessian ``2 I`` per sample, over the number of output elements if the loss is their mean."""
    if temperature != 1:
        raise ValueError(f"{op}: temperature applies to cross-entropy only (got {temperature} with MSE)")
    mean = reduction_of(op, loss_fn) == "mean"

    def scale(output: Tensor) -> float:
        return (2 / (output[0].numel() if mean else 1)) ** 0.5

    def factors(output: Tensor) -> Iterator[Tensor]:
        flat = output.reshape(output.shape[0], -1)
        for c in range(flat.shape[1]):
            factor = torch.zeros_like(flat)
            factor[:, c] = scale(output)
            yield factor.view_as(output)

    def sample(output: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(output.shape, generator=generator, device=generator.device)
        return scale(output) * noise.to(output)

    return Head(factors, sample)


_HEADS: dict[type, Callable[[str, LossFn, float], Head]] = {
    nn.CrossEntropyLoss: _cross_entropy,
    nn.MSELoss: _mse,
}
_FUNCTIONS: dict[object, type | None] = {
    F.cross_entropy: nn.CrossEntropyLoss,
    F.mse_loss: nn.MSELoss,
    F.nll_loss: None,
    F.binary_cross_entropy_with_logits: None,
    F.smooth_l1_loss: None,
    F.l1_loss: None,
}


def _name(loss_fn: LossFn) -> str:
    return getattr(loss_fn, "__name__", type(loss_fn).__name__)
