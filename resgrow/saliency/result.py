"""Scores, what they mean, and their sums over layers, channels and blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from resgrow._blocks import block_sums
from resgrow.saliency.path import Stage

LOSS = "rise of the mean loss"


class Compensation(Protocol):
    """How the surviving weights make up for deleted ones, see `resgrow.saliency.quadratic`."""

    def update(self, name: str, weight: Tensor, keep: Tensor) -> Tensor:
        """The new value of parameter ``name``: zero where ``keep`` is False, corrected elsewhere."""


class Saliency(dict[str, Tensor]):
    """``{parameter name: score per element}`` that remembers how it was made.

    Scores have their parameter's shape and device, in float32 (float64 for float64 parameters).

    Attributes:
        method: the criterion.
        unit: what a score measures; ``"rise of the mean loss"`` where it predicts that.
        options: the options that were given.
        damping: the multiple of the mean curvature in use; None where it was chosen stage by stage, or has no place.
        stages: what ``damping="auto"`` tried and chose at each stage of its path; otherwise empty.
        compensation: what `resgrow.prune` corrects the surviving weights with; None for most criteria.
    """

    def __init__(
        self,
        scores: Mapping[str, Tensor],
        method: str,
        unit: str,
        *,
        damping: float | None = None,
        stages: list[Stage] | None = None,
        compensation: Compensation | None = None,
    ) -> None:
        super().__init__(scores)
        self.method, self.unit = method, unit
        self.options: dict[str, Any] = {}
        self.damping, self.stages, self.compensation = damping, stages or [], compensation

    def per_layer(self) -> dict[str, float]:
        """Sum over all parameters that a module holds itself: ``{module name: sum}``, "" for the model's own."""
        sums: dict[str, float] = {}
        for name, score in self.items():
            layer = name.rpartition(".")[0]
            sums[layer] = sums.get(layer, 0.0) + float(score.double().sum())
        return sums

    def per_channel(self) -> dict[str, Tensor]:
        """Sums over all but the first dimension of each weight: ``{parameter name: (O,)}``.

        Weights are the parameters of two dimensions or more. ``O`` counts the output channels of linear and
        convolutional layers (the input channels of transposed convolutions), the rows of an embedding.
        """
        return {name: score.flatten(1).sum(1) for name, score in self._weights()}

    def per_block(self, block: tuple[int, int]) -> dict[str, Tensor]:
        """Sums over blocks of ``bo`` by ``bi`` channels of one kernel tap, the units that `resgrow.prune` removes.

        Returns:
            ``{parameter name: (ceil(O / bo), ceil(I / bi), *kernel)}`` for each weight ``(O, I, *kernel)``.

        Raises:
            ValueError: ``block`` is not a pair of whole numbers >= 1.
        """
        sizes = tuple(block) if isinstance(block, (tuple, list)) else ()
        if len(sizes) != 2 or not all(type(size) is int and size >= 1 for size in sizes):
            raise ValueError(f"per_block: block must be (bo, bi) with bo, bi >= 1 (got {block!r}); write (16, 1)")
        return {name: block_sums(score, (sizes[0], sizes[1])) for name, score in self._weights()}

    def _weights(self) -> list[tuple[str, Tensor]]:
        return [(name, score) for name, score in self.items() if score.dim() >= 2]
