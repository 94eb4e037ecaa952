"""Means of losses with and without parts, in closed form and by chance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from resgrow.depth.survival import Survival


def run(effects: Tensor, steps: int, trend: float = 0.0, memory: int = 10**9, rate: float = 0.3) -> Survival:
    """Losses that rise by an effect where a part is dropped."""
    generator = torch.Generator().manual_seed(0)
    found = Survival(len(effects), memory)
    for step in range(steps):
        kept = torch.rand(len(effects), 1, generator=generator) >= rate
        noise = 0.1 * torch.randn(1, generator=generator, dtype=torch.float64)
        loss = trend * step + (~kept[:, 0]).double() @ effects + noise
        found.add(loss, kept, torch.ones(len(effects), dtype=torch.bool))
    return found


def test_means_variances_and_counts_are_those_of_the_deviations() -> None:
    losses = torch.tensor([2.0, 3.0, 1.0, 4.0, 2.5, 6.0, 5.0], dtype=torch.float64)
    kept = torch.tensor([True, True, False, True, False, False, True])
    found, level, deviations = Survival(1, 10**15), 2.0, []
    for loss, keep in zip(losses, kept, strict=True):
        found.add(loss.view(1), keep.view(1, 1), torch.ones(1, dtype=torch.bool))
        deviations.append(float(loss) - level)
        level += deviations[-1] / 20
    deviation = torch.tensor(deviations[1:], dtype=torch.float64)  # the first only sets the level
    with_it, without = deviation[kept[1:]], deviation[~kept[1:]]
    (difference,), (error,) = found.differences()
    assert found.counts.tolist() == [[3], [3]]
    assert float(difference) == pytest.approx(float(without.mean() - with_it.mean()))
    assert float(error) == pytest.approx(float((with_it.var() / 3 + without.var() / 3).sqrt()))
    means = found.means()[:, 0]
    assert float(means[1] - means[0]) == pytest.approx(float(difference))
    assert float(means.mean()) == pytest.approx(float(losses[1:].mean()))


def test_a_difference_is_found_within_its_error_whatever_the_trend() -> None:
    effects = torch.tensor([0.0, 0.2, 1.0], dtype=torch.float64)
    for trend in (0.0, -0.01):
        difference, error = run(effects, 2000, trend).differences()
        assert ((difference - effects).abs() < 4 * error).all()
        assert (error < 0.05).all()


def test_what_is_long_ago_is_forgotten() -> None:
    generator = torch.Generator().manual_seed(1)
    found = Survival(1, 100)
    for step in range(3000):
        kept = torch.rand(1, 1, generator=generator) >= 0.5
        effect = 1.0 if step < 2000 else 0.0
        loss = torch.tensor([0.0 if kept else effect], dtype=torch.float64)
        found.add(loss, kept, torch.ones(1, dtype=torch.bool))
    difference, error = found.differences()
    assert abs(float(difference)) < 4 * float(error) + 1e-3
    assert int(found.counts.sum()) == 2999


def test_nothing_is_said_of_what_has_hardly_been_seen() -> None:
    found = Survival(2, 10)
    every = torch.ones(2, dtype=torch.bool)
    for kept in ([True, True], [True, True], [True, False], [True, True]):
        found.add(torch.ones(1, dtype=torch.float64), torch.tensor(kept)[:, None], every)
    difference, error = found.differences()
    assert difference.isnan().all()
    assert error.isinf().all()


def test_parts_that_were_not_decided_on_do_not_count() -> None:
    found = Survival(2, 10)
    for _ in range(5):
        found.add(torch.ones(1, dtype=torch.float64), torch.ones(2, 1, dtype=torch.bool), torch.tensor([True, False]))
    assert found.counts.tolist() == [[4, 0], [0, 0]]


def test_statistics_follow_their_parts() -> None:
    found = run(torch.tensor([0.0, 1.0], dtype=torch.float64), 50)
    taken = found.taken([1, None])
    assert taken.counts[:, 0].tolist() == found.counts[:, 1].tolist()
    assert taken.counts[:, 1].tolist() == [0, 0]
    assert float(taken.differences()[0][0]) == float(found.differences()[0][1])
