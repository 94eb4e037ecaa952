"""Coupled dimensions: which indices are one unit, and that taking units out changes nothing that masks would not."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from structure_nets import MODELS, X, made, outputs, random_units
from torch import Tensor, nn
from torch.nn import functional as F

from resgrow.nn import TriStateReLU
from resgrow.surgery import compact, count_params, swap_activations
from resgrow.surgery.structure import Edit, Group, mask, remove, structure


def groups_of(model: nn.Module) -> dict[str, Group]:
    """By the first of their places."""
    found = structure(model, (X,), "test")
    assert found.unknown == []
    return {f"{group.places[0].name}/{group.places[0].dim}": group for group in found.groups}


def places(group: Group) -> set[tuple[str, int, int]]:
    return {(place.name, place.dim, place.index.shape[1]) for place in group.places}


def test_a_stream_is_one_group() -> None:
    groups = groups_of(made("residual"))
    assert set(groups) == {"stem.weight/0", "inner.weight/0", "squeeze.weight/0"}
    stream = places(groups["stem.weight/0"])
    assert stream >= {("stem.bias", 0, 1), ("outer.weight", 0, 1), ("excite.bias", 0, 1), ("inner.weight", 1, 1)}
    assert stream >= {("squeeze.weight", 1, 1), ("head.weight", 1, 1)}
    assert places(groups["inner.weight/0"]) == {
        *(("inner.weight", 0, 1), ("inner.bias", 0, 1), ("outer.weight", 1, 1)),
        *((f"norm.{name}", 0, 1) for name in ("weight", "bias", "running_mean", "running_var")),
    }


def test_what_is_side_by_side_keeps_its_place() -> None:
    groups = groups_of(made("concatenated"))
    (down,) = [place for place in groups["down.weight/0"].places if place.name == "out.weight"]
    (up,) = [place for place in groups["up.weight/1"].places if place.name == "out.weight"]
    assert down.index.flatten().tolist() == [4, 5, 6, 7, 8, 9]
    assert up.index.flatten().tolist() == [0, 1, 2, 3]
    assert "out.weight/0" not in groups  # the model's output


def test_groups_of_channels_and_heads_go_whole() -> None:
    groups = groups_of(made("transformer"))
    heads = groups["attention.qkv.weight/0"]
    assert heads.size == 4
    assert heads.split_by == ("attention",)
    assert places(heads) == {
        ("attention.qkv.weight", 0, 9),
        ("attention.qkv.bias", 0, 9),
        ("attention.proj.weight", 1, 3),
    }
    assert heads.places[0].index[1].tolist() == [3, 4, 5, 15, 16, 17, 27, 28, 29]
    gated = groups["wide.weight/0"]
    assert gated.size == 10
    assert gated.places[0].index[2].tolist() == [2, 12]
    # A norm runs over the stream's channels: they stay.
    assert not any("token" in name or "patches" in name for name in groups)


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 999), share=st.sampled_from([0.2, 0.5, 0.9]))
def test_without_units_as_with_masks(name: str, seed: int, share: float) -> None:
    model = made(name, seed)
    groups = structure(model, (X,), "test").groups
    gone = random_units(groups, seed, share)
    masked, edit = copy.deepcopy(model), Edit(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    mask(masked, groups, gone)
    remove(edit, groups, gone)
    expected = outputs(masked)
    assert (outputs(model) - expected).abs().max() <= 1e-12 * max(1.0, float(expected.abs().max()))
    assert outputs(model, torch.cat([X, X])).shape[0] == 4
    # Sizes that layers tell are those of their tensors: what is printed rebuilds.
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)
    edit.undo()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(outputs(model), outputs(made(name, seed)))


@pytest.mark.parametrize("name", MODELS)
def test_compact_takes_out_what_is_masked(name: str) -> None:
    model = made(name)
    groups = structure(model, (X,), "test").groups
    gone = random_units(groups, 3, 0.4)
    small = copy.deepcopy(model)
    remove(Edit(small), groups, gone)
    mask(model, groups, gone)
    found = compact(model, X)
    assert type(found) is type(model)
    assert count_params(found) == count_params(small)
    torch.testing.assert_close(outputs(found), outputs(model), rtol=1e-11, atol=1e-12)


def test_closed_channels_of_a_residual_stream_go() -> None:
    """A block's output may change where its gate is closed: every reader is behind the gate."""
    model = swap_activations(made("package's"), X).eval()
    gates = [module for module in model.modules() if isinstance(module, TriStateReLU)]
    with torch.no_grad():
        for gate in {id(gate.w): gate.w for gate in gates}.values():
            gate[::2] = 0.1
    small = compact(model, X)
    torch.testing.assert_close(outputs(small), outputs(model), rtol=1e-11, atol=1e-12)
    assert {module.num_channels for module in small.modules() if isinstance(module, TriStateReLU)} == {4, 8, 16}
    assert count_params(small) < 0.3 * count_params(model)


