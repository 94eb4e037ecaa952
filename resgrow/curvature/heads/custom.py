"""Any other loss, through its own Hessian at the output."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from resgrow.curvature.heads.base import Head, LossFn, signs, wide

# Hessians of N samples take N * LARGEST^2 numbers, and as many double backward passes as one has rows.
LARGEST = 1024


class Custom(Head):
    """A loss that says how it reduces over samples, each of which it treats on its own.

    Values and gradients are the loss's own. The Hessian ``(N, C, C)`` at outputs of ``C`` elements per sample takes
    ``C`` double backward passes through the loss alone; its eigenvectors, scaled, are the factors, signed where the
    loss is not convex. ``total`` is the number of samples, so that batches count by their samples whatever the loss
    itself divides by.
    """

    def __init__(self, op: str, loss_fn: LossFn, name: str, reduction: str) -> None:
        self.op, self.loss_fn, self.name, self.mean = op, loss_fn, name, reduction == "mean"

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        loss = self.loss_fn(output, target)
        if loss.dim() != 0:
            raise ValueError(
                f"{self.op}: the loss must be a scalar (got {self.name} with shape {tuple(loss.shape)}); reduce it"
            )
        return loss * self.total(output, target) if self.mean else loss

    def total(self, output: Tensor, target: Tensor) -> float:
        return float(target.shape[0])

    def factors(self, output: Tensor, target: Tensor) -> Iterator[tuple[float, Tensor]]:
        values, vectors = self._eigen(output, target)
        found = False
        # In ascending order a sample's j-th least and j-th greatest share a factor with those of the other samples.
        for sign, order in ((-1.0, range(values.shape[1])), (1.0, reversed(range(values.shape[1])))):
            for k in order:
                root = (sign * values[:, k]).clamp_min(0).sqrt()
                if not root.any():
                    break
                found = True
                yield sign, (root[:, None] * vectors[:, :, k]).view(output.shape).to(output.dtype)
        if not found:
            yield 1.0, torch.zeros_like(output)

    def sample(self, output: Tensor, target: Tensor, generator: torch.Generator) -> Tensor:
        values, vectors = self._eigen(output, target)
        if (values < 0).any():
            raise ValueError(
                f"{self.op}: a loss that is not convex in the output has no random vectors with its Hessian as second "
                f"moment (got {self.name} with the eigenvalue {values.min():g}); use method='ggn', which is signed"
            )
        v = torch.einsum("nck,nk->nc", vectors, values.sqrt() * signs(values, generator))
        return v.view(output.shape).to(output.dtype)

    def diagonal(self, output: Tensor, target: Tensor) -> Tensor:
        return self._hessian(output, target).diagonal(dim1=1, dim2=2).reshape(output.shape).to(output.dtype)

    def _eigen(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Eigenvalues ``(N, C)`` in ascending order, those of rounding errors set to zero, and eigenvectors."""
        hessian = self._hessian(output, target)
        values, vectors = torch.linalg.eigh(hessian.double())
        noise = values.shape[1] * torch.finfo(hessian.dtype).eps * values.abs().amax(1, keepdim=True)
        return values.masked_fill(values.abs() <= noise, 0.0), vectors

    def _hessian(self, output: Tensor, target: Tensor) -> Tensor:
        """Each sample's Hessian of ``loss`` by its flattened output, ``(N, C, C)``.

        Raises:
            ValueError: ``C`` is too large, a derivative is not finite, or samples influence each other.
        """
        size = output[0].numel()
        if size > LARGEST:
            raise ValueError(
                f"{self.op}: the Hessian of {self.name} is taken for outputs of at most {LARGEST} elements per sample "
                f"(got {size}); use CrossEntropyLoss, MSELoss or BCEWithLogitsLoss, or method='fisher'"
            )
        with torch.enable_grad():
            f = wide(output.detach()).reshape(output.shape[0], -1).requires_grad_()
            loss = self.loss(f.view(output.shape), target)
            (first,) = torch.autograd.grad(loss, f, create_graph=True)
        if not first.requires_grad:
            return f.new_zeros(f.shape[0], size, size)
        hessian = torch.stack([_product(first, f, unit.expand_as(f)) for unit in torch.eye(size).to(f)], 1)
        if not torch.isfinite(hessian).all():
            raise ValueError(f"{self.op}: second derivatives of {self.name} at the output are not finite")
        self._check_coupling(hessian, first, f)
        return (hessian + hessian.transpose(1, 2)) / 2

    def _check_coupling(self, hessian: Tensor, first: Tensor, f: Tensor) -> None:
        # Unit vectors sum over samples; random ones do not hide what one sample does to another's gradient.
        probe = signs(f, torch.Generator(f.device).manual_seed(0))
        error = _product(first, f, probe) - torch.einsum("nc,ncd->nd", probe, hessian)
        if error.abs().max() > torch.finfo(f.dtype).eps ** 0.5 * hessian.abs().max():
            raise ValueError(
                f"{self.op}: samples must not influence each other's loss (got {self.name}, whose gradient at one "
                "sample depends on the output of another); use method='hessian' or 'hutchinson'"
            )


def _product(first: Tensor, f: Tensor, vector: Tensor) -> Tensor:
    """``d2l/df2`` times ``vector``."""
    (product,) = torch.autograd.grad(first, f, vector, retain_graph=True, allow_unused=True)
    return torch.zeros_like(f) if product is None else product.detach()
