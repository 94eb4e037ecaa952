"""Losses that are sums of one term per output element, whose Hessian is diagonal."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from resgrow.curvature.heads.base import Head, signs, wide


class Elementwise(Head):
    """Outputs and targets of one shape ``(N, *)``; ``total`` for "mean" is the number of elements.

    There is one factor per output element of a sample. A random vector has the roots of the second derivatives with
    random signs, which makes it exact where one output element depends on a weight.
    """

    def __init__(self, op: str, reduction: str) -> None:
        self.op, self.mean = op, reduction == "mean"

    def total(self, output: Tensor, target: Tensor) -> float:
        self._check(output, target)
        return float(output.numel() if self.mean else output.shape[0])

    def factors(self, output: Tensor, target: Tensor) -> Iterator[tuple[float, Tensor]]:
        root = self._root(output, target).reshape(output.shape[0], -1)
        wanted = (root != 0).any(0).nonzero().flatten().tolist()
        for c in wanted:
            factor = torch.zeros_like(root)
            factor[:, c] = root[:, c]
            yield 1.0, factor.view(output.shape).to(output.dtype)
        if not wanted:
            yield 1.0, torch.zeros_like(output)

    def sample(self, output: Tensor, target: Tensor, generator: torch.Generator) -> Tensor:
        root = self._root(output, target)
        return (root * signs(root, generator)).to(output.dtype)

    def diagonal(self, output: Tensor, target: Tensor) -> Tensor:
        self._check(output, target)
        return self.second(wide(output), target).to(output.dtype)

    @abstractmethod
    def second(self, output: Tensor, target: Tensor) -> Tensor:
        """The second derivative of ``loss`` by each output element."""

    def _root(self, output: Tensor, target: Tensor) -> Tensor:
        self._check(output, target)
        second = self.second(wide(output), target)
        if (second < 0).any():
            raise ValueError(
                f"{self.op}: weights must be >= 0 and targets in [0, 1] (got a second derivative of {second.min():g}); "
                "only then is the loss convex"
            )
        return second.sqrt()

    def _check(self, output: Tensor, target: Tensor) -> None:
        if output.shape != target.shape:
            raise ValueError(
                f"{self.op}: output and target must have the same shape (got {tuple(output.shape)} and "
                f"{tuple(target.shape)}); broadcasting would pair samples with each other's targets"
            )


class Mse(Elementwise):
    """Squared error: second derivative 2."""

    OPTIONS = ()
    TEMPERED = False

    def __init__(self, op: str, reduction: str, temperature: float) -> None:
        super().__init__(op, reduction)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        self._check(output, target)
        return F.mse_loss(wide(output), target.to(wide(output).dtype), reduction="sum")

    def second(self, output: Tensor, target: Tensor) -> Tensor:
        return torch.full_like(output, 2.0)


class BceWithLogits(Elementwise):
    """``T^2 BCE(f / T)``: second derivative ``w (p y + 1 - y) s (1 - s)``, ``s = sigmoid(f / T)``, pos_weight ``p``."""

    OPTIONS = ("weight", "pos_weight")
    TEMPERED = True

    def __init__(
        self,
        op: str,
        reduction: str,
        temperature: float,
        weight: Tensor | None = None,
        pos_weight: Tensor | None = None,
    ) -> None:
        super().__init__(op, reduction)
        self.temperature, self.weight, self.pos_weight = temperature, weight, pos_weight

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        self._check(output, target)
        scaled = wide(output) / self.temperature
        weight, pos_weight = (None if t is None else t.to(scaled) for t in (self.weight, self.pos_weight))
        loss = F.binary_cross_entropy_with_logits(
            scaled, target.to(scaled.dtype), weight, reduction="sum", pos_weight=pos_weight
        )
        return self.temperature**2 * loss

    def second(self, output: Tensor, target: Tensor) -> Tensor:
        y, scaled = target.to(output.dtype), output / self.temperature
        positive = y if self.pos_weight is None else self.pos_weight.to(output) * y
        # sigmoid(-x) rather than 1 - sigmoid(x), which is zero where the sigmoid saturates.
        second = (positive + 1 - y) * scaled.sigmoid() * (-scaled).sigmoid()
        return second if self.weight is None else self.weight.to(output) * second
