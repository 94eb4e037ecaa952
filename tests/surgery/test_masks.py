import copy
import io
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from resgrow.surgery import Masks, swap, unswap


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


def swapped(make: Callable[..., Optimizer]) -> tuple[nn.Sequential, Optimizer, Masks]:
    """A network whose linear layer is block-sparse in blocks of 4, after some training."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 8, bias=False))
    optimizer = make(model.parameters())
    masks = Masks(model, {"4.weight": BLOCKS, "0.weight": FIRST}).attach(optimizer)
    train(model, optimizer)
    assert swap(model, masks, block=(4, 1), force=True).swapped == ["4"]
    return model, optimizer, masks


FIRST = torch.tensor([False, True, True]).view(3, 1, 1, 1).expand(3, 1, 3, 3)  # cuts the blocks of 4
BLOCKS = (torch.arange(24).view(2, 12) % 3 > 0).repeat_interleave(4, 0)


def moments(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """The weight of the linear layer and all its state of the same shape, dense."""
    layer = model[4]
    entries = {"weight": layer.values, **optimizer.state[layer.values]}
    return {
        key: layer.unpacked(value)
        for key, value in entries.items()
        if isinstance(value, Tensor) and value.shape == layer.values.shape
    }


def test_numbers_are_the_same_after_a_swap() -> None:
    model, _, masks = swapped(OPTIMIZERS["adam"][0])
    fresh = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 8, bias=False))
    dense = Masks(fresh, masks)
    assert masks.density() == dense.density()
    assert masks.live_parameters() == dense.live_parameters()
    assert masks.summary() == dense.summary()
    assert all(torch.equal(masks.state_dict()[name], mask) for name, mask in dense.state_dict().items())
    again = Masks(model, dense)  # under the same names
    assert again.live_parameters() == dense.live_parameters()


@pytest.mark.parametrize("name", ["momentum", "adam", "adam-fused", "adamw-foreach"])
def test_blocks_go_and_come_with_their_state(name: str) -> None:
    model, optimizer, masks = swapped(OPTIMIZERS[name][0])
    values, before = model[4].values, moments(model, optimizer)
    other = BLOCKS.roll(1, 1)
    masks.update({"4.weight": other})
    assert model[4].values is values
    after = moments(model, optimizer)
    assert len(after) >= 2
    for key, value in after.items():
        torch.testing.assert_close(value, before[key] * (other & BLOCKS), rtol=0, atol=0)
    assert torch.equal(model[4].mask, other[::4])
    train(model, optimizer)
    masks.load_state_dict({"4.weight": torch.ones_like(BLOCKS)})
    assert model[4].density() == 1
    train(model, optimizer)
    assert moments(model, optimizer)["weight"][:, 4:].all()  # the channel before these is masked and dead
    masks.load_state_dict({"4.weight": torch.zeros_like(BLOCKS)})
    assert model[4].values.numel() == 0
    train(model, optimizer)


def test_weights_absent_within_present_blocks_stay_zero() -> None:
    model, optimizer, masks = swapped(OPTIMIZERS["adam"][0])
    finer = BLOCKS & (torch.rand(8, 12) > 0.3)
    masks.update({"4.weight": finer})
    for _ in range(2):
        train(model, optimizer, 1)
        entries = moments(model, optimizer)
        assert len(entries) == 4
        assert not any(value[~finer].any() for value in entries.values())
        assert entries["weight"][finer].all()
    model[4].set_mask(torch.ones_like(model[4].mask), optimizer)  # behind the masks' back
    train(model, optimizer, 1)
    assert not moments(model, optimizer)["weight"][~finer].any()
    unswap(model, optimizer=optimizer)
    train(model, optimizer, 1)
    assert not model[4].weight[~finer].any()
    assert not optimizer.state[model[4].weight]["exp_avg"][~finer].any()


def test_ragged_blocks_lose_nothing() -> None:
    """Values that hang over the weight's edge are nobody's, whatever the mask says."""
    model = nn.Sequential(nn.Linear(5, 6))
    mask = torch.ones(6, 5, dtype=torch.bool)
    mask[:4, :2] = False
    mask[5, 4] = False
    masks = Masks(model, {"0.weight": mask})
    masks.apply()
    swap(model, masks, block=(4, 2), force=True)
    expected = model[0].dense_weight()
    masks.apply()
    assert torch.equal(model[0].dense_weight(), expected)
    assert torch.equal(expected != 0, mask)


@pytest.mark.parametrize("bad", [{"4.values": BLOCKS}, {"4.weight": BLOCKS[:2]}, {"4.weight": BLOCKS[::4]}])
def test_bad_masks_of_a_swapped_layer_change_nothing(bad: dict[str, Tensor]) -> None:
    model, optimizer, masks = swapped(OPTIMIZERS["adam"][0])
    before = moments(model, optimizer)
    for attempt in (lambda: masks.update(bad), lambda: masks.load_state_dict(bad), lambda: Masks(model, bad)):
        with pytest.raises(ValueError, match="Masks: "):
            attempt()
    assert torch.equal(masks["4.weight"], BLOCKS)
    torch.testing.assert_close(moments(model, optimizer), before, rtol=0, atol=0)


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
