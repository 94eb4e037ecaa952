"""factorise: best approximations, exact at full rank, with the predicted loss in pruning's currency."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import resgrow
from resgrow.surgery.factorise import factorise

CONVS = {
    "3x3": nn.Conv2d(5, 7, 3, padding=1),
    "strided": nn.Conv2d(5, 7, (3, 2), stride=(2, 3), padding=(1, 2), bias=False),
    "dilated": nn.Conv2d(5, 7, (2, 3), dilation=(3, 2)),
    "1x1": nn.Conv2d(5, 7, 1),
}


@pytest.mark.parametrize("kind", ["svd", "separable"])
@pytest.mark.parametrize("name", CONVS)
def test_full_rank_is_exact(name: str, kind: str) -> None:
    model = nn.Sequential(copy.deepcopy(CONVS[name])).double()
    outputs, inputs, height, width = model[0].weight.shape
    full = min(outputs, inputs * height * width) if kind == "svd" else min(inputs * height, outputs * width)
    found = factorise(model, {"0": full}, kind=kind)
    x = torch.randn(2, 5, 11, 12, dtype=torch.float64)
    torch.testing.assert_close(found.model(x), model(x), rtol=1e-11, atol=1e-11)
    (row,) = found
    assert row.error < 1e-12
    assert row.after == sum(p.numel() for p in found.model.parameters())


def test_linear_at_full_rank_and_below() -> None:
    model = nn.Sequential(nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 4, bias=False)).double().eval()
    x = torch.randn(3, 9, dtype=torch.float64)
    torch.testing.assert_close(factorise(model, {"0": 6, "2": 4}).model(x), model(x))
    found = factorise(model, {"0": 2})
    values = torch.linalg.svdvals(model[0].weight.detach())
    (row,) = found
    assert row.error == pytest.approx(float(values[2:].norm() / values.norm()))
    assert (row.before, row.after) == (60, 2 * 9 + 6 * 2 + 6)
    assert not found.model[0].training
    product = found.model[0][1].weight @ found.model[0][0].weight
    assert torch.linalg.matrix_rank(product) == 2
    assert "rank 2, 60 -> 36 parameters" in str(found)


@pytest.mark.parametrize("kind", ["svd", "separable"])
def test_no_factors_of_that_rank_are_nearer(kind: str) -> None:
    conv = nn.Conv2d(4, 6, 3, bias=False).double()
    (row,) = found = factorise(nn.Sequential(conv), {"0": 2}, kind=kind)
    pair = copy.deepcopy(found.model[0])
    x = torch.eye(4 * 5 * 5, dtype=torch.float64).view(-1, 4, 5, 5)  # outputs on these are all there is to the map
    target = conv(x).detach()
    optimizer = torch.optim.Adam(pair.parameters(), 1e-3)
    least = float((pair(x) - target).detach().norm())
    for _ in range(200):
        optimizer.zero_grad()
        loss = (pair(x) - target).square().sum()
        loss.backward()
        optimizer.step()
        assert float(loss.detach().sqrt()) >= least * (1 - 1e-9)
    assert row.error == pytest.approx(least / float(target.norm()))


def test_prediction_is_the_quadratic_form_of_the_change() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    x, y = torch.randn(64, 6, dtype=torch.float64), torch.randint(3, (64,))
    h = resgrow.curvature(model, nn.CrossEntropyLoss(), (x, y), method="ggn")
    found = factorise(model, {"0": 5, "2": 2}, curvature=h, damping=0.01)
    for name, row in zip(("0", "2"), found, strict=True):
        pair = found.model.get_submodule(name)
        change = model.get_submodule(name).weight - pair[1].weight @ pair[0].weight
        expected = 0.5 * ((h[f"{name}.weight"] + 0.01) * change.square()).sum().item()
        assert row.predicted == pytest.approx(expected)
    assert found.predicted == pytest.approx(sum(row.predicted for row in found))
    assert factorise(model, {"0": 3}).predicted is None


def test_the_model_is_left_alone_and_the_copy_learns() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 9, 2))
    model[2].requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    found = factorise(model, {"0": 4, "2": 1}).model
    found(torch.randn(2, 3, 5, 5)).sum().backward()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is not None and p.grad.any() for p in found[0].parameters())
    assert not any(p.requires_grad for p in found[2].parameters())


@pytest.mark.parametrize(
    ("ranks", "options", "message"),
    [
        ({"9": 1}, {}, "must name Linear and Conv2d"),
        ({"1": 1}, {}, "must name Linear and Conv2d"),
        ({"0": 0}, {}, "between 1 and 8"),
        ({"0": 9}, {}, "between 1 and 8"),
        ({"3": 1}, {"kind": "separable"}, "only convolutions"),
        ({"4": 1}, {}, "one group"),
        ({"0": 1}, {"kind": "qr"}, "kind must be"),
        ({"0": 1}, {"curvature": {}}, "curvature must have 0.weight"),
    ],
)
def test_refuses_what_cannot_work(ranks: dict[str, int], options: dict, message: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2), nn.Conv2d(4, 4, 1, groups=2))
    with pytest.raises(ValueError, match=message):
        factorise(model, ranks, **options)
