"""Whether training gets there by itself, told from looks at the loss."""

from __future__ import annotations

import pytest

from resgrow.controller.progress import HORIZON, SETTLED, fall, level, stalled


def test_one_look_tells_nothing():
    assert fall([1.0]) == 0.0
    assert not stalled([1.0], limit=0.1)


def test_level_is_the_mean_of_the_newest_looks():
    assert level([100.0, 1.0, 2.0, 6.0]) == 3.0
    assert level([4.0]) == 4.0


@pytest.mark.parametrize("looks", [2, 3, 4, 5, 6, 12])
def test_fall_is_that_from_one_look_to_the_next(looks):
    line = [100.0 - i for i in range(looks)]
    assert fall(line) == pytest.approx(0.01, rel=0.15)
    assert fall(line[::-1]) < 0
    assert fall([0.0] * looks) == 0.0


def test_far_from_the_limit_a_slow_fall_is_a_stall_and_near_to_it_a_slower_one():
    def falling(rate: float, end: float) -> list[float]:
        return [end / (1 - rate) ** i for i in reversed(range(6))]

    assert stalled(falling(0.9 * SETTLED, end=1.0), limit=0.01)
    assert not stalled(falling(1.3 * SETTLED, end=1.0), limit=0.01)
    # A tenth above the limit: a hundredth per look is enough to be there within the horizon.
    assert not stalled(falling(0.1 / HORIZON * 1.3, end=1.0), limit=0.9)
    assert stalled(falling(0.1 / HORIZON * 0.5, end=1.0), limit=0.9)
    assert not stalled(falling(0.1 / HORIZON * 0.5, end=1.0), limit=0.9, horizon=4 * HORIZON)


def test_a_loss_within_its_limit_is_never_a_stall_though_one_look_lies_above():
    assert not stalled([1.0, 0.8, 0.8, 1.2], limit=1.0)
    assert stalled([0.8, 1.0, 1.2, 0.9], limit=1.0)
