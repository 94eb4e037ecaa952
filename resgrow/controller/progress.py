"""Whether training still brings the loss where it should be, told from noisy looks. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

# Looks of which the mean is taken: one alone, just after a step of an optimizer, can be far off.
SMOOTH = 3
# While the loss falls by more than this part of it from one look to the next, training is the cheaper way to lower it.
SETTLED = 0.05
# So many looks more are worth waiting for when the loss would be at its limit by then.
HORIZON = 10


def level(losses: Sequence[float]) -> float:
    """The loss as it is, without most of its noise."""
    return fmean(losses[-SMOOTH:])


def fall(losses: Sequence[float]) -> float:
    """Part of the loss by which it falls from one look to the next: between the newer and the older half of the
    looks, of at most twice ``SMOOTH``; 0 of one look."""
    recent = losses[-2 * SMOOTH :]
    half = len(recent) // 2
    if half == 0:
        return 0.0
    older, newer = fmean(recent[:-half]), fmean(recent[-half:])
    return (older - newer) / (abs(older) * (len(recent) / 2)) if older else 0.0


def stalled(losses: Sequence[float], limit: float, horizon: int = HORIZON) -> bool:
    """Whether training alone no longer brings the loss down to ``limit`` within ``horizon`` looks more. One look tells
    nothing."""
    now = level(losses)
    if len(losses) < 2 or now <= limit:
        return False
    needed = (now - limit) / (abs(now) * horizon) if now else 0.0
    return fall(losses) <= min(SETTLED, needed)
