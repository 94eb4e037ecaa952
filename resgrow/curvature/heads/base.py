"""What every loss gives to the methods.

With ``l`` the sum of losses over a batch and ``f`` the output, a head gives factors ``S`` with ``sum_c +-S_c S_c^T =
d2l/df2``, either all of them or one random vector ``v`` with ``E[v v^T] = d2l/df2``. Backpropagating them gives the
generalised Gauss-Newton diagonal (Schraudolph 2002; Martens 2014, section 6).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

LossFn = Callable[[Tensor, Tensor], Tensor]


class Head(ABC):
    """One loss at the model's output ``f`` of shape ``(N, *)``. Tensors returned have the output's shape and dtype."""

    @abstractmethod
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The differentiable sum of losses over a batch: a scalar."""

    @abstractmethod
    def total(self, output: Tensor, target: Tensor) -> float:
        """What ``loss`` is divided by to give the batch's mean loss.

        For reduction "mean" that is what torch divides by (elements, or the weight of all targets that count), for
        "sum" the number of samples.
        """

    @abstractmethod
    def factors(self, output: Tensor, target: Tensor) -> Iterator[tuple[float, Tensor]]:
        """Pairs (sign, ``S_c``), at least one: each sample's Hessian of ``loss`` is ``sum_c sign_c S_c S_c^T``."""

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


def wide(t: Tensor) -> Tensor:
    """At least float32: half-precision outputs have too few digits for probabilities and sums."""
    return t.to(torch.promote_types(t.dtype, torch.float32))


def signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """Independent +1 and -1, with the shape, dtype and device of ``like``.

    Among all vectors with independent entries of mean 0 and variance 1 these have the least fourth moment, hence
    squares and quadratic forms of the least variance.
    """
    bits = torch.randint(0, 2, like.shape, generator=generator, device=generator.device)
    return bits.to(like).mul_(2).sub_(1)
