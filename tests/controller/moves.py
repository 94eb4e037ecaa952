"""Moves as a controller reports them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Move:
    step: int = 10
    kind: str = "shrink"
    unit: str = "channel"
    where: dict[str, int] = field(default_factory=lambda: {"conv1": 3, "conv2": 1})
    count: int = 4
    predicted: float = 1e-3
    actual: float = 2e-3
    ratio: float = 2.0
    fraction: float = 0.1
    damping: float = 1.0
    price: float = 1e-6
    accepted: bool = True
    cost: dict[str, float] = field(default_factory=lambda: {"params": 900.0, "macs": 4000.0})
    loss_before: float = 0.1
    loss_after: float = 0.102


def move(**changes: Any) -> Any:
    return Move(**changes)