class Constant(nn.Module):
    """A constant through a sum, a concatenation and a linear layer behind a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.mixed, self.head = nn.Conv2d(8, 6, 3, bias=False), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        x = self.mixed(torch.cat([F.gelu(a + b), a.sigmoid()], 1))
        return self.head(F.silu(x).mean((2, 3)))


def test_constants_move_into_biases_on_every_way() -> None:
    torch.manual_seed(0)
    model = Constant().double().eval()
    with torch.no_grad():
        for layer in (model.a, model.b):
            layer.weight[1] = 0
        model.a.weight[2] = 0  # the sum still changes
        model.mixed.weight[4] = 0
    small = compact(model, X)
    assert (small.a.out_channels, small.b.out_channels) == (3, 3)
    assert (small.mixed.in_channels, small.mixed.out_channels) == (6, 5)
    assert small.mixed.bias is not None
    torch.testing.assert_close(outputs(small), outputs(model), rtol=1e-12, atol=1e-13)


def test_a_layer_called_twice_takes_over_what_both_calls_read() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.again, self.out = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.again(self.again(self.first(x)).relu()))

    torch.manual_seed(0)
    model, x = Twice().double(), torch.randn(5, 3, dtype=torch.float64)
    with torch.no_grad():
        model.first.weight[1] = model.again.weight[1] = 0
        model.first.bias[1], model.again.bias[1] = 0.5, 0.7  # other constants in the two calls
    assert compact(model, x).first.out_features == 4
    with torch.no_grad():
        model.first.bias[1] = 0.7
    small = compact(model, x)
    assert small.first.out_features == 3
    torch.testing.assert_close(outputs(small, x), outputs(model, x), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    "make", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adagrad]
)
def test_the_optimizer_goes_on_as_with_masks(make: type[torch.optim.Optimizer]) -> None:
    """Ten steps after the removal are those of the masked network whose zeros are held."""
    options = {"momentum": 0.9} if make in (torch.optim.SGD, torch.optim.RMSprop) else {}
    model = made("residual").train()
    groups = structure(model, (X,), "test").groups
    optimizer = make(model.parameters(), lr=1e-2, **options)
    x, y = torch.randn(16, 3, 8, 8, dtype=torch.float64), torch.arange(16) % 5

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    for _ in range(3):
        step(model, optimizer)
    gone = random_units(groups, 1, 0.4)
    masked = copy.deepcopy(model)
    twin = make(masked.parameters(), lr=1e-2, **options)
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    held = list(model.parameters())
    remove(Edit(model, [optimizer]), groups, gone)
    assert [id(p) for p in model.parameters()] == [id(p) for p in held]
    for parameter, state in optimizer.state.items():
        assert all(
            entry.shape == parameter.shape for entry in state.values() if isinstance(entry, Tensor) and entry.dim()
        )
    for _ in range(10):
        mask(masked, groups, gone)
        expected = step(masked, twin)
        assert step(model, optimizer) == pytest.approx(expected, rel=1e-9)


def test_undone_to_the_bit_with_optimizer_and_gradients() -> None:
    model = made("grouped")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    model(X).square().mean().backward()
    optimizer.step()
    twin = copy.deepcopy((model, optimizer))
    grads = [parameter.grad.clone() for parameter in model.parameters()]
    groups = structure(model, (X,), "test").groups
    edit = Edit(model, [optimizer])
    remove(edit, groups, random_units(groups, 5, 0.5))
    edit.undo()
    for parameter, other, grad in zip(model.parameters(), twin[0].parameters(), grads, strict=True):
        assert torch.equal(parameter, other)
        assert torch.equal(parameter.grad, grad)
        for key, entry in optimizer.state[parameter].items():
            assert torch.equal(entry, twin[1].state[other][key])


def test_a_weight_of_several_parameters_is_read_in_all_of_them() -> None:
    class LowRank(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.w = nn.Linear(4, 6), nn.Parameter(torch.randn(3, 6))
            self.a, self.b = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.randn(3, 2))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.first(x).relu(), self.w + self.b @ self.a)

    torch.manual_seed(0)
    model, x = LowRank().double(), torch.randn(5, 4, dtype=torch.float64)
    with torch.no_grad():
        model.w[:, 1] = 0
    assert compact(model, x).first.out_features == 6
    with torch.no_grad():
        model.a[:, 1] = 0
    small = compact(model, x)
    assert (small.first.out_features, small.w.shape, small.a.shape) == (5, (3, 5), (2, 5))
    torch.testing.assert_close(outputs(small, x), outputs(model, x), rtol=1e-12, atol=1e-13)


def test_what_cannot_be_followed_is_told() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match=r"compact: torch.export must be able to follow"):
        compact(Branching(), X)
