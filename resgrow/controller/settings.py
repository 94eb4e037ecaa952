"""What a controller is asked for, checked before anything is changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from resgrow.controller.budget import Budget
from resgrow.controller.grow import INITS

UNITS = ("channel", "weight", "residual")
# As moves name them.
KINDS = ("channel", "weight", "block", "residual")
Unit = str | tuple[int, int] | Sequence[str | tuple[int, int]]


@dataclass(frozen=True)
class Settings:
    """Arguments of `resgrow.Controller`; see there."""

    units: tuple[str | tuple[int, int], ...]
    grow: bool
    init: str
    deadline: int | None
    every: int | None
    samples: int
    share: float
    confirm: int
    cooldown: int
    hysteresis: float
    blockwise: bool


def label(unit: str | tuple[int, int]) -> str:
    """As in `Move.unit`."""
    return unit if isinstance(unit, str) else "weight" if tuple(unit) == (1, 1) else "block"


def units_of(unit: Unit) -> tuple[str | tuple[int, int], ...]:
    """One unit or several, as a tuple.

    Raises:
        ValueError: an unknown one, or several that do not go together.
    """
    block = isinstance(unit, tuple | list) and len(unit) == 2 and all(type(size) is int for size in unit)
    given: Any = (unit,) if isinstance(unit, str) or block else tuple(unit)
    for each in given:
        good = each in UNITS if isinstance(each, str) else _is_block(each)
        if not good:
            raise ValueError(
                f"Controller: unit must be one of {', '.join(UNITS)}, a block (bo, bi), or several of them (got "
                f"{each!r})"
            )
    if not given or len(set(map(label, given))) < len(given):
        raise ValueError(f"Controller: unit must name at least one kind, each once (got {unit!r})")
    return tuple((1, 1) if each == "weight" else each if isinstance(each, str) else tuple(each) for each in given)


def _is_block(each: Any) -> bool:
    return isinstance(each, tuple | list) and len(each) == 2 and all(type(size) is int and size > 0 for size in each)


def check(model: nn.Module, budget: Budget, settings: Settings, has_example: bool) -> None:
    """Raises as `resgrow.Controller`."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise ValueError(
            "Controller: DistributedDataParallel is not supported: ranks would choose different units; "
            "train in one process"
        )
    if not isinstance(budget, Budget):
        raise TypeError(f"Controller: budget must be a resgrow.Budget (got {type(budget).__name__})")
    counts = {"deadline": settings.deadline, "every": settings.every, "samples": settings.samples}
    for name, value in counts.items():
        if value is not None and (isinstance(value, bool) or value < 1):
            raise ValueError(f"Controller: {name} must be at least 1 (got {value})")
    for name, value in {"confirm": settings.confirm, "cooldown": settings.cooldown}.items():
        if value < 0:
            raise ValueError(f"Controller: {name} must not be negative (got {value})")
    if not 0 < settings.share <= 1:
        raise ValueError(f"Controller: share must be in (0, 1] (got {settings.share})")
    if not settings.hysteresis >= 1:
        raise ValueError(f"Controller: hysteresis must be at least 1 (got {settings.hysteresis})")
    if settings.init not in INITS:
        raise ValueError(f"Controller: init must be one of {', '.join(INITS)} (got {settings.init!r})")
    for name in ("macs", "latency_ms"):
        if getattr(budget, name) is not None and not has_example:
            raise ValueError(
                f"Controller: a budget of {name} needs example_inputs (got none); pass one batch of inputs"
            )
