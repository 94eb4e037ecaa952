"""How much a model may cost, and how much loss it may have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

Limit = float | str | None


@dataclass(frozen=True)
class Budget:
    """Upper limits; where several are given, all must hold.

    Text such as "50%" is a share of what the model has when the controller is made (of the loss: when it is measured
    first). A number is absolute, but for parameters and multiply-accumulates one in (0, 1] is a share, too.

    Limits of cost say how large the model may be. A limit of loss says how good it has to be: the controller then
    looks for the smallest model that keeps it. With both, those of cost come first.

    Attributes:
        params: parameters that may be present, biases and norms included.
        macs: multiply-accumulates per sample of all Conv2d and Linear layers.
        latency_ms: milliseconds of a forward pass on the example inputs, as predicted from measured layers.
        loss: mean loss per sample on held data.

    Raises:
        ValueError: no limit, or one that is not a positive number or percentage, or for parameters or
            multiply-accumulates a fractional number above 1.
    """

    params: Limit = None
    macs: Limit = None
    latency_ms: Limit = None
    loss: Limit = None

    def __post_init__(self) -> None:
        limits = {name: limit for name, limit in asdict(self).items() if limit is not None}
        if not limits:
            raise ValueError("Budget: needs at least one limit (got none); give params= or macs=")
        for name, limit in limits.items():
            share = _share(limit)
            if share is None and (isinstance(limit, bool) or not isinstance(limit, int | float) or not _good(limit)):
                raise ValueError(f"Budget: {name} must be a positive number, or text such as '50%' (got {limit!r})")
            if share is None and name in _COUNTS and limit > 1 and limit != int(limit):
                raise ValueError(
                    f"Budget: {name} must be a fraction in (0, 1] or a whole number above 1 (got {limit!r})"
                )

    def costs(self) -> tuple[str, ...]:
        """Kinds of cost that have a limit."""
        return tuple(name for name in (*_COUNTS, "latency_ms") if getattr(self, name) is not None)

    def targets(self, cost: Mapping[str, float]) -> dict[str, float]:
        """Absolute limits of cost for a model that costs ``cost`` now; those of counts are whole numbers."""
        return {name: self._absolute(name, cost[name]) for name in self.costs()}

    def loss_limit(self, now: float) -> float:
        """The absolute limit of the loss, which is ``now`` when it is measured first; infinite where there is none."""
        return math.inf if self.loss is None else self._absolute("loss", now)

    def _absolute(self, name: str, now: float) -> float:
        limit = getattr(self, name)
        share = _share(limit)
        if share is None and name in _COUNTS and limit <= 1:
            share = float(limit)
        absolute = float(limit) if share is None else share * now
        return int(absolute) if name in _COUNTS else absolute


_COUNTS = ("params", "macs")


def _share(limit: object) -> float | None:
    """0.5 of "50%"; None of anything else."""
    if not isinstance(limit, str) or not limit.strip().endswith("%"):
        return None
    try:
        share = float(limit.strip()[:-1]) / 100
    except ValueError:
        return None
    return share if _good(share) else None


def _good(number: float) -> bool:
    return 0 < number < math.inf
