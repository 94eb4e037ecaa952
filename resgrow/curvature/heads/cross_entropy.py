"""Softmax cross-entropy, with every option that torch's has.

At a position with output ``f`` the loss is ``-sum_c u_c log softmax(f)_c`` with target weights ``u``: class weight,
target probability and label smoothing together. Its Hessian depends on them through their sum alone::

    a (diag(q) - q q^T),  q = softmax(f / T),  a = sum_c u_c

and zero where the target is ignored. The matrix has the Cholesky factor, with tails ``s_k = sum_{j > k} q_j``::

    L_kk = sqrt(q_k s_k / s_{k-1}),   L_ik = -q_i sqrt(q_k / (s_{k-1} s_k))  for i > k

whose columns are the factors: one fewer than classes, and without the difference ``1 - q``, which loses all digits
where softmax saturates. A random ``v = L z`` with random signs ``z`` has ``E[v v^T] = L L^T``, like the gradient of
a label drawn from ``q``, but not its variance: a rare label's gradient is large and rarely drawn.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from resgrow.curvature.heads.base import Head, signs, wide


class CrossEntropy(Head):
    """``T^2 CE(f / T)`` for outputs ``(N, C, *positions)``.

    Targets are class indices ``(N, *positions)`` or class probabilities of the output's shape. ``total`` for "mean" is
    the sum of the targets' class weights over positions that are not ignored; for probabilities their number.

    ``factors`` come one position at a time, since a sample's Hessian has no entries between positions: ``positions *
    (C - 1)`` of them. ``sample`` serves all positions at once, as cross terms vanish in expectation.
    """

    OPTIONS = ("weight", "ignore_index", "label_smoothing")
    TEMPERED = True

    def __init__(
        self,
        op: str,
        reduction: str,
        temperature: float,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
    ) -> None:
        self.op, self.mean, self.temperature = op, reduction == "mean", temperature
        self.weight, self.ignore_index, self.label_smoothing = weight, ignore_index, label_smoothing

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        self._check(output, target)
        scaled = wide(output) / self.temperature
        loss = F.cross_entropy(
            scaled,
            target.to(scaled.dtype) if target.is_floating_point() else target,
            None if self.weight is None else self.weight.to(scaled),
            ignore_index=self.ignore_index,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        return self.temperature**2 * loss

    def total(self, output: Tensor, target: Tensor) -> float:
        self._check(output, target)
        if not self.mean:
            return float(target.shape[0])
        if target.is_floating_point():
            return output.numel() / output.shape[1]
        counted = target != self.ignore_index
        return float(counted.sum() if self.weight is None else self.weight.to(target.device)[target[counted]].sum())

    def factors(self, output: Tensor, target: Tensor) -> Iterator[tuple[float, Tensor]]:
        q, root = self._softmax(output, target)
        pivot, ratio = _cholesky(q)
        pivot, ratio = root * pivot, root * ratio
        wanted = (pivot != 0).any(0).t().nonzero().tolist()
        for position, c in wanted:
            factor = torch.zeros_like(q)
            factor[:, c, position] = pivot[:, c, position]
            factor[:, c + 1 :, position] = -q[:, c + 1 :, position] * ratio[:, c, position, None]
            yield 1.0, factor.view(output.shape).to(output.dtype)
        if not wanted:
            yield 1.0, torch.zeros_like(output)

    def sample(self, output: Tensor, target: Tensor, generator: torch.Generator) -> Tensor:
        q, root = self._softmax(output, target)
        pivot, ratio = _cholesky(q)
        z = signs(q, generator)
        v = root * (pivot * z - q * _before(ratio * z))
        return v.view(output.shape).to(output.dtype)

    def diagonal(self, output: Tensor, target: Tensor) -> Tensor:
        q, root = self._softmax(output, target)
        others = _before(q) + _before(q.flip(1)).flip(1)
        return (root.square() * q * others).view(output.shape).to(output.dtype)

    def _softmax(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """``q`` of shape ``(N, C, positions)`` and ``sqrt(a)`` of shape ``(N, 1, positions)``."""
        self._check(output, target)
        q = (wide(output) / self.temperature).softmax(1).reshape(*output.shape[:2], -1)
        a = self._coefficient(q, target)
        if (a < 0).any():
            raise ValueError(
                f"{self.op}: class weights and target probabilities must be >= 0 (got a total weight of {a.min():g} "
                "at one target); only then is cross-entropy convex"
            )
        return q, a.sqrt().view(q.shape[0], 1, -1)

    def _coefficient(self, q: Tensor, target: Tensor) -> Tensor:
        """``a``: the sum of target weights at each position, of shape ``(N, *positions)``."""
        classes, eps = q.shape[1], self.label_smoothing
        weight = q.new_ones(classes) if self.weight is None else self.weight.to(q)
        if target.is_floating_point():
            smooth = target.to(q.dtype) * (1 - eps) + eps / classes
            return torch.einsum("nc...,c->n...", smooth, weight)
        ignored = target == self.ignore_index
        a = (1 - eps) * weight[target.masked_fill(ignored, 0)] + eps * weight.mean()
        return a.masked_fill(ignored, 0)

    def _check(self, output: Tensor, target: Tensor) -> None:
        if output.dim() < 2 or target.shape not in (output.shape, output.shape[:1] + output.shape[2:]):
            raise ValueError(
                f"{self.op}: cross-entropy needs outputs of shape (N, classes, *positions) and targets of shape "
                f"(N, *positions) or the output's own (got {tuple(output.shape)} and {tuple(target.shape)}); "
                "reshape them"
            )
        if target.shape == output.shape:
            if not target.is_floating_point():
                raise ValueError(
                    f"{self.op}: targets of the output's shape are class probabilities in floating point "
                    f"(got {target.dtype}); pass indices of shape (N, *positions), or convert them"
                )
            return
        if target.is_floating_point():
            raise ValueError(
                f"{self.op}: class indices are integers (got {target.dtype} of shape {tuple(target.shape)}); convert "
                "them with .long(), or pass class probabilities in the output's shape"
            )
        wrong = ((target < 0) | (target >= output.shape[1])) & (target != self.ignore_index)
        if wrong.any():
            raise ValueError(
                f"{self.op}: class indices must be in [0, {output.shape[1]}) or ignore_index={self.ignore_index} "
                f"(got {int(target[wrong][0])}); check the targets"
            )


def _cholesky(q: Tensor) -> tuple[Tensor, Tensor]:
    """Diagonal ``L_kk`` and the ``sqrt(q_k / (s_{k-1} s_k))`` of columns ``k``, both ``(N, C, positions)``."""
    after = _before(q.flip(1)).flip(1)
    share = (q / (q + after)).nan_to_num_(0.0).sqrt_()
    root = after.sqrt()
    return share * root, (share / root).masked_fill_(root == 0, 0.0)


def _before(t: Tensor) -> Tensor:
    """Sums over the classes before each one, without taking differences."""
    return torch.cat([torch.zeros_like(t[:, :1]), t[:, :-1]], 1).cumsum(1)
