"""Criteria: their equations, the choice of damping, and what they refuse."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resgrow import curvature, prune, saliency
from resgrow.curvature.damping import mean_curvature
from resgrow.ops import reference
from resgrow.saliency import path as path_module


@pytest.fixture
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """A small network that has fitted a task which leaves many of its weights unused."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 12, generator=generator)
    y = (x[:, 0] + x[:, 1] > 0).long() + (x[:, 2] > 1).long()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 3))
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, x, y


def test_obd_is_half_damped_curvature_times_weight_squared(trained):
    model, x, y = trained
    h = curvature(model, F.cross_entropy, (x, y), "ggn")
    scores = saliency(model, F.cross_entropy, (x, y), curvature="ggn", damping=0.5)
    d = 0.5 * torch.cat([h["0.weight"].flatten(), h["2.weight"].flatten()]).mean()
    assert scores.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(scores[name], 0.5 * (h[name] + d) * parameter.detach() ** 2)
    assert (scores.method, scores.damping, scores.stages) == ("obd", 0.5, [])


def test_undamped_obd_is_exact_where_the_loss_is_quadratic():
    """At the optimum of least squares, deleting one weight costs exactly its undamped OBD score."""
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(50, n, generator=generator, dtype=torch.float64) for n in (6, 2))
    model = nn.Linear(6, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(x, y).solution.T)
    scores = saliency(model, nn.MSELoss(), (x, y), curvature="ggn", damping=0.0)["weight"]
    base = F.mse_loss(model(x), y).item()
    for k in range(12):
        weight = model.weight.detach().clone()
        weight.view(-1)[k] = 0
        assert F.mse_loss(x @ weight.T, y).item() - base == pytest.approx(scores.flatten()[k].item(), rel=1e-9)


def test_power_draws_curvature_to_its_mean_geometrically(trained):
    model, x, y = trained
    h = curvature(model, F.cross_entropy, (x, y), "ggn")
    scores = saliency(model, F.cross_entropy, (x, y), curvature="ggn", damping=0.5, power=0.25)
    mean = mean_curvature(h)
    wanted = 0.5 * (h["0.weight"] + 0.5 * mean) ** 0.25 * mean**0.75 * model[0].weight.detach() ** 2
    torch.testing.assert_close(scores["0.weight"], wanted)


def test_infinite_damping_orders_like_magnitude(trained):
    model, x, y = trained
    damped = saliency(model, F.cross_entropy, (x, y), damping=1e9)["0.weight"].flatten()
    magnitude = saliency(model, method="magnitude")["0.weight"].flatten()
    assert torch.equal(damped.argsort(), magnitude.argsort())
    assert torch.equal(magnitude, model[0].weight.detach().abs().flatten())


def pruned_at(model: nn.Module, scores: dict[str, Tensor], sparsity: float) -> nn.Module:
    """A copy without the lowest-scoring weights of all layers together."""
    names = [name for name in scores if scores[name].dim() == 2]
    total = sum(scores[name].numel() for name in names)
    keep = reference.select_mask([scores[name] for name in names], total - round((1 - sparsity) * total))
    pruned = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in zip(names, keep, strict=True):
            pruned.get_parameter(name).mul_(mask)
    return pruned


def test_automatic_damping_measures_and_takes_the_least_harmful(trained):
    model, x, y = trained
    scores = saliency(model, F.cross_entropy, [(x[:200], y[:200]), (x[200:], y[200:])])
    assert scores.stages[0].sparsity == pytest.approx(0.25)
    assert scores.stages[-1].sparsity > 0.97
    for stage in scores.stages:
        assert len(stage.losses) >= 4
        assert stage.losses[stage.damping, stage.power] == min(stage.losses.values())
    with torch.no_grad():
        for stage in scores.stages[:8]:
            loss = F.cross_entropy(pruned_at(model, scores, stage.sparsity)(x), y).item()
            assert loss == pytest.approx(stage.losses[stage.damping, stage.power], rel=1e-4)


