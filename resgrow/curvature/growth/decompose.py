"""Matrices of moments taken apart: inverse roots, and leading singular vectors, in time that large layers allow."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Eigenvalues of a second moment below this part of the largest one count as zero: sums of float32 products know no
# smaller ones, and directions that data hardly vary in would be blown up.
CUTOFF = 1e-6
# Up to these sizes all eigenvalues and all singular values are computed: it takes a fraction of a second.
SMALL, TINY = 1024, 256
# Steps of power iteration for the largest eigenvalue, which they give to a few per cent.
_STEPS = 10
# Blocks of the Krylov space, and its directions per block beyond those that are wanted.
_DEPTH, _BEYOND = 8, 8


@dataclass(frozen=True)
class Root:
    """``R`` with ``R R^T`` the inverse of a second moment ``S (D, D)``.

    Attributes:
        vectors: ``R (D, r)`` itself, of `SMALL` ones; otherwise
        lower: ``L (D, D)`` of Cholesky's ``S = L L^T``, with ``R = L^-T``.
    """

    vectors: Tensor | None
    lower: Tensor | None

    def across(self, matrix: Tensor) -> Tensor:
        """``R^T matrix``."""
        if self.vectors is not None:
            return self.vectors.T @ matrix
        assert self.lower is not None
        return torch.linalg.solve_triangular(self.lower, matrix, upper=False)

    def along(self, matrix: Tensor) -> Tensor:
        """``R matrix``."""
        if self.vectors is not None:
            return self.vectors @ matrix
        assert self.lower is not None
        return torch.linalg.solve_triangular(self.lower.T, matrix, upper=True)


def inverse_root(second: Tensor) -> Root:
    """Of a second moment ``(D, D)`` without eigenvalues of less than `CUTOFF` of the largest, which data hardly tell.

    Up to `SMALL` such eigenvalues are left out (a pseudo-inverse). Beyond, an eigenvalue problem would take longer than
    all else together: that part of the largest is added to all, which differs only where they are about that small.
    """
    if len(second) > SMALL:
        shifted = second.clone()
        shifted.diagonal().add_(CUTOFF * _largest(second))
        lower, failed = torch.linalg.cholesky_ex(shifted)
        if not int(failed):
            return Root(None, lower)
    values, vectors = torch.linalg.eigh(second)
    kept = values > CUTOFF * values[-1].clamp_min(0)
    return Root(vectors[:, kept] * values[kept].rsqrt(), None)


def _largest(second: Tensor) -> Tensor:
    """The largest eigenvalue, from below, by power iteration from the longest column."""
    vector = second[:, second.norm(dim=0).argmax()]
    for _ in range(_STEPS):
        vector = second @ (vector / vector.norm().clamp_min(1e-300))
    return vector.norm()


def leading(matrix: Tensor, count: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """``u (D, k)``, singular values ``(k,)`` and ``v (k, m)`` of a matrix ``(D, m)``, the largest ones first.

    Args:
        count: how many are wanted at least; None: all. A few of a large matrix come from a block Krylov space (Musco
            and Musco 2015, "Randomized block Krylov methods for stronger and faster approximate singular value
            decomposition"), which starts from fixed random numbers, so that results do not vary. Values are then as
            good as exact where they stand out, and some thousandths too small in a dense part of the spectrum, where
            one direction is as good as another.
    """
    small = min(matrix.shape)
    if small <= TINY:
        u, values, v = torch.linalg.svd(matrix, full_matrices=False)
        return u, values, v
    if matrix.shape[0] > matrix.shape[1]:
        u, values, v = leading(matrix.T, count)
        return v.T, values, u.T
    if count is None or 3 * _DEPTH * (count + _BEYOND) > small:
        return _of_rows(matrix)
    basis = _krylov(matrix, count + _BEYOND)
    u, values, v = _of_rows(basis.T @ matrix)
    return basis @ u[:, :count], values[:count], v[:count]


def _of_rows(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of a matrix with no more rows than columns, by the eigenvalues of ``matrix matrix^T``. Squares of singular values
    are exact to rounding of the largest; those below a thousandth of `CUTOFF` of it are left out."""
    squares, u = torch.linalg.eigh(matrix @ matrix.T)
    squares, u = squares.flip(0), u.flip(1)
    count = int((squares > 1e-3 * CUTOFF * squares[0].clamp_min(0)).sum())
    values = squares[:count].sqrt()
    return u[:, :count], values, (u[:, :count] / values).T @ matrix


def _krylov(matrix: Tensor, width: int) -> Tensor:
    """Orthonormal ``(D, _DEPTH * width)``: what powers of ``matrix matrix^T`` make of random directions."""
    start = torch.randn(matrix.shape[1], width, dtype=matrix.dtype, generator=torch.Generator().manual_seed(0))
    block = torch.linalg.qr(matrix @ start.to(matrix.device))[0]
    blocks = [block]
    for _ in range(_DEPTH - 1):
        block = matrix @ (matrix.T @ block)
        for _ in range(2):  # once more for what rounding has left
            block = block - torch.cat(blocks, 1) @ (torch.cat(blocks, 1).T @ block)
            block = torch.linalg.qr(block)[0]
        blocks.append(block)
    return torch.cat(blocks, 1)
