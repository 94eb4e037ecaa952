"""Trust: how far the quadratic model of the loss may be followed. Pure arithmetic, after Levenberg-Marquardt."""

from __future__ import annotations

from dataclasses import dataclass

SMALLEST, LARGEST = 1e-3, 0.3
WEAKEST, STRONGEST = 0.1, 10.0


@dataclass
class Trust:
    """Step size, damping and tolerance, steered by measured against predicted changes of the loss.

    Attributes:
        fraction: share of the live cost that the next move may take or add.
        damping: multiple of the mean curvature added to every curvature.
        tolerance: rise of the loss that a move may cause, relative to what is at stake: the loss, or a tenth of its
            fall from that of constant outputs, where that is more. Grows while no move passes (the budget sets the
            price), and falls back to ``patience`` when moves do.
        patience: the tolerance to begin with.
    """

    fraction: float = 0.05
    damping: float = 1.0
    tolerance: float = 0.1
    patience: float = 0.1

    def accepts(self, actual: float, stakes: float) -> bool:
        """Whether a measured rise of the loss is harmless enough to keep the move."""
        return actual <= self.tolerance * stakes

    def kept(self, predicted: float, actual: float, stakes: float) -> None:
        """Learn from a removal that was kept."""
        ratio = actual / max(predicted, 1e-12)
        harmless = actual <= 0.5 * self.tolerance * stakes
        self._step(1.5 if harmless or ratio < 0.5 else 1.1 if ratio < 1.5 else 0.7)
        if not harmless and ratio > 1.5:
            self._damp(1.5)
        elif ratio < 0.5:
            self._damp(1 / 1.5)
        self.tolerance = max(self.patience, self.tolerance / 1.1)

    def grew(self, predicted: float, actual: float) -> None:
        """Learn from growth that was kept: of falls of the loss, as positive numbers."""
        ratio = actual / max(predicted, 1e-12)
        self._step(1.5 if ratio > 0.75 else 1.1 if ratio > 0.25 else 0.7)
        self._damp(1 / 1.5 if ratio > 0.75 else 1.5 if ratio < 0.25 else 1.0)

    def passed(self) -> None:
        """Learn from a removal from which training has recovered: larger steps."""
        self._step(1.5)

    def refused(self) -> None:
        """Learn from a move that was too bad to keep: smaller steps, less trust in small curvatures."""
        self._step(0.5)
        self._damp(1.5)

    def halve(self) -> None:
        """Try less, and learn nothing else."""
        self._step(0.5)

    def stuck(self) -> None:
        """No move passed: the price of the budget is higher than thought."""
        self.tolerance *= 1.5

    def _step(self, factor: float) -> None:
        self.fraction = min(LARGEST, max(SMALLEST, self.fraction * factor))

    def _damp(self, factor: float) -> None:
        self.damping = min(STRONGEST, max(WEAKEST, self.damping * factor))


def pace(cost: float, target: float, moves: int) -> float:
    """Share of the cost that every one of ``moves`` equal moves must take to come from ``cost`` to ``target``."""
    if cost <= target:
        return 0.0
    return 1 - (target / cost) ** (1 / max(1, moves))
