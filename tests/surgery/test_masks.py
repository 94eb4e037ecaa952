import copy
import io
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from resgrow.surgery import Masks


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))


def half(model: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.rand(model.get_parameter(name).shape, generator=generator) > 0.5
        for name in ("0.weight", "0.bias", "1.weight", "4.weight")
    }


def train(model: nn.Module, optimizer: Optimizer, steps: int = 3) -> None:
    generator = torch.Generator().manual_seed(2)
    dtype = next(model.parameters()).dtype
    for _ in range(steps):
        x = torch.randn(4, 1, 4, 4, generator=generator).to(dtype)
        optimizer.zero_grad()
        F.cross_entropy(model(x), torch.tensor([0, 1, 1, 0])).backward()
        optimizer.step()


def assert_zero_where_absent(model: nn.Module, optimizer: Optimizer, masks: Masks) -> int:
    """Checks weights and state; returns the number of state tensors of a masked parameter's shape."""
    found = 0
    for name, mask in masks.items():
        parameter = model.get_parameter(name)
        assert not parameter[~mask].any(), name
        assert parameter[mask].all(), name
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                assert not value[~mask].any(), (name, key)
                found += 1
    return found


OPTIMIZERS: dict[str, tuple[Callable[..., Optimizer], int]] = {
    "sgd": (lambda p: torch.optim.SGD(p, 0.1), 0),
    "momentum": (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01, nesterov=True), 1),
    "adam": (lambda p: torch.optim.Adam(p, 0.01, amsgrad=True), 3),
    "adamw": (lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1), 2),
    "adamw-foreach": (lambda p: torch.optim.AdamW(p, 0.01, foreach=True), 2),
    "adam-fused": (lambda p: torch.optim.Adam(p, 0.01, fused=True), 2),
    "sgd-foreach": (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, foreach=True), 1),
    "rmsprop": (lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9, centered=True), 3),
    "adagrad": (lambda p: torch.optim.Adagrad(p, 0.01, initial_accumulator_value=0.1), 1),
    "nadam": (lambda p: torch.optim.NAdam(p, 0.01), 2),
    "radam": (lambda p: torch.optim.RAdam(p, 0.01), 2),
    "adadelta": (lambda p: torch.optim.Adadelta(p, 0.5), 2),
    "adamax": (lambda p: torch.optim.Adamax(p, 0.01), 2),
    "asgd": (lambda p: torch.optim.ASGD(p, 0.1), 1),
    "rprop": (lambda p: torch.optim.Rprop(p, 0.01), 2),
    "adafactor": (lambda p: torch.optim.Adafactor(p, 0.01), 0),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_and_state_stay_zero_under(name: str) -> None:
    make, tensors = OPTIMIZERS[name]
    model = network()
    optimizer = make(model.parameters())
    train(model, optimizer)  # some state is there before the masks are
    masks = Masks(model, half(model)).attach(optimizer)
    assert_zero_where_absent(model, optimizer, masks)
    for _ in range(3):
        train(model, optimizer, steps=1)
        assert assert_zero_where_absent(model, optimizer, masks) >= tensors * len(masks)


def test_making_changes_nothing_and_detaching_lets_go() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    masks = Masks(model, half(model))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    masks.attach(optimizer).detach()
    train(model, optimizer, 1)
    assert model.get_parameter("4.weight")[~masks["4.weight"]].any()


def test_a_step_that_turns_everything_to_nan_leaves_absent_weights_zero() -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    masks = Masks(model, half(model)).attach(optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    optimizer.step()
    assert model[0].weight.isnan().any()
    assert_zero_where_absent(model, optimizer, masks)


def test_state_loaded_into_the_optimizer_is_covered() -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer)
    unmasked = copy.deepcopy(optimizer.state_dict())
    masks = Masks(model, half(model)).attach(optimizer)
    optimizer.load_state_dict(unmasked)
    train(model, optimizer, 1)
    assert assert_zero_where_absent(model, optimizer, masks) == 2 * len(masks)


def test_two_optimizers_share_one_set_of_masks() -> None:
    model = network()
    first = torch.optim.Adam(model[:2].parameters())
    second = torch.optim.SGD(model[4].parameters(), 0.1, momentum=0.9)
    masks = Masks(model, half(model)).attach(first).attach(second)
    train(model, first)
    train(model, second)
    assert assert_zero_where_absent(model, first, masks) == 6
    assert assert_zero_where_absent(model, second, masks) == 1


def test_a_step_leaves_other_optimizers_graphs_intact() -> None:
    model = network()
    first = torch.optim.SGD(model[:2].parameters(), 0.1)
    masks = Masks(model, half(model)).attach(first)
    features = torch.ones(2, 12, requires_grad=True)
    waiting = model[4](features).sum()
    model[0](torch.ones(1, 1, 4, 4)).sum().backward()
    first.step()
    waiting.backward()  # fails if the step had written to 4.weight
    assert not model[4].weight[~masks["4.weight"]].any()


