"""Optimal Brain Surgeon (Hassibi & Stork 1993): quadratic models of an error, and how survivors compensate deletions.

With ``E(w + dw) = E(w) + 1/2 dw^T H dw``, deleting weight ``k`` while all others adapt costs
``w_k^2 / (2 [H^-1]_kk)``. Deleting a set ``Q`` at once, the best change of the survivors ``S`` is
``dw_S = H_SS^-1 H_SQ w_Q``, which is their part of ``-[H^-1]_:Q ([H^-1]_QQ)^-1 w_Q``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

# Numbers in the matrices that are factorised together: 128 MiB in float64.
BATCH = 2**24


class Quadratic:
    """``H`` of one parameter, block-diagonal along each of its rows.

    A row of a parameter ``(O, *)`` has ``D`` elements in blocks of ``size``, the last one padded. Weights that are
    exactly zero count as absent: they do not take part in compensation.

    Args:
        hessian: ``(groups, blocks, size, size)``, symmetric, without damping; the rows are dealt to the groups in
            turn, ``O / groups`` consecutive ones each.
        damping: added to the diagonal.
    """

    def __init__(self, hessian: Tensor, damping: float) -> None:
        self.hessian, self.damping = hessian, damping

    def scores(self, weight: Tensor) -> Tensor:
        """``w_k^2 / (2 [H^-1]_kk)`` in the shape of ``weight``.

        Raises:
            torch.linalg.LinAlgError: ``H`` is not positive definite to working precision.
        """
        parts, keys = self._problems(weight)
        live, real = parts != 0, self._problems(torch.ones_like(weight))[0] != 0
        whole = (live == real).all(1)
        inverse = torch.ones_like(parts, dtype=torch.float64)
        # Problems that lack nothing share the factor of their matrix, others have one each.
        shared, which = keys[whole].unique(return_inverse=True)
        blocks = self.hessian.shape[1]
        inverse[whole] = self._inverse_diagonal(shared, real[:blocks][shared % blocks])[which]
        inverse[~whole] = self._inverse_diagonal(keys[~whole], live[~whole])
        return self._join(parts.double().square() / (2 * inverse), weight)

    def update(self, weight: Tensor, keep: Tensor) -> Tensor:
        """``weight`` with zeros where ``keep`` is False and the best survivors elsewhere.

        Blocks that lose nothing keep their values bit by bit. Raises like `scores`.
        """
        parts, keys = self._problems(weight)
        kept = self._problems(keep.to(weight.dtype))[0] != 0
        live, lost = kept & (parts != 0), parts.double() * ~kept
        new = parts.double() * kept
        affected = (lost.any(1) & live.any(1)).nonzero()[:, 0]

        def change(index: Tensor) -> Tensor:
            matrices = self._matrices(keys[index])
            pull = (matrices @ lost[index][:, :, None]) * live[index][:, :, None]
            return torch.cholesky_solve(pull, _factor(matrices, live[index]))[:, :, 0]

        new[affected] += self._batched(change, affected)
        return self._join(new, weight)

    def _problems(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The blocks of all rows as ``(problems, size)``, padded with zeros, and the place of each one's matrix."""
        groups, blocks, size, _ = self.hessian.shape
        rows = x.reshape(x.shape[0] if x.dim() else 1, -1)
        parts = F.pad(rows, (0, blocks * size - rows.shape[1])).view(-1, size)
        group = torch.arange(len(rows), device=x.device) // max(1, len(rows) // groups)
        keys = group[:, None] * blocks + torch.arange(blocks, device=x.device)
        return parts, keys.flatten()

    def _join(self, parts: Tensor, like: Tensor) -> Tensor:
        rows = like.shape[0] if like.dim() else 1
        return parts.view(rows, -1)[:, : like.numel() // max(1, rows)].reshape(like.shape).to(like.dtype)

    def _matrices(self, keys: Tensor) -> Tensor:
        matrices = self.hessian.flatten(0, 1)[keys].double()
        matrices.diagonal(dim1=1, dim2=2).add_(self.damping)
        return matrices

    def _inverse_diagonal(self, keys: Tensor, live: Tensor) -> Tensor:
        def diagonal(index: Tensor) -> Tensor:
            factor = _factor(self._matrices(keys[index]), live[index])
            return torch.cholesky_inverse(factor).diagonal(dim1=1, dim2=2)

        return self._batched(diagonal, torch.arange(len(keys), device=keys.device))

    def _batched(self, function: Callable[[Tensor], Tensor], index: Tensor) -> Tensor:
        """``function`` of a few problems at a time, concatenated: ``(len(index), size)``."""
        size = self.hessian.shape[-1]
        found = [function(chunk) for chunk in index.split(max(1, BATCH // size**2))] if len(index) else []
        return torch.cat(found) if found else torch.ones(0, size, dtype=torch.float64, device=index.device)


def _factor(matrices: Tensor, live: Tensor) -> Tensor:
    """Cholesky factors of the live rows and columns, with ones on the diagonal elsewhere."""
    live = live.to(matrices.dtype)
    matrices = matrices * live[:, :, None] * live[:, None, :]
    matrices.diagonal(dim1=1, dim2=2).add_(1 - live)
    return torch.linalg.cholesky(matrices)


@contextmanager
def explained(name: str) -> Iterator[None]:
    """A failed factorisation becomes an error that names the parameter and the remedy."""
    try:
        yield
    except torch.linalg.LinAlgError as error:
        raise ValueError(
            f"saliency: the matrix of '{name}' must be positive definite ({error}); give obs a larger damping"
        ) from error


class Surgeon:
    """The compensation of Optimal Brain Surgeon: `resgrow.prune` calls ``update`` for each parameter it masks."""

    def __init__(self, quadratics: Mapping[str, Quadratic]) -> None:
        self.quadratics = dict(quadratics)

    def update(self, name: str, weight: Tensor, keep: Tensor) -> Tensor:
        """The parameter with exact zeros where ``keep`` is False, and the best survivors elsewhere.

        Args:
            name: the parameter's; one without a quadratic model only loses its deleted elements.
            weight: its value now; not changed.
            keep: bool, of its shape.

        Raises:
            ValueError: the matrix is not positive definite.
        """
        if name not in self.quadratics:
            return weight * keep
        with explained(name):
            return self.quadratics[name].update(weight, keep)
