"""Hutchinson's estimate: unbiased, reproducible, and quieter with the exact GGN as control variate."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resgrow import curvature

X = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 1, 0, 2])
BATCHES = [(X[:4], Y[:4]), (X[4:], Y[4:])]


def network(activation: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), activation, nn.Linear(5, 3)).double()


def flat(h: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in h.values()])


def draws(model: nn.Module, count: int, **options: bool) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    runs = (
        curvature(model, F.cross_entropy, BATCHES, "hutchinson", generator=generator, **options) for _ in range(count)
    )
    return torch.stack([flat(run) for run in runs])


@pytest.mark.parametrize("control_variate", [False, True])
def test_the_estimate_is_unbiased(control_variate):
    model = network(nn.GELU())
    exact = flat(curvature(model, F.cross_entropy, BATCHES, "hessian"))
    estimates = draws(model, 150, control_variate=control_variate)
    error = (estimates.mean(0) - exact).abs()
    deviation = estimates.std(0) / len(estimates) ** 0.5
    assert (error <= 4.5 * deviation + 1e-12).all()
    assert (deviation > 0).any()


def test_samples_average():
    model = network(nn.GELU())
    exact = flat(curvature(model, F.cross_entropy, BATCHES, "hessian"))
    few, many = (
        flat(curvature(model, F.cross_entropy, BATCHES, "hutchinson", samples=samples)) for samples in (2, 400)
    )
    assert (many - exact).norm() < 0.2 * (few - exact).norm()


def test_the_control_variate_takes_most_noise_away():
    model = network(nn.GELU())
    plain, controlled = (draws(model, 60, control_variate=flag).var(0).sum() for flag in (False, True))
    assert controlled < 0.4 * plain


@pytest.mark.parametrize("loss_fn", [nn.CrossEntropyLoss(label_smoothing=0.1), nn.MSELoss(), nn.SmoothL1Loss()])
def test_without_a_residual_the_control_variate_is_exact(loss_fn):
    model = network(nn.ReLU())
    target = Y if isinstance(loss_fn, nn.CrossEntropyLoss) else X[:, :3].contiguous()
    exact = curvature(model, loss_fn, (X, target), "ggn")
    found = curvature(model, loss_fn, (X, target), "hutchinson", control_variate=True)
    plain = curvature(model, loss_fn, (X, target), "hutchinson")
    for name, value in exact.items():
        torch.testing.assert_close(found[name], value, rtol=1e-11, atol=1e-14)
        assert (plain[name] - value).norm() > 1e-3 * value.norm()


def test_a_parameter_without_influence_has_none():
    model = network(nn.GELU())
    model.register_parameter("unused", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    plain = curvature(model, F.cross_entropy, BATCHES, "hutchinson")
    assert torch.equal(plain["unused"], torch.zeros(2, dtype=torch.float64))
    assert all(plain[name].any() for name in plain if name != "unused")
