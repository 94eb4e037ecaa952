"""What has grown and goes again leaves the same tensors, optimizer state and outputs, to the bit."""

from __future__ import annotations

import pytest
import torch
from structure_nets import assert_alike, everything
from torch import nn

from resgrow import compact, deepen, widen
from resgrow.nn import Residual, resnet

X = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=1e-3),
}


def trained(optimizer: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = resnet(14).double()
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.2, 1.0)
    made = OPTIMIZERS[optimizer](model.parameters())
    model(X).square().mean().backward()
    made.step()
    return model.eval(), made


def held(optimizer: torch.optim.Optimizer) -> list[int]:
    return [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_width_and_depth_there_and_back(optimizer: str) -> None:
    model, opt = trained(optimizer)
    before, members, expected = everything(model, opt), held(opt), model(X)
    widen(model, "layer1.0.conv1", 3, example_inputs=X, optimizer=opt)
    first = deepen(model, "layer2", example_inputs=X, optimizer=opt)
    second = deepen(model, "layer3.0", example_inputs=X, optimizer=opt)
    assert (first, second) == ("layer2.2", "layer3.0_1")
    assert len(held(opt)) == len(members) + 12
    assert set(held(opt)) == {id(parameter) for parameter in model.parameters()}
    compact(model, X, inplace=True, optimizer=opt)
    assert {first, second} <= dict(model.named_modules()).keys()  # zero gains are where blocks start
    for path in (first, second):
        nn.init.zeros_(model.get_submodule(path).conv2.weight)
    compact(model, X, inplace=True, optimizer=opt)
    assert held(opt) == members
    assert_alike(everything(model, opt), before)
    assert torch.equal(model(X), expected)


def test_blocks_that_have_learnt_stay() -> None:
    model, opt = trained("adam")
    path = deepen(model, "layer2", example_inputs=X, optimizer=opt)
    for _ in range(2):
        opt.zero_grad()
        model.train()(X).square().mean().backward()
        opt.step()
    expected = model.eval()(X)
    compact(model, X, inplace=True, optimizer=opt)
    assert path in dict(model.named_modules())
    torch.testing.assert_close(model(X), expected, rtol=1e-12, atol=0)


def test_residual_branches_of_plain_networks() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    x = torch.randn(3, 5, dtype=torch.float64)
    before, expected = dict(model.named_parameters()), model(x)
    path = deepen(model, "0", example_inputs=x, init="residual")
    assert isinstance(model.get_submodule(path), Residual)
    compact(model, x, inplace=True)
    assert isinstance(model.get_submodule(path), nn.Identity)
    assert {name: id(p) for name, p in model.named_parameters()} == {name: id(p) for name, p in before.items()}
    assert torch.equal(model(x), expected)
