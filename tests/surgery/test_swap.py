"""Swapped models are the models they were: function, training, optimizer, state; and back again."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from swap_nets import LAYERS, SWAP, X, block_masks, network, pruned, train
from torch import Tensor, nn
from torch.optim import Optimizer

import resgrow
from resgrow.nn import BlockSparseConv2d
from resgrow.surgery.exchange import plan

FORCED = {"block": (4, 1), "force": True}


def swapped(model: nn.Module, *args: object, **options: object) -> resgrow.Swap:
    table = resgrow.swap(model, *args, **{**FORCED, **options})
    assert table.swapped == list(LAYERS)
    return table


def dense_state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if not name.endswith("mask")}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("block", [(4, 1), (16, 1), (16, 16), (8, 1), (4, 3)], ids=str)
def test_function_is_kept_there_and_back(block: tuple[int, int], training: bool) -> None:
    model = network().train(training)
    masks = pruned(model, block)
    weights = copy.deepcopy(model.state_dict())
    expected = copy.deepcopy(model)(X)
    swapped(model, masks, block=block)
    assert all(type(model.get_submodule(name)) is kind for name, kind in LAYERS.items())
    assert all(module.training is training for module in model.modules())
    torch.testing.assert_close(copy.deepcopy(model)(X), expected)
    table = resgrow.unswap(model)
    assert list(table) == list(LAYERS)
    assert table.swapped == []
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert repr(model) == repr(network())


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05),
    "momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.01, nesterov=True),
    "momentum-fused": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True),
    "adam-fused": lambda p: torch.optim.Adam(p, 0.01, fused=True),
    "adamw-foreach": lambda p: torch.optim.AdamW(p, 0.01, foreach=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.01, initial_accumulator_value=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, 0.01),
    "radam": lambda p: torch.optim.RAdam(p, 0.01),
    "adadelta": lambda p: torch.optim.Adadelta(p, 0.5),
    "adamax": lambda p: torch.optim.Adamax(p, 0.01),
    "asgd": lambda p: torch.optim.ASGD(p, 0.05),
    "rprop": lambda p: torch.optim.Rprop(p, 0.01),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_as_if_nothing_had_happened(name: str, layout: torch.memory_format) -> None:
    """Masked dense training in float64 against the same with a swap and an unswap on the way."""
    models = [network().double().to(memory_format=layout) for _ in range(2)]
    optimizers = [OPTIMIZERS[name](list(model.parameters())) for model in models]
    masks = [resgrow.Masks(m, block_masks(m)).attach(o) for m, o in zip(models, optimizers, strict=True)]

    def both_train() -> None:
        for model, optimizer in zip(models, optimizers, strict=True):
            train(model, [optimizer])
        dense, other = (dense_state(model) for model in models)
        torch.testing.assert_close(other, dense)

    both_train()
    swapped(models[1], masks[1])
    both_train()
    resgrow.unswap(models[1], optimizer=optimizers[1])
    both_train()
    for ours, theirs in zip(models[1].parameters(), models[0].parameters(), strict=True):
        assert ours.stride() == theirs.stride()
        states = [o.state[p] for o, p in zip(reversed(optimizers), (ours, theirs), strict=True)]
        assert set(states[0]) == set(states[1])
        for key, value in states[1].items():
            torch.testing.assert_close(states[0][key], value, msg=lambda m, key=key: f"{key}: {m}")


def test_the_new_parameter_takes_the_old_one_s_place() -> None:
    model = network()
    conv, linear = model[3], model[5]
    first = torch.optim.Adam([{"params": [model[0].weight, conv.weight]}, {"params": [linear.bias], "lr": 0.5}])
    second = torch.optim.SGD([model[7].weight, linear.weight], 0.1, momentum=0.9)
    masks = pruned(model)
    train(model, [first, second])
    moment, gradient, step = (first.state[conv.weight][k] for k in ("exp_avg", "exp_avg_sq", "step"))
    velocity, grads = second.state[linear.weight]["momentum_buffer"], [conv.weight.grad, linear.weight.grad]
    present = block_masks(model)
    bias = linear.bias
    swapped(model, masks, optimizer=[first, second])
    sparse, values = model[3], model[3].values
    assert [id(p) for p in first.param_groups[0]["params"]] == [id(model[0].weight), id(values)]
    assert [id(p) for p in second.param_groups[0]["params"]] == [id(model[7].weight), id(model[5].values)]
    assert first.param_groups[1]["params"][0] is bias is model[5].bias
    assert conv.weight not in first.state
    assert linear.weight not in second.state
    state = first.state[values]
    assert state["step"] is step
    assert torch.equal(sparse.unpacked(state["exp_avg"]), moment * present["3.weight"])
    assert torch.equal(sparse.unpacked(state["exp_avg_sq"]), gradient * present["3.weight"])
    assert torch.equal(sparse.unpacked(values.grad), grads[0] * present["3.weight"])
    assert torch.equal(model[5].unpacked(model[5].values.grad), grads[1] * present["5.weight"])
    buffer = second.state[model[5].values]["momentum_buffer"]
    assert torch.equal(model[5].unpacked(buffer), velocity * present["5.weight"])
    assert buffer.numel() < velocity.numel()
    train(model, [first, second])
    resgrow.unswap(model, optimizer=[second, first])
    assert first.param_groups[0]["params"][1] is model[3].weight
    assert second.param_groups[0]["params"][1] is model[5].weight
    assert not first.state[model[3].weight]["exp_avg"][~present["3.weight"]].any()
    assert not model[3].weight.grad[~present["3.weight"]].any()
    train(model, [first, second])


def test_a_schedule_and_an_untouched_parameter_go_on() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    swapped(model, pruned(model), optimizer=optimizer)
    train(model, [optimizer], 1)
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    assert all(held is own for held, own in zip(optimizer.param_groups[0]["params"], model.parameters(), strict=False))


def test_optimizers_of_attached_masks_are_known() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    masks = pruned(model).attach(optimizer)
    swapped(model, masks, optimizer=optimizer)  # given twice, moved once
    assert any(held is model[3].values for held in optimizer.param_groups[0]["params"])


def test_blocks_are_found_in_the_zeros_of_weights_without_masks() -> None:
    model, other = network(), network()
    masks = pruned(model)
    pruned(other)
    swapped(model, masks)
    swapped(other)
    given = network()
    pruned(given)
    swapped(given, {"5.weight": masks["5.weight"]})
    for name in LAYERS:
        for found in (other, given):
            assert torch.equal(found.get_submodule(name).mask, model.get_submodule(name).mask)


def test_masks_that_cut_blocks_leave_them_present() -> None:
    model = network().eval()
    masks = resgrow.Masks(model, {"3.weight": torch.rand(36, 20, 3, 3) < 0.2})
    masks.apply()
    expected = model(X)
    table = resgrow.swap(model, masks, block=(4, 1), force=True)
    assert 0.4 < table["3"].density < 0.75  # 1 - .8 ** 4
    torch.testing.assert_close(model(X), expected)


def test_frozen_weights_stay_frozen() -> None:
    model = network()
    model[3].weight.requires_grad_(False)
    swapped(model, pruned(model))
    assert not model[3].values.requires_grad
    assert model[5].values.requires_grad
    resgrow.unswap(model)
    assert not model[3].weight.requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    model = network().to(dtype).eval()
    masks = pruned(model)
    expected = model(X.to(dtype))
    swapped(model, masks)
    tolerance = {"rtol": 0.1, "atol": 0.1} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(model(X.to(dtype)), expected, **tolerance)


def test_in_inference_mode_too() -> None:
    """What is made there must be trainable outside of it, like what is made outside."""
    model = network()
    masks = pruned(model)
    usual = copy.deepcopy(model)
    with torch.inference_mode():
        swapped(model, masks, example_inputs=X.clone())
    swapped(usual, masks, example_inputs=X.clone())
    for each in (model, usual):
        train(each, [torch.optim.SGD(each.parameters(), 0.1)], 1)
    with torch.inference_mode():
        resgrow.unswap(model)
    resgrow.unswap(usual)
    for each in (model, usual):
        train(each, [torch.optim.SGD(each.parameters(), 0.1)], 1)
    torch.testing.assert_close(model.state_dict(), usual.state_dict())


def test_values_that_hang_over_the_edge_stay_zero() -> None:
    """Such values are in no weight; a gradient there would count in the norms that gradients are clipped by."""
    model = network()
    masks = pruned(model, (16, 16))
    optimizer = torch.optim.Adam(model.parameters())
    swapped(model, masks, optimizer=optimizer, block=(16, 16))
    train(model, [optimizer])
    for name in LAYERS:
        layer = model.get_submodule(name)
        outside = layer.packed(torch.ones(layer.shape)) == 0
        assert outside.any()
        assert not layer.values.grad[outside].any()
        assert not layer.values[outside].any()


def test_swapping_twice_is_harmless() -> None:
    model = network()
    masks = pruned(model)
    swapped(model, masks)
    before = list(model.modules())
    table = swapped(model, masks)
    assert table["3"].why == "was so before"
    assert all(a is b for a, b in zip(before, model.modules(), strict=True))
    assert resgrow.unswap(network()).swapped == []


def test_hooks_survive_and_can_be_removed() -> None:
    model = network()
    calls: list[str] = []
    handles = [
        model[3].register_forward_hook(lambda *_: calls.append("forward")),
        model[3].register_forward_pre_hook(lambda *_: calls.append("before")),
        model[3].register_full_backward_hook(lambda *_: calls.append("backward")),
    ]
    every = ["before", "forward", "backward"]
    swapped(model, pruned(model))
    model(X).sum().backward()
    assert calls == every
    resgrow.unswap(model)
    model(X).sum().backward()
    assert calls == every * 2
    for handle in handles:
        handle.remove()
    model(X).sum().backward()
    assert calls == every * 2


def test_a_layer_that_stands_in_two_places_stays_one() -> None:
    conv = nn.Conv2d(16, 16, 3, padding=1)
    model = nn.ModuleDict({"a": nn.Sequential(conv, nn.ReLU()), "b": conv})
    with torch.no_grad():
        conv.weight[:, ::2] = 0
    table = resgrow.swap(model, **FORCED)
    assert list(table) == ["a.0"]
    assert type(model["b"]) is BlockSparseConv2d
    assert model["a"][0] is model["b"]
    resgrow.unswap(model)
    assert type(model["b"]) is nn.Conv2d
    assert model["a"][0] is model["b"]


def test_state_dicts_go_both_ways() -> None:
    model, dense = network(), network()
    masks = pruned(model)
    train(model, [torch.optim.SGD(model.parameters(), 0.1)], 1)
    masks.apply()
    dense.load_state_dict(model.state_dict())
    swapped(model, masks)
    fresh = network()
    missing, unexpected = fresh.load_state_dict(model.state_dict(), strict=False)
    assert missing == []
    assert unexpected == ["3.mask", "5.mask"]
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), dense.parameters(), strict=True))
    other = network()
    swapped(other, masks=pruned(other))
    other.load_state_dict(dense.state_dict())
    assert torch.equal(other.eval()(X), model.eval()(X))


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies(how: str) -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    masks = pruned(model).attach(optimizer)
    swapped(model, masks)
    train(model, [optimizer])
    if how == "deepcopy":
        twin, twin_optimizer, twin_masks = copy.deepcopy((model, optimizer, masks))
    elif how == "pickle":
        twin, twin_optimizer, twin_masks = pickle.loads(pickle.dumps((model, optimizer, masks)))
    else:
        stored = io.BytesIO()
        torch.save((model, optimizer, masks), stored)
        stored.seek(0)
        twin, twin_optimizer, twin_masks = torch.load(stored, weights_only=False)
    for one, its_optimizer in ((model, optimizer), (twin, twin_optimizer)):
        train(one, [its_optimizer])
    torch.testing.assert_close(twin.state_dict(), model.state_dict())
    twin_masks.update({name: torch.zeros_like(mask) for name, mask in twin_masks.items()})
    assert twin[3].values.numel() == 0
    assert model[3].values.numel() > 0


def test_an_error_on_the_way_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    masks = pruned(model).attach(optimizer)
    train(model, [optimizer])

    def snapshot() -> tuple[list[int], list[int], list[int]]:
        held = [id(p) for group in optimizer.param_groups for p in group["params"]]
        return [id(m) for m in model.modules()], held, [id(p) for p in optimizer.state]

    def second_fails(*args: object, **options: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError("no more")
        return plan(*args, **options)

    before, weights = snapshot(), copy.deepcopy(model.state_dict())
    calls: list[int] = []
    monkeypatch.setattr(SWAP, "plan", second_fails)
    with pytest.raises(MemoryError):
        resgrow.swap(model, masks, **FORCED)
    assert snapshot() == before
    monkeypatch.undo()
    swapped(model, masks)
    before = snapshot()
    calls.clear()
    monkeypatch.setattr(SWAP, "plan", second_fails)
    with pytest.raises(MemoryError):
        resgrow.unswap(model, optimizer=optimizer)
    assert snapshot() == before
    assert all(torch.equal(weights[name], value) for name, value in dense_state(model).items())
