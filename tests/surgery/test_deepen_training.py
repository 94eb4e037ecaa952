"""After deepen: optimizers, averaged copies, masks, storage and more surgery go on with the deeper model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from deepen_nets import VECTORS, X, made, one_to_one, run, step
from test_widen import OPTIMIZERS, check_state
from torch import nn
from torch.optim import SGD, AdamW

from resgrow import Masks, compact, deepen, load, save, widen
from resgrow.nn import lenet5, resnet
from resgrow.surgery import channel_groups


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("init", ["zero", "identity", "residual"])
def test_optimizers_go_on(kind: str, init: str) -> None:
    model = made(lambda: nn.Sequential(one_to_one(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)))
    optimizer = OPTIMIZERS[kind](model.parameters())
    for _ in range(2):
        step(model, VECTORS, optimizer)
    known = copy.deepcopy({id(p): state for p, state in optimizer.state.items()})
    path = deepen(model, "0" if init == "zero" else "1", example_inputs=VECTORS, optimizer=optimizer, init=init)
    check_state(model, optimizer)
    for p, state in optimizer.state.items():
        if id(p) in known:
            assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(state[k])) for k, v in known[id(p)].items())
    new = {name: p.detach().clone() for name, p in model.get_submodule(path).named_parameters()}
    for _ in range(3):
        step(model, VECTORS, optimizer)
    check_state(model, optimizer)
    assert not [name for name, p in model.get_submodule(path).named_parameters() if torch.equal(p, new[name])]


def test_new_parameters_join_the_groups_of_those_they_go_with() -> None:
    model = made(lambda: resnet(14, 0.5))
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    optimizer = AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=1e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    second = SGD(model.layer2.parameters(), lr=0.1)
    deepen(model, "layer2", example_inputs=X, optimizer=[optimizer, second])
    new = model.layer2[2]
    assert [len(group["params"]) for group in optimizer.param_groups] == [len(decayed) + 2, len(others) + 4]
    assert all(p.dim() > 1 for p in optimizer.param_groups[0]["params"])
    assert {id(p) for p in new.parameters()} < {id(p) for p in second.param_groups[0]["params"]}
    step(model, X, optimizer)
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [5e-4, 5e-4]
    assert optimizer.state[new.bn2.weight]["exp_avg"].any()


def test_followers_get_the_same_values_in_their_own_dtype() -> None:
    model = made(lambda: resnet(14, 0.5))
    averaged = torch.optim.swa_utils.AveragedModel(model)
    half = copy.deepcopy(model).float().requires_grad_(False)
    deepen(model, "layer2.0", example_inputs=X, followers=[averaged, half])
    assert all(torch.equal(a, b) for a, b in zip(averaged.module.parameters(), model.parameters(), strict=True))
    assert list(half.state_dict()) == list(model.state_dict())
    new = half.layer2.get_submodule("0_1")
    assert not any(p.requires_grad for p in new.parameters())
    assert new.bn1.running_var.dtype == new.conv1.weight.dtype == torch.float32
    assert torch.equal(new.conv1.weight.double(), model.layer2.get_submodule("0_1").conv1.weight.float().double())
    step(model, X, SGD(model.parameters(), lr=0.1))
    averaged.update_parameters(model)
    assert torch.isfinite(run(averaged.module, X)).all()


def test_masks_know_of_new_parameters_that_go_with_masked_ones() -> None:
    model = made(lambda: resnet(14, 0.5))
    masks = Masks(model, {"layer2.1.conv1.weight": torch.rand(model.layer2[1].conv1.weight.shape) < 0.5})
    optimizer = SGD(model.parameters(), lr=0.1)
    masks.attach(optimizer)
    deepen(model, "layer2", example_inputs=X, optimizer=optimizer, masks=masks)
    assert list(masks) == ["layer2.1.conv1.weight", "layer2.2.conv1.weight"]
    assert masks["layer2.2.conv1.weight"].all()
    step(model, X, optimizer)
    step(model, X, optimizer)
    assert model.layer2[2].conv1.weight.all()
    assert not model.layer2[1].conv1.weight[~masks["layer2.1.conv1.weight"]].any()


def test_deeper_models_are_saved_and_loaded(tmp_path: Any) -> None:
    model = made(lambda: lenet5(image_size=16))
    x = torch.rand(2, 1, 16, 16, dtype=torch.float64)
    deepen(model, "0", example_inputs=x, init="residual")
    deepen(model, "7", example_inputs=x)
    save(model, tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert list(again.state_dict()) == list(model.state_dict())
    assert torch.equal(run(again, x), run(model, x))


def test_surgery_goes_on_with_deeper_models() -> None:
    model = made(lambda: resnet(8, 0.5))
    paths = [deepen(model, name, example_inputs=X) for name in ("layer2", "layer2.0")]
    step(model, X, SGD(model.parameters(), lr=0.1))
    expected = run(model, X)
    widen(model, f"{paths[1]}.conv1", 4, example_inputs=X)
    assert model.get_submodule(paths[1]).conv2.in_channels == 20
    compact(model, X, inplace=True)
    assert model.get_submodule(paths[1]).conv2.in_channels == 16
    torch.testing.assert_close(run(model, X), expected, rtol=1e-12, atol=1e-12)
    assert {f"{path}.conv1" for path in paths} < {group.producer for group in channel_groups(model, "test")}
