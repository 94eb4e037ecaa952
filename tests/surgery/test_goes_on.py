"""Training that is in the middle of something when units are taken out: it goes on as that of the masked model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import peer_nets
import pytest
import torch
from structure_nets import X, made, random_units
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler

from resgrow.surgery import compact, count_params
from resgrow.surgery.structure import Group, mask, structure

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    # A small rate: with larger ones batch norms of few images make much of rounding within ten steps.
    "SGD": partial(torch.optim.SGD, lr=1e-3, momentum=0.9, nesterov=True, weight_decay=0.01),
    "SGD fused": partial(torch.optim.SGD, lr=1e-2, momentum=0.9, fused=True),
    "Adam amsgrad": partial(torch.optim.Adam, lr=1e-2, amsgrad=True),
    "AdamW": partial(torch.optim.AdamW, lr=1e-2),
    "AdamW foreach": partial(torch.optim.AdamW, lr=1e-2, foreach=True),
    "AdamW fused": partial(torch.optim.AdamW, lr=1e-2, fused=True),
    "AdamW, rate in a tensor": lambda parameters: torch.optim.AdamW(parameters, lr=torch.tensor(1e-2)),
    "RMSprop": partial(torch.optim.RMSprop, lr=1e-3, momentum=0.9, centered=True),
    "NAdam": partial(torch.optim.NAdam, lr=1e-2),
    "RAdam": partial(torch.optim.RAdam, lr=1e-2),
    "Adamax": partial(torch.optim.Adamax, lr=1e-2),
    "Adadelta": partial(torch.optim.Adadelta, lr=1.0),
    "Adadelta foreach": partial(torch.optim.Adadelta, lr=1.0, foreach=True),
    "Adagrad": partial(torch.optim.Adagrad, lr=1e-2, initial_accumulator_value=0.1),
    "Adagrad fused": partial(torch.optim.Adagrad, lr=1e-2, fused=True),
    "ASGD": partial(torch.optim.ASGD, lr=1e-2),
    "Rprop": partial(torch.optim.Rprop, lr=1e-3),
}
# Of losses in float64. Sums over fewer terms round otherwise, and batch norms of few images make up to 1e-8 of that
# within ten steps; what goes wrong with weights or state shows in the third digit.
CLOSE = 1e-6
SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "StepLR": partial(lr_scheduler.StepLR, step_size=3, gamma=0.5),
    "CosineAnnealingLR": partial(lr_scheduler.CosineAnnealingLR, T_max=12),
    "ReduceLROnPlateau": partial(lr_scheduler.ReduceLROnPlateau, patience=0, threshold=0.5),
    "OneCycleLR": partial(lr_scheduler.OneCycleLR, max_lr=0.05, total_steps=20),
}


class Training:
    """One step after the other, of a model with its optimizer, its scheduler and its scaler."""

    def __init__(self, model: nn.Module, x: Tensor, optimizer: str, scheduler: str = "StepLR") -> None:
        self.model, self.x = model.train(), x
        self.optimizer = OPTIMIZERS[optimizer](model.parameters())
        self.scheduler = SCHEDULERS[scheduler](self.optimizer)

    def loss(self) -> Tensor:
        return self.model(self.x).square().mean()

    def step(self) -> float:
        self.optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        self.tick(loss)
        return loss.item()

    def tick(self, loss: Tensor) -> None:
        if isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau):
            self.scheduler.step(loss.item())
        else:
            self.scheduler.step()

    def rates(self) -> list[float]:
        return [float(group["lr"]) for group in self.optimizer.param_groups]


def units(model: nn.Module, x: Tensor) -> tuple[list[Group], dict[int, Tensor]]:
    groups = structure(model, (x,), "test").groups
    return groups, random_units(groups, 7, 0.4)


class MaskedTraining(Training):
    """Of the model at full size, with the same units held at zero."""

    def __init__(self, training: Training, groups: list[Group], gone: dict[int, Tensor]) -> None:
        vars(self).update(vars(copy.deepcopy(training)))
        self.units = groups, gone

    def step(self) -> float:
        mask(self.model, *self.units)
        return super().step()


def emptied(training: Training) -> MaskedTraining:
    """The training has a smaller model from now on; returns one that keeps the masked one."""
    groups, gone = units(training.model, training.x)
    twin = MaskedTraining(training, groups, gone)
    mask(training.model, groups, gone)
    before = count_params(training.model)
    compact(training.model, training.x, inplace=True, optimizer=training.optimizer)
    assert count_params(training.model) < 0.9 * before
    return twin


def check_members(model: nn.Module, optimizer: Optimizer) -> None:
    """Every parameter in the optimizer once, with state of its shape; and nothing else there."""
    inside = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(inside) == sorted({id(parameter) for parameter in model.parameters()})
    assert {id(parameter) for parameter in optimizer.state} <= set(inside)
    for parameter in model.parameters():
        state = optimizer.state[parameter]
        assert state
        for entry in state.values():
            if isinstance(entry, Tensor) and entry.numel() > 1:
                assert (entry.shape, entry.stride()) == (parameter.shape, parameter.stride())


def dropout_free(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "residual": lambda: (made("residual"), X),
    "transformer": lambda: (made("transformer"), X),
    **{
        name: partial(lambda name: (dropout_free(peer_nets.made(name)), peer_nets.IMAGES), name)
        for name in ("ResNet", "MobileNetV3", "BERT")
    },
}
CASES = [
    *[("residual", optimizer) for optimizer in OPTIMIZERS],
    *[("transformer", optimizer) for optimizer in ("SGD", "AdamW foreach", "Adadelta")],
    *[("ResNet", optimizer) for optimizer in ("SGD", "AdamW foreach", "AdamW fused", "RMSprop", "NAdam")],
    ("MobileNetV3", "AdamW"),
    ("BERT", "AdamW"),
]


@pytest.mark.parametrize(("name", "optimizer"), CASES)
def test_ten_more_steps_are_those_of_the_masked_model(name: str, optimizer: str) -> None:
    training = Training(*MODELS[name](), optimizer)
    for _ in range(2):
        training.step()
    held = {id(parameter) for parameter in training.model.parameters()}
    masked = emptied(training)
    assert {id(parameter) for parameter in training.model.parameters()} == held
    check_members(training.model, training.optimizer)
    for _ in range(10):
        expected = masked.step()
        assert training.step() == pytest.approx(expected, rel=CLOSE)
    check_members(training.model, training.optimizer)
    loaded = OPTIMIZERS[optimizer](training.model.parameters())
    loaded.load_state_dict(training.optimizer.state_dict())
    check_members(training.model, loaded)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers_go_on(scheduler: str) -> None:
    training = Training(*MODELS["residual"](), "SGD", scheduler)
    for _ in range(3):
        training.step()
    masked, rates = emptied(training), []
    for _ in range(10):
        expected = masked.step()
        assert training.step() == pytest.approx(expected, rel=CLOSE)
        assert training.rates() == masked.rates()
        rates.append(training.rates()[0])
    assert len(set(rates)) > 2


def test_a_scaler_goes_on_in_the_middle_of_a_step() -> None:
    """Between the backward pass and the step: gradients are scaled, and go along as they are."""
    training = Training(*MODELS["residual"](), "AdamW")
    training.step()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)

    def backward(run: Training, scaler: torch.amp.GradScaler) -> float:
        run.optimizer.zero_grad()
        loss = run.loss()
        scaler.scale(loss).backward()
        return loss.item()

    def finish(run: Training, scaler: torch.amp.GradScaler) -> None:
        scaler.unscale_(run.optimizer)
        nn.utils.clip_grad_value_(run.model.parameters(), 0.5)
        scaler.step(run.optimizer)
        scaler.update()

    groups, gone = units(training.model, training.x)
    mask(training.model, groups, gone)
    masked, scalers = copy.deepcopy(training), copy.deepcopy(scaler)
    assert backward(training, scaler) == backward(masked, scalers)
    compact(training.model, training.x, inplace=True, optimizer=training.optimizer)
    for _ in range(6):
        finish(training, scaler)
        finish(masked, scalers)
        mask(masked.model, groups, gone)
        expected = backward(masked, scalers)
        assert backward(training, scaler) == pytest.approx(expected, rel=CLOSE)
        assert scaler.get_scale() == scalers.get_scale()
    assert scaler.get_scale() == 8 * 1024


def test_hooks_fire_with_the_new_shapes() -> None:
    training = Training(*MODELS["residual"](), "AdamW")
    model: Any = training.model
    fired: dict[str, Any] = {}

    def record(name: str, shape: Callable[..., Any]) -> Callable[..., None]:
        def hook(*given: Any) -> None:
            fired[name] = shape(*given)

        return hook

    model.inner.register_forward_pre_hook(record("before", lambda layer, given: given[0].shape[1]))
    model.inner.register_forward_hook(record("after", lambda layer, given, output: output.shape[1]))
    model.inner.register_full_backward_hook(record("backward", lambda layer, grads, out: out[0].shape[1]))
    model.inner.weight.register_hook(record("gradient", lambda grad: tuple(grad.shape[:2])))
    model.inner.weight.register_post_accumulate_grad_hook(record("accumulated", lambda p: tuple(p.grad.shape[:2])))
    training.optimizer.register_step_post_hook(record("stepped", lambda *_: True))
    training.step()
    assert (fired["before"], fired["after"], fired["backward"]) == (8, 6, 6)
    with torch.no_grad():
        model.outer.weight[:, [1, 4]] = 0
    compact(model, X, inplace=True, optimizer=training.optimizer)
    fired.clear()
    training.step()
    assert fired == {
        "before": 8,
        "after": 4,
        "backward": 4,
        "gradient": (4, 8),
        "accumulated": (4, 8),
        "stepped": True,
    }


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_bias_that_is_new_trains(optimizer: str) -> None:
    """Constants move into a convolution and a linear layer that have no bias. Adagrad has state for it at once."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1),
        nn.Sigmoid(),
        nn.Conv2d(6, 5, 3, bias=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(5 * 36, 7, bias=False),
        nn.Tanh(),
        nn.Linear(7, 2),
    ).double()
    training = Training(model, X, optimizer)
    training.step()
    with torch.no_grad():
        model[0].weight[[1, 4]] = 0
        model[2].weight[[0, 3]] = 0
    expected = model(X).detach()
    compact(model, X, inplace=True, optimizer=training.optimizer)
    torch.testing.assert_close(model(X), expected, rtol=1e-12, atol=1e-12)
    assert (model[0].out_channels, model[2].out_channels, model[5].in_features) == (4, 3, 108)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    assert model[2].bias is not None
    assert model[2].bias.all()
    training.step()
    check_members(model, training.optimizer)
    assert all(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("start", [0.0, 0.1])
def test_adagrad_begins_with_a_new_bias_as_with_any(start: float) -> None:
    """``sum = start + g^2``, ``b - lr g / (sqrt(sum) + eps)`` (Duchi, Hazan and Singer 2011)."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 3, bias=False)).double(), torch.randn(5, 4)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1, initial_accumulator_value=start)
    with torch.no_grad():
        model[0].weight[1] = 0
    compact(model, x.double(), inplace=True, optimizer=optimizer)
    bias = model[2].bias
    old = bias.detach().clone()
    model(x.double()).square().sum().backward()
    optimizer.step()
    expected = old - 0.1 * bias.grad / ((start + bias.grad.square()).sqrt() + 1e-10)
    torch.testing.assert_close(bias.detach(), expected, rtol=1e-12, atol=0)
    assert float(optimizer.state[bias]["step"]) == 1
