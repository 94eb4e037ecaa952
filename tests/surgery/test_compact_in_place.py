"""compact on a live model: parameters, optimizers and schedulers go on, and what fails leaves all as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from structure_nets import MODELS, X, made, random_units
from torch import Tensor, nn
from torch.nn import functional as F

from resgrow.surgery import compact, count_params
from resgrow.surgery.structure import mask, structure


def emptied(name: str) -> nn.Module:
    model = made(name)
    groups = structure(model, (X,), "test").groups
    mask(model, groups, random_units(groups, 3, 0.4))
    return model


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad()
    loss = model(X).square().mean()
    loss.backward()
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize("name", MODELS)
def test_the_same_as_the_copy_with_the_same_objects(name: str) -> None:
    model = emptied(name)
    small = compact(model, X)
    held = {key: id(parameter) for key, parameter in model.named_parameters()}
    assert compact(model, X, inplace=True) is model
    assert {key: id(parameter) for key, parameter in model.named_parameters() if key in held} == held
    for (key, got), (other, want) in zip(model.state_dict().items(), small.state_dict().items(), strict=True):
        assert key == other
        assert torch.equal(got, want)


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adagrad])
def test_every_parameter_is_in_the_optimizer_once_with_state_of_its_shape(make: type[torch.optim.Optimizer]) -> None:
    options = {"momentum": 0.9} if make in (torch.optim.SGD, torch.optim.RMSprop) else {}
    model = nn.Sequential(
        nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, 2)
    ).double()
    groups = [
        {"params": model[0].parameters()},
        {"params": [*model[2].parameters(), *model[4].parameters()], "lr": 0.1},
    ]
    optimizer = make(groups, lr=0.05, **options)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    x, y = torch.randn(8, 4).double(), torch.arange(8) % 2

    def train() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        scheduler.step()

    train()
    with torch.no_grad():
        model[0].weight[[1, 4]] = 0  # sigmoids of biases: constants for a layer without a bias
    expected = model(x).detach()
    compact(model, x, inplace=True, optimizer=optimizer)
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    assert model[0].out_features == 4
    assert model[2].bias is not None
    inside = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(inside) == sorted(id(parameter) for parameter in model.parameters())
    assert any(model[2].bias is held for held in optimizer.param_groups[1]["params"])
    for parameter, state in optimizer.state.items():
        for entry in state.values():
            assert not isinstance(entry, Tensor) or entry.dim() == 0 or entry.shape == parameter.shape
    before = [parameter.clone() for parameter in model.parameters()]
    train()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05 / 4)
    assert not any(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("name", ["residual", "transformer", "grouped"])
def test_training_goes_on_as_that_of_the_masked_model(name: str) -> None:
    model = made(name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(2):
        step(model, optimizer)
    groups = structure(model, (X,), "test").groups
    gone = random_units(groups, 7, 0.4)
    masked = copy.deepcopy(model)
    twin = torch.optim.AdamW(masked.parameters(), lr=1e-2)
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    mask(model, groups, gone)
    compact(model, X, inplace=True, optimizer=optimizer)
    assert count_params(model) < count_params(masked)
    for _ in range(10):
        mask(masked, groups, gone)
        expected = step(masked, twin)
        assert step(model, optimizer) == pytest.approx(expected, rel=1e-9)


def test_what_fails_leaves_model_and_optimizer_as_they_were() -> None:
    model = emptied("residual")
    model.inner.register_forward_hook(lambda layer, inputs, output: output * layer.out_channels)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    optimizer.zero_grad()
    model(X).sum().backward()
    grads = [parameter.grad.clone() for parameter in model.parameters()]
    before, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    with pytest.raises(RuntimeError, match="hooks"):
        compact(model, X, inplace=True, optimizer=optimizer)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(torch.equal(grad, p.grad) for grad, p in zip(grads, model.parameters(), strict=True))
    assert optimizer.state_dict()["param_groups"] == state["param_groups"]
    assert model.inner.out_channels == 6


def test_a_bias_that_was_added_goes_again_where_the_rest_fails() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 5, bias=False)).double()
    with torch.no_grad():
        model[0].weight[1] = 0
    model[1].register_forward_hook(lambda layer, inputs, output: output / output.shape[1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(RuntimeError, match="outputs must agree"):
        compact(model, torch.randn(3, 4).double(), inplace=True, optimizer=optimizer)
    assert model[2].bias is None
    assert len(optimizer.param_groups[0]["params"]) == 3


def test_refuses_what_cannot_work() -> None:
    model = made("residual")
    with pytest.raises(ValueError, match="inplace=True only"):
        compact(model, X, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="LBFGS"):
        compact(model, X, inplace=True, optimizer=torch.optim.LBFGS(model.parameters()))
    with pytest.raises(ValueError, match="holds none of them"):
        compact(model, X, inplace=True, optimizer=torch.optim.SGD(made("residual").parameters(), lr=0.1))