def test_attaching_twice_registers_once() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    masks = Masks(model, half(model)).attach(optimizer).attach(optimizer)
    assert len(optimizer._optimizer_step_post_hooks) == 1
    masks.detach()
    assert not optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_work_on_their_own(order: tuple[int, ...], how: str) -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    masks = Masks(model, half(model)).attach(optimizer)
    train(model, optimizer, 1)
    parts = (model, optimizer, masks)
    arranged = tuple(parts[i] for i in order)
    if how == "deepcopy":
        copied = copy.deepcopy(arranged)
    else:
        buffer = io.BytesIO()
        torch.save(arranged, buffer)
        buffer.seek(0)
        copied = torch.load(buffer, weights_only=False)
    twin, twin_optimizer, twin_masks = (copied[order.index(i)] for i in range(3))
    before = copy.deepcopy(model.state_dict())
    train(twin, twin_optimizer)
    assert assert_zero_where_absent(twin, twin_optimizer, twin_masks) == 2 * len(masks)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_model_may_change_dtype_and_layout(dtype: torch.dtype) -> None:
    model = network()
    masks = Masks(model, half(model))
    masks.apply()
    model.to(dtype, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters())
    masks.attach(optimizer)
    train(model, optimizer)
    assert assert_zero_where_absent(model, optimizer, masks) == 2 * len(masks)


def test_state_dict_round_trip_into_fresh_masks() -> None:
    model = network()
    state = Masks(model, half(model)).state_dict()
    fresh = Masks(model, {})
    fresh.load_state_dict(state)
    assert set(fresh) == set(state)
    assert not model[4].weight[~state["4.weight"]].any()
    state["0.bias"].fill_(False)
    assert fresh["0.bias"].any()  # masks are copies


def test_update_replaces_some_and_clears_state_at_once() -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    masks = Masks(model, half(model)).attach(optimizer)
    train(model, optimizer, 1)
    others = {name: mask.clone() for name, mask in masks.items() if name != "4.weight"}
    masks.update({"4.weight": torch.zeros(2, 12, dtype=torch.bool)})
    assert not model[4].weight.any()
    assert not optimizer.state[model[4].weight]["exp_avg_sq"].any()
    assert all(torch.equal(masks[name], mask) for name, mask in others.items())


def test_masks_that_were_complete_may_lose_elements_later() -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    masks = Masks(model, {name: torch.ones_like(mask) for name, mask in half(model).items()}).attach(optimizer)
    train(model, optimizer, 1)
    assert model[4].weight.all()
    masks.update(half(model))
    assert assert_zero_where_absent(model, optimizer, masks) == 2 * len(masks)
    train(model, optimizer, 1)
    assert assert_zero_where_absent(model, optimizer, masks) == 2 * len(masks)


def test_counts_and_summary() -> None:
    model = network()
    masks = Masks(model, half(model))
    absent = sum(int((~mask).sum()) for mask in masks.values())
    total = sum(mask.numel() for mask in masks.values())
    assert masks.density() == pytest.approx(1 - absent / total)
    assert masks.live_parameters() == sum(p.numel() for p in model.parameters()) - absent
    lines = masks.summary().splitlines()
    assert len(lines) == len(masks) + 2
    assert f"{total - absent}/{total}" in lines[-1]
    assert Masks(model, {}).density() == 1


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ({"nowhere": torch.ones(3, dtype=torch.bool)}, ValueError, "nowhere"),
        ({"0.bias": torch.ones(2, dtype=torch.bool)}, ValueError, r"\(2,\)"),
        ({"0.bias": torch.ones(3)}, TypeError, "float32"),
        ({"0.bias": [True, True, True]}, TypeError, "list"),
        ([("0.bias", torch.ones(3, dtype=torch.bool))], TypeError, "mapping"),
    ],
)
def test_bad_masks_change_nothing(bad: object, error: type[Exception], message: str) -> None:
    model = network()
    masks = Masks(model, half(model))
    before, weights = masks.state_dict(), copy.deepcopy(model.state_dict())
    for attempt in (lambda: Masks(model, bad), lambda: masks.update(bad), lambda: masks.load_state_dict(bad)):
        with pytest.raises(error, match=message):
            attempt()
    assert all(torch.equal(before[name], mask) for name, mask in masks.items())
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_attach_refuses_what_it_cannot_mask() -> None:
    model = network()
    masks = Masks(model, half(model))
    with pytest.raises(ValueError, match="LBFGS"):
        masks.attach(torch.optim.LBFGS(model.parameters()))
    with pytest.raises(ValueError, match="own parameters"):
        masks.attach(torch.optim.SGD(network().parameters(), 0.1))
    with pytest.raises(TypeError, match="Optimizer"):
        masks.attach(model)  # type: ignore[arg-type]
    assert model[4].weight.all()


def test_complex_parameters_are_refused() -> None:
    model = nn.Linear(2, 2, dtype=torch.complex64)
    with pytest.raises(TypeError, match="complex64"):
        Masks(model, {"bias": torch.ones(2, dtype=torch.bool)})


def test_a_reshaped_parameter_is_reported() -> None:
    model = network()
    masks = Masks(model, half(model))
    model[4].weight = nn.Parameter(torch.ones(2, 5))
    with pytest.raises(RuntimeError, match=r"4\.weight"):
        masks.apply()
