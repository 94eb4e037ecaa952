"""Moves as a controller reports them."""

from __future__ import annotations

from typing import Any

from resgrow import Move

_MOVE: dict[str, Any] = {
    "step": 10,
    "kind": "shrink",
    "unit": "channel",
    "where": {"conv1": 3, "conv2": 1},
    "count": 4,
    "predicted": 1e-3,
    "actual": 2e-3,
    "ratio": 2.0,
    "fraction": 0.1,
    "damping": 1.0,
    "price": 1e-6,
    "by": "params",
    "accepted": True,
    "cost": {"params": 900.0, "macs": 4000.0},
    "loss_before": 0.1,
    "loss_after": 0.102,
}


def move(**changes: Any) -> Move:
    return Move(**{**_MOVE, **changes})