def test_automatic_damping_beats_magnitude_and_single_shot_scores(trained):
    model, x, y = trained
    auto = saliency(model, F.cross_entropy, (x, y))
    rivals = [saliency(model, method="magnitude"), saliency(model, F.cross_entropy, (x, y), damping=0.0)]
    with torch.no_grad():

        def loss(scores: dict[str, Tensor]) -> float:
            return F.cross_entropy(pruned_at(model, scores, 0.8)(x), y).item()

        assert loss(auto) < min(loss(scores) for scores in rivals)


def test_scores_of_a_path_sum_to_about_the_loss_they_cost(trained):
    model, x, y = trained
    scores = saliency(model, F.cross_entropy, (x, y), curvature="ggn")
    with torch.no_grad():
        base = F.cross_entropy(model(x), y).item()
        cost = F.cross_entropy(pruned_at(model, scores, 0.9)(x), y).item() - base
    ranked = torch.cat([scores[name].flatten() for name in ("0.weight", "2.weight")]).sort().values
    predicted = ranked[: round(0.9 * len(ranked))].sum().item()
    assert 0.2 < predicted / cost < 5


def test_one_shot_iterators_are_read_once(trained):
    model, x, y = trained
    batches = [(x[:200], y[:200]), (x[200:], y[200:])]
    once = saliency(model, F.cross_entropy, iter(batches))
    again = saliency(model, F.cross_entropy, batches)
    assert all(torch.equal(once[name], again[name]) for name in again)


def test_nothing_is_mutated(trained):
    model, x, y = trained
    model.train()
    before = copy.deepcopy(model.state_dict())
    saliency(model, F.cross_entropy, (x, y))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


def test_automatic_damping_goes_on_where_earlier_pruning_ended(trained):
    model, x, y = trained
    prune(model, saliency(model, method="magnitude"), sparsity=0.6)
    scores = saliency(model, F.cross_entropy, (x, y))
    gone = {name: p == 0 for name, p in model.named_parameters() if p.dim() >= 2}
    assert scores.stages[0].sparsity == pytest.approx(0.7, abs=0.01)  # a quarter of what was left
    for name, zero in gone.items():
        assert not scores[name][zero].any()
    again = {name: scores[name] for name in scores}
    prune(model, again, sparsity=0.7)
    assert all((model.get_parameter(name)[zero] == 0).all() for name, zero in gone.items())
    for stage in scores.stages:
        assert len(set(stage.losses.values())) > 1, "a stage that deletes nothing cannot choose"


def test_damping_is_of_all_weights_together():
    h = {"a.weight": torch.full((2, 3), 2.0), "b.weight": torch.full((1, 2), 6.0), "b.bias": torch.full((2,), 1e6)}
    assert mean_curvature(h) == pytest.approx((6 * 2.0 + 2 * 6.0) / 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "obx"}, "method must be one of obd, magnitude.*obx"),
        ({"damping": -1.0}, "damping must be 'auto' or a number"),
        ({"damping": "automatic"}, "damping must be 'auto' or a number"),
        ({"damping": True}, "damping must be 'auto' or a number"),
        ({"damping": float("nan")}, "damping must be 'auto' or a number"),
        ({"power": 0.0}, "power must be in"),
        ({"curvature": "hess"}, "method must be one of"),
        ({"data": None}, "needs data"),
        ({"data": []}, "no batches"),
    ],
)
def test_bad_arguments(trained, options, message):
    model, x, y = trained
    arguments = {"loss_fn": F.cross_entropy, "data": (x, y)} | options
    with pytest.raises(ValueError, match=message):
        saliency(model, **arguments)


def test_weights_that_are_not_finite_are_named(trained):
    model, _, _ = trained
    with torch.no_grad():
        model[2].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"'2\.weight' are not finite"):
        saliency(model, method="magnitude")


def test_an_infinite_loss_on_the_path_is_a_loss_like_any_other(trained, monkeypatch):
    model, x, y = trained
    monkeypatch.setattr(path_module, "mean_loss", lambda *args, **kwargs: float("inf"))
    assert set(saliency(model, F.cross_entropy, (x, y)).stages[0].losses.values()) == {float("inf")}
