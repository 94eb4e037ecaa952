"""Losses: values and derivatives of each with respect to the model's output.

The mean loss over data is ``sum over batches of head.loss / sum over batches of head.total``. All that a head gives
belongs to ``head.loss``, the unnormalised sum over a batch, in which samples do not influence each other.

With ``l`` that sum and ``f`` the output, a head gives factors ``S`` with ``sum_c +-S_c S_c^T = d2l/df2``, either all
of them or one random vector ``v`` with ``E[v v^T] = d2l/df2``. Backpropagating them gives the generalised Gauss-Newton
diagonal (Schraudolph 2002; Martens 2014, section 6).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LossFn = Callable[[Tensor, Tensor], Tensor]


class Head(ABC):
    """One loss at the model's output ``f`` of shape ``(N, *)``. Tensors returned have the output's shape."""

    @abstractmethod
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The differentiable sum of losses over a batch: a scalar."""

    @abstractmethod
    def total(self, output: Tensor, target: Tensor) -> float:
        """What ``loss`` is divided by to give the batch's mean loss: the number of samples, or their total weight."""

    @abstractmethod
    def factors(self, output: Tensor, target: Tensor) -> Iterator[tuple[float, Tensor]]:
        """Pairs (sign, ``S_c``): each sample's Hessian of ``loss`` is ``sum_c sign_c S_c S_c^T``."""

    @abstractmethod
    def sample(self, output: Tensor, target: Tensor, generator: torch.Generator) -> Tensor:
        """A random ``v``, independent between samples, with ``E[v v^T]`` each sample's Hessian of ``loss``."""

    @abstractmethod
    def diagonal(self, output: Tensor, target: Tensor) -> Tensor:
        """The diagonal of each sample's Hessian of ``loss``."""

    def gradient(self, output: Tensor, target: Tensor) -> Tensor:
        """``d loss / d output``.

        Raises:
            ValueError: the loss is not finite.
        """
        with torch.enable_grad():
            output = output.detach().requires_grad_()
            loss = self.loss(output, target)
            if not torch.isfinite(loss):
                raise ValueError(f"curvature: the loss is not finite (got {loss.item()})")
            (grad,) = torch.autograd.grad(loss, output)
        return grad


def reduction_of(op: str, loss_fn: LossFn) -> str:
    """ "mean" or "sum"; functions of ``torch.nn.functional`` count with their default, "mean"."""
    reduction = "mean" if loss_fn in _FUNCTIONS else getattr(loss_fn, "reduction", None)
    if reduction not in ("mean", "sum"):
        raise ValueError(
            f"{op}: the loss must say how it reduces over samples (got {_name(loss_fn)} with reduction "
            f"{reduction!r}); pass a torch loss module, or an object with reduction 'mean' or 'sum'"
        )
    return reduction


def head_of(op: str, loss_fn: LossFn, temperature: float = 1.0) -> Head:
    """The head for a loss module or function.

    Raises:
        ValueError: the loss is none of the supported ones, or has options that change its curvature.
    """
    if not temperature > 0:
        raise ValueError(f"{op}: temperature must be positive (got {temperature})")
    kind = _FUNCTIONS.get(loss_fn) or next((k for k in _HEADS if type(loss_fn) is k), None)
    reduction_of(op, loss_fn)
    if kind is None:
        return _Custom(op, loss_fn, temperature)
    return _HEADS[kind](op, loss_fn, temperature)


class _Custom(Head):
    """Any loss that says how it reduces: values and gradients only."""

    def __init__(self, op: str, loss_fn: LossFn, temperature: float) -> None:
        if temperature != 1:
            raise ValueError(f"{op}: temperature applies to cross-entropy only (got {temperature})")
        self.op, self.loss_fn, self.mean = op, loss_fn, reduction_of(op, loss_fn) == "mean"

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        loss = self.loss_fn(output, target)
        return loss * self.total(output, target) if self.mean else loss

    def total(self, output: Tensor, target: Tensor) -> float:
        return float(target.shape[0])

    def factors(self, output: Tensor, target: Tensor) -> Iterator[tuple[float, Tensor]]:
        raise self._unknown()

    def sample(self, output: Tensor, target: Tensor, generator: torch.Generator) -> Tensor:
        raise self._unknown()

    def diagonal(self, output: Tensor, target: Tensor) -> Tensor:
        raise self._unknown()

    def _unknown(self) -> ValueError:
        return ValueError(
            f"{self.op}: methods 'ggn' and 'ggn-mc' know the curvature of CrossEntropyLoss and MSELoss "
            f"(got {_name(self.loss_fn)}); use one of those, or method='fisher', which works with any loss"
        )


class _CrossEntropy(_Custom):
    """``T^2 CE(f / T)``, whose Hessian is ``diag(q) - q q^T`` with ``q = softmax(f / T)`` whatever the target."""

    def __init__(self, op: str, loss_fn: LossFn, temperature: float) -> None:
        super().__init__(op, loss_fn, 1.0)
        self.temperature = temperature
        if getattr(loss_fn, "weight", None) is not None:
            raise ValueError(f"{op}: class weights are not supported with 'ggn'; use a CrossEntropyLoss without them")

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return self.temperature**2 * super().loss(output / self.temperature, target)

    def _probabilities(self, output: Tensor) -> Tensor:
        if output.dim() != 2:
            raise ValueError(
                f"{self.op}: cross-entropy needs outputs of shape (N, classes) (got {tuple(output.shape)})"
            )
        return (output / self.temperature).softmax(1)

    def factors(self, output: Tensor, target: Tensor) -> Iterator[tuple[float, Tensor]]:
        q = self._probabilities(output)
        for c in range(q.shape[1]):
            factor = -q.clone()
            factor[:, c] += 1
            yield 1.0, q[:, c : c + 1].sqrt() * factor

    def sample(self, output: Tensor, target: Tensor, generator: torch.Generator) -> Tensor:
        q = self._probabilities(output)
        label = torch.multinomial(q.float(), 1, generator=generator)
        return q.scatter_add(1, label, -torch.ones_like(q[:, :1]))

    def diagonal(self, output: Tensor, target: Tensor) -> Tensor:
        q = self._probabilities(output)
        return q * (1 - q)


class _Mse(_Custom):
    """Hessian ``2 I`` per sample, over the number of output elements if the loss is their mean."""

    def _scale(self, output: Tensor) -> float:
        return 2 / (output[0].numel() if self.mean else 1)

    def factors(self, output: Tensor, target: Tensor) -> Iterator[tuple[float, Tensor]]:
        flat = output.reshape(output.shape[0], -1)
        for c in range(flat.shape[1]):
            factor = torch.zeros_like(flat)
            factor[:, c] = self._scale(output) ** 0.5
            yield 1.0, factor.view_as(output)

    def sample(self, output: Tensor, target: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(output.shape, generator=generator, device=generator.device)
        return self._scale(output) ** 0.5 * noise.to(output)

    def diagonal(self, output: Tensor, target: Tensor) -> Tensor:
        return torch.full_like(output, self._scale(output))


_HEADS: dict[type, Callable[[str, LossFn, float], Head]] = {
    nn.CrossEntropyLoss: _CrossEntropy,
    nn.MSELoss: _Mse,
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
