"""What goes along when a layer gets more units: masks, whose spare units are woken first, and averaged copies."""

from __future__ import annotations

import copy

import pytest
import torch
from structure_nets import assert_alike, everything
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from resgrow.nn import resnet
from resgrow.surgery import Masks, compact, prune, widen

X = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(4)


def trained(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = resnet(8).double()
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.2, 1.0)
    return model


def half_pruned(model: nn.Module) -> Masks:
    scores = {name: parameter.detach().abs() for name, parameter in model.named_parameters()}
    return prune(model, scores, sparsity=0.5, block="channel", scope="layer")


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(model.train()(X), LABELS).backward()
    optimizer.step()
    model.eval()


def everybody(model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module, masks: Masks) -> list[object]:
    return [*everything(model, optimizer), *everything(average), *masks.state_dict().items()]


def absent(masks: Masks) -> Tensor:
    """Which channels of the first block's middle are masked."""
    return ~masks["layer1.0.conv1.weight"].flatten(1).any(1)


@pytest.mark.parametrize("init", ["random", "net2wider", "tiny", "gradmax"])
def test_spare_units_are_woken_first_to_the_bit(init: str) -> None:
    model = trained()
    masks = half_pruned(model)
    optimizer = torch.optim.Adam(model.parameters())
    masks.attach(optimizer)
    step(model, optimizer)
    were_absent = absent(masks)
    spare = int(were_absent.sum())
    assert spare >= 4
    shapes = {name: p.shape for name, p in model.named_parameters()}
    expected, others = model(X), {name: mask for name, mask in masks.state_dict().items() if "layer1.0" not in name}
    options = {"loss_fn": nn.functional.cross_entropy, "data": [(X, LABELS)]} if init in ("tiny", "gradmax") else {}
    widen(model, "layer1.0.conv1", 3, example_inputs=X, optimizer=optimizer, masks=masks, init=init, **options)
    if init != "net2wider":  # which splits what reads a unit and its copies
        assert torch.equal(model(X), expected)
    torch.testing.assert_close(model(X), expected, rtol=1e-12, atol=0)
    assert {name: p.shape for name, p in model.named_parameters()} == shapes
    assert int(absent(masks).sum()) == spare - 3
    assert all(torch.equal(masks[name], mask) for name, mask in others.items())
    for state in optimizer.state.values():
        assert state["exp_avg"].shape == state["exp_avg_sq"].shape
    # They are live: within two steps all that is new has moved, and what is still masked has not.
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(2):
        step(model, optimizer)
    after = dict(model.named_parameters())
    for name, mask in masks.items():
        assert not after[name][~mask].any()
    moved = (after["layer1.0.conv2.weight"] != before["layer1.0.conv2.weight"]).flatten(2).any(2)
    if init != "net2wider":  # copies learn where their originals do
        assert moved[:, were_absent & ~absent(masks)].any(0).all()


def test_what_spare_units_do_not_give_is_added() -> None:
    model = trained()
    masks = half_pruned(model)
    average = AveragedModel(model).eval()
    step(average.module, torch.optim.SGD(average.module.parameters(), lr=0.1))
    masks.apply()
    for name, mask in masks.items():
        average.module.get_parameter(name).data.mul_(mask)
    spare = int(absent(masks).sum())
    expected, averaged = model.eval()(X), average.eval()(X)
    widen(model, "layer1.0.conv1", spare + 5, example_inputs=X, masks=masks, followers=average)
    torch.testing.assert_close(model(X), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(average(X), averaged, rtol=1e-12, atol=0)
    assert not absent(masks).any()
    assert model.layer1[0].conv1.weight.shape[0] == average.module.layer1[0].conv1.weight.shape[0] == 21
    assert {name: mask.shape for name, mask in masks.items()} == {
        name: model.get_parameter(name).shape for name in masks
    }
    # New units are the same ones in both.
    assert torch.equal(model.layer1[0].conv1.weight[16:], average.module.layer1[0].conv1.weight[16:])


def test_there_and_back() -> None:
    model = trained().eval()
    masks = Masks(model, {"layer2.0.conv1.weight": torch.rand(32, 16, 3, 3) < 0.7})
    masks.apply()
    average = AveragedModel(model)
    optimizer = torch.optim.AdamW(model.parameters())
    step(model, optimizer)
    masks.attach(optimizer)
    before = copy.deepcopy(everybody(model, optimizer, average, masks))
    widen(model, "layer2.0.conv1", 4, example_inputs=X, optimizer=optimizer, masks=[masks], followers=[average])
    assert masks["layer2.0.conv1.weight"].shape == (36, 16, 3, 3)
    assert masks["layer2.0.conv1.weight"][32:].all()
    compact(model, X, inplace=True, optimizer=optimizer, masks=masks, followers=average)
    assert_alike(everybody(model, optimizer, average, masks), before)


def test_what_fails_brings_everything_back() -> None:
    model = trained()
    masks = half_pruned(model)
    average = AveragedModel(model)
    optimizer = torch.optim.Adam(model.parameters())
    masks.attach(optimizer)
    step(model, optimizer)
    before = copy.deepcopy(everybody(model, optimizer, average, masks))

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) + self.net.layer1[0].conv1.weight.shape[0]

    with pytest.raises(RuntimeError, match="outputs must stay"):
        widen(Counting(), "net.layer1.0.conv1", 20, example_inputs=X, optimizer=optimizer)
    outer = Masks(Counting(), {f"net.{name}": mask for name, mask in masks.items()})
    held = outer.state_dict()
    with pytest.raises(RuntimeError, match="outputs must stay"):
        widen(outer.model, "net.layer1.0.conv1", 13, example_inputs=X, optimizer=optimizer, masks=outer)
    assert_alike(everybody(model, optimizer, average, masks), before)
    assert all(torch.equal(outer[name], mask) for name, mask in held.items())


def test_refusals() -> None:
    model = trained()
    for options, message in (
        ({"followers": trained().layer1}, "followers must have"),
        ({"followers": model}, "must be another model"),
        ({"masks": Masks(trained(), {})}, "those of the model"),
    ):
        with pytest.raises(ValueError, match=message):
            widen(model, "layer1.0.conv1", 1, example_inputs=X, **options)
