"""How much a model may cost."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Budget:
    """Upper limits on a model's cost; where several are given, all must hold.

    A number in (0, 1] is a fraction of the model's cost when the controller is made, a whole number above 1 an
    absolute cost.

    Attributes:
        params: parameters that may be present, biases and norms included.
        macs: multiply-accumulates per sample of all Conv2d and Linear layers.

    Raises:
        ValueError: no limit, a limit that is not positive, or a fractional number above 1.
    """

    params: float | None = None
    macs: float | None = None

    def __post_init__(self) -> None:
        if not self.limits():
            raise ValueError("Budget: needs at least one limit (got none); give params= or macs=")
        for name, limit in self.limits().items():
            if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not 0 < limit < math.inf:
                raise ValueError(f"Budget: {name} must be a positive number (got {limit!r})")
            if limit > 1 and limit != int(limit):
                raise ValueError(
                    f"Budget: {name} must be a fraction in (0, 1] or a whole number above 1 (got {limit!r})"
                )

    def limits(self) -> dict[str, float]:
        """The limits that are set, as given."""
        return {name: limit for name, limit in asdict(self).items() if limit is not None}

    def targets(self, cost: dict[str, float]) -> dict[str, int]:
        """Absolute limits for a model that costs ``cost`` now."""
        return {name: int(limit * cost[name]) if limit <= 1 else int(limit) for name, limit in self.limits().items()}
