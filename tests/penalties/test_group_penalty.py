"""Group penalties: values, proximal steps against their definition, and exact zeros in training."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from resgrow import GroupPenalty

OVER = ["output", "input", "column", (2, 1), (4, 3), (16, 16)]


def members(weight: Tensor, over: object) -> Tensor:
    """The number of each weight's group, by definition."""
    number = torch.empty(weight.shape, dtype=torch.long)
    names: dict[object, int] = {}
    for place in torch.cartesian_prod(*(torch.arange(n) for n in weight.shape)).tolist():
        o, i, *tap = place
        key = {"output": o, "input": i, "column": (i, *tap)}.get(over) if isinstance(over, str) else None
        key = (o // over[0], i // over[1], *tap) if key is None and not isinstance(over, str) else key
        number[tuple(place)] = names.setdefault(key, len(names))
    return number


def full_size(weight: Tensor, over: object) -> int:
    taps = math.prod(weight.shape[2:])
    if isinstance(over, str):
        return {"output": weight.shape[1] * taps, "input": weight.shape[0] * taps, "column": weight.shape[0]}[over]
    return over[0] * over[1]


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("over", OVER, ids=str)
@pytest.mark.parametrize("layer", [nn.Conv2d(5, 6, 3), nn.Linear(5, 6), nn.Conv1d(4, 7, 2)], ids=["2d", "fc", "1d"])
def test_value_is_the_sum_over_groups(layer: nn.Module, over: object, norm: str) -> None:
    weight = layer.weight.detach()
    number = members(weight, over)
    parts = [weight[number == g] for g in range(int(number.max()) + 1)]
    sizes = [part.norm() if norm == "l2" else part.abs().max() for part in parts]
    expected = 0.3 * math.sqrt(full_size(weight, over)) * torch.stack(sizes).sum()
    penalty = GroupPenalty(layer, 0.3, norm=norm, over=over)
    torch.testing.assert_close(penalty.value(), expected)
    assert penalty.left() == {"": len(parts)}


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("over", OVER, ids=str)
def test_proximal_step_minimises_its_definition(over: object, norm: str) -> None:
    layer = nn.Conv2d(5, 6, (2, 1)).double()
    before = layer.weight.detach().clone()
    penalty = GroupPenalty(layer, 0.05, norm=norm, over=over)

    def objective() -> float:
        return (0.5 * (layer.weight - before).square().sum() + 0.4 * penalty.value()).item()

    penalty.prox_(0.4)
    found, least = layer.weight.detach().clone(), objective()
    generator = torch.Generator().manual_seed(0)
    for scale in (1e-1, 1e-3, 1e-5):
        for _ in range(30):
            with torch.no_grad():
                layer.weight.copy_(found + scale * torch.randn(found.shape, generator=generator, dtype=torch.float64))
            assert objective() >= least - 1e-14
    with torch.no_grad():  # along the way back, too
        for share in (0.01, 0.1, 0.5):
            layer.weight.copy_(found + share * (before - found))
            assert objective() >= least - 1e-14


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_strong_steps_empty_groups_exactly_and_weak_ones_none(norm: str) -> None:
    layer = nn.Linear(8, 6)
    kept = layer.weight.detach().clone()
    penalty = GroupPenalty(layer, 0.1, norm=norm)
    penalty.prox_(0.0)
    torch.testing.assert_close(layer.weight.detach(), kept)
    penalty.prox_(1e-3)
    assert penalty.left() == {"": 6}
    penalty.prox_(1e3)
    assert penalty.left() == {"": 0}
    assert not layer.weight.any()
    penalty.prox_(1.0)  # zero groups stay zero, and finite
    assert not layer.weight.any()
    penalty.value().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.isfinite().all()


def test_training_empties_what_is_not_needed() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 8, generator=generator)
    y = x[:, :1] - 2 * x[:, 3:4]
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    penalty = GroupPenalty(model, 3e-3, over="input")
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    handle = penalty.attach(optimizer)
    for _ in range(1500):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    columns = model[0].weight.abs().sum(0)
    assert columns[[0, 3]].min() > 0.5
    assert not columns[[1, 2, 4, 5, 6, 7]].any()
    assert penalty.left()["2"] < 16
    handle.remove()
    before = model[0].weight.detach().clone()
    model[0].weight.grad = None
    optimizer.step()
    assert torch.equal(model[0].weight, before)


def test_refuses_what_cannot_work() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    for options, message in [
        ({"norm": "l1"}, "norm must be"),
        ({"over": "row"}, "over must be"),
        ({"over": (0, 1)}, "over must be"),
        ({"exclude": ["1"]}, "exclude must name layers"),
        ({"exclude": ["0"]}, "none left"),
    ]:
        with pytest.raises(ValueError, match=message):
            GroupPenalty(model, 0.1, **options)
    with pytest.raises(ValueError, match="strength"):
        GroupPenalty(model, -1.0)
