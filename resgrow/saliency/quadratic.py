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

# Numbers in the matrices that are factorised together: 32 MiB in float64.
BATCH = 2**22


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
        parts, keys, live, affected = self._deletion(weight, keep)
        gone = (parts != 0) & ~live
        lost, new = parts.double() * gone, parts.double() * live

        def change(index: Tensor) -> Tensor:
            pull = self._product(keys[index], lost[index]) * live[index]
            return self._with_factor(keys[index], live[index], lambda f, order: _solved(f, order, pull))

        def change_alike(index: Tensor) -> Tensor:
            one = index[:1]
            missing = gone[index].any(0).nonzero()[:, 0]
            matrix = self.hessian.flatten(0, 1)[keys[one[0]]]
            pull = (lost[index][:, missing] @ matrix[missing].double()) * live[one]
            return self._with_factor(keys[one], live[one], lambda f, order: _solved_alike(f, order, pull))

        for index, alike in self._by_matrix(keys, live, affected):
            new[index] += change_alike(index) if alike else self._batched(change, index, live)
        return self._join(new, weight)

    def work(self, weight: Tensor, keep: Tensor) -> float:
        """Multiply-accumulates of the factorisations in `update`, which are nearly all that it does."""
        _, keys, live, affected = self._deletion(weight, keep)
        return sum(
            (1 if alike else len(index)) * float(live[index].sum(1).max()) ** 3 / 6
            for index, alike in self._by_matrix(keys, live, affected)
        )

    def _deletion(self, weight: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Problems, the places of their matrices, what stays of each, and the numbers of those that lose something."""
        parts, keys = self._problems(weight)
        kept = self._problems(keep.to(weight.dtype))[0] != 0
        live, gone = kept & (parts != 0), ~kept & (parts != 0)
        return parts, keys, live, (gone.any(1) & live.any(1)).nonzero()[:, 0]

    @staticmethod
    def _by_matrix(keys: Tensor, live: Tensor, affected: Tensor) -> Iterator[tuple[Tensor, bool]]:
        """Affected problems of each matrix, and whether they lack the same and can share its factor: as all rows do
        where inputs of a layer go."""
        for key in keys[affected].unique().tolist():
            index = affected[keys[affected] == key]
            yield index, bool((live[index] == live[index[0]]).all())

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

    def _product(self, keys: Tensor, x: Tensor) -> Tensor:
        """``H x`` of each problem, without damping, which only matters on the diagonal."""
        matrices = self.hessian.flatten(0, 1)
        if len(matrices) == 1:
            return x @ matrices[0].double()
        return (matrices[keys].double() @ x[:, :, None])[:, :, 0]

    def _inverse_diagonal(self, keys: Tensor, live: Tensor) -> Tensor:
        def diagonal(factor: Tensor, order: Tensor) -> Tensor:
            found = torch.cholesky_inverse(factor).diagonal(dim1=1, dim2=2)
            return torch.ones_like(live[: len(order)], dtype=found.dtype).scatter_(1, order, found)

        return self._batched(
            lambda index: self._with_factor(keys[index], live[index], diagonal),
            torch.arange(len(keys), device=keys.device),
            live,
        )

    def _with_factor(self, keys: Tensor, live: Tensor, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """``function(factor, order)`` of the damped matrices of what is live, in as few rows as hold it.

        ``order`` are the places of those rows, ``(problems, k)``; a problem with fewer has the identity beyond them.
        """
        order = live.sort(dim=1, descending=True, stable=True).indices[:, : int(live.sum(1).max())]
        there = live.gather(1, order).double()
        matrices = self.hessian.flatten(0, 1)[keys[:, None, None], order[:, :, None], order[:, None, :]].double()
        matrices.mul_(there[:, :, None]).mul_(there[:, None, :])
        matrices.diagonal(dim1=1, dim2=2).add_(there * self.damping + (1 - there))
        return function(torch.linalg.cholesky(matrices), order)

    def _batched(self, function: Callable[[Tensor], Tensor], index: Tensor, live: Tensor) -> Tensor:
        """``function`` of a few problems at a time, concatenated: ``(len(index), size)``."""
        size = self.hessian.shape[-1]
        if not len(index):
            return torch.ones(0, size, dtype=torch.float64, device=index.device)
        # With one matrix for all problems only the live part is there once for each.
        rows = int(live[index].sum(1).max()) if self.hessian.shape[:2] == (1, 1) else size
        return torch.cat([function(chunk) for chunk in index.split(max(1, BATCH // max(1, rows**2)))])


def _solved(factor: Tensor, order: Tensor, pull: Tensor) -> Tensor:
    """The change of what is live, zero elsewhere: ``(problems, size)``."""
    change = torch.cholesky_solve(pull.gather(1, order)[:, :, None], factor)[:, :, 0]
    return torch.zeros_like(pull).scatter_(1, order, change)


def _solved_alike(factor: Tensor, order: Tensor, pull: Tensor) -> Tensor:
    """As `_solved`, of several problems with the one factor: ``(problems, size)``."""
    change = torch.cholesky_solve(pull[:, order[0]].T, factor[0]).T
    return torch.zeros_like(pull).index_copy_(1, order[0], change)


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
