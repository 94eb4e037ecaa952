"""compact takes out whole layers and blocks, where nothing is left of them."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resgrow.nn import Shift, Zero, resnet
from resgrow.surgery import Masks, compact, count_params, swap_activations

X = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def trained(model: nn.Module, seed: int = 0) -> nn.Module:
    """Norms and all else away from where they start, so that nothing is zero by itself."""
    torch.manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.2, 1.0)
    return model.double()


class Block(nn.Module):
    """Pre-activation, as code of its own: one activation called twice, the shortcut added in place."""

    def __init__(self, width: int, act: Callable[[Tensor], Tensor] = F.relu) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, 5, 3, padding=1), nn.Conv2d(5, width, 3, padding=1)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(self.act(self.conv1(self.act(x))))
        out += x
        return out


class Transformer(nn.Module):
    """A pre-norm block whose halves are added by its code."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(6), nn.LayerNorm(6)
        self.mix = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
        self.mlp = nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def zero(*tensors: Tensor) -> None:
    for tensor in tensors:
        nn.init.zeros_(tensor)


def same(model: nn.Module, x: Tensor, **options: object) -> nn.Module:
    expected = model.eval()(x)
    small = compact(model, x, **options)
    assert (small(x) - expected).abs().max() <= 1e-12 * expected.abs().max()
    return small


def test_a_block_without_a_branch_is_the_identity() -> None:
    model = trained(resnet(20))
    block = model.layer2[1]
    zero(block.conv2.weight, block.bn2.bias, block.bn2.running_mean)
    small = same(model, X)
    assert type(small.layer2) is nn.Sequential
    assert list(small.layer2._modules) == ["0", "2"]  # the others under their names
    assert {name for name, _ in small.named_parameters()} < {name for name, _ in model.named_parameters()}


def test_a_block_with_a_downsampling_shortcut_is_that_shortcut() -> None:
    model = trained(resnet(8))
    block = model.layer2[0]
    zero(block.conv2.weight, block.bn2.bias, block.bn2.running_mean)
    small = same(model, X)
    assert [type(part) for part in small.layer2[0]] == [nn.Sequential, nn.ReLU]
    assert torch.equal(small.layer2[0].downsample[0].weight, block.downsample[0].weight)


def test_a_branch_that_is_constant_lives_on_as_a_shift() -> None:
    model = trained(resnet(20))
    block = model.layer1[1]
    zero(block.conv2.weight)
    optimizer = torch.optim.SGD(
        [
            {"params": [p for p in model.parameters() if p.dim() > 1]},
            {"params": [p for p in model.parameters() if p.dim() == 1]},
        ],
        lr=0.1,
    )
    small = same(model, X, inplace=True, optimizer=optimizer)
    assert small is model
    (shift,) = [module for module in model.modules() if isinstance(module, Shift)]
    assert shift.value.shape == (16, 1, 1)
    held = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
    assert sorted(id(p) for p in model.parameters()) == sorted(held[0] + held[1])
    assert id(shift.value) in held[1]  # where the norm's bias was


@pytest.mark.parametrize("act", [F.relu, torch.tanh, F.silu])
def test_blocks_of_any_code(act: Callable[[Tensor], Tensor]) -> None:
    model = trained(nn.Sequential(nn.Conv2d(3, 6, 1), Block(6, act), Block(6, act), nn.Flatten(), nn.Linear(384, 2)))
    zero(model[1].conv2.weight, model[1].conv2.bias)
    small = same(model, X)
    assert isinstance(small[1], nn.Identity)
    assert isinstance(small[2], Block)


def test_halves_of_a_block_become_zero() -> None:
    model = trained(nn.Sequential(nn.Linear(3, 6), Transformer(), nn.Linear(6, 2)))
    zero(model[1].mlp[2].weight, model[1].mlp[2].bias)
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    small = same(model, x)
    assert isinstance(small[1].mlp, Zero)
    assert isinstance(small[1].norm2, nn.Identity)
    assert isinstance(small[1].norm1, nn.LayerNorm)
    # The other half as well, with a bias left: it is the same at every place.
    zero(model[1].mix[2].weight)
    small = same(model, x)
    assert [name for name, _ in small[1].named_parameters()] == ["shift.value"]


def test_blocks_that_start_at_zero_stay() -> None:
    """The gains of a new network's last norms, and scales of blocks."""
    model = resnet(8).double()
    assert count_params(same(model, X)) == count_params(model)

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3))
            self.scale = nn.Parameter(torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.scale * self.block(x)

    model = nn.Sequential(nn.Linear(3, 3), Scaled(), nn.Linear(3, 2)).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    assert count_params(same(model, x)) == count_params(model)
    zero(model[1].block[2].weight, model[1].block[2].bias)
    assert count_params(same(model, x)) < count_params(model)


def test_closed_gates_take_blocks_along() -> None:
    model = swap_activations(trained(resnet(14)), X, learn="width")
    gates = dict(model.named_modules())["layer2.1.act1"]
    zero(gates.w)
    small = same(model, X)
    assert type(small.layer2[1] if len(small.layer2) > 1 else nn.Identity()) in (nn.Identity, nn.Sequential)
    assert "layer2.1.conv1.weight" not in dict(small.named_parameters())


class Indexed(nn.Module):
    """Code that does more with a block than to call it."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = Block(3), nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x) + self.block.conv1.bias.sum())


def test_code_that_looks_inside_keeps_its_block() -> None:
    model = trained(Indexed())
    zero(model.block.conv2.weight, model.block.conv2.bias)
    assert isinstance(same(model, X).block, Block)


def test_a_model_that_is_used_twice_keeps_its_block() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.head = Block(3), nn.Conv2d(3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.block(self.block(x)))

    model = trained(Twice())
    zero(model.block.conv2.weight, model.block.conv2.bias)
    assert isinstance(same(model, X).block, Block)


def test_optimizer_masks_followers_and_hooks_go_along() -> None:
    model = trained(resnet(14))
    block = model.layer1[1]
    average = torch.optim.swa_utils.AveragedModel(model)
    masks = Masks(model, {name: torch.ones_like(p, dtype=torch.bool) for name, p in model.named_parameters()})
    gone = torch.zeros_like(block.conv2.weight, dtype=torch.bool)
    masks.update({"layer1.1.conv2.weight": gone})
    zero(block.bn2.bias, block.bn2.running_mean, average.module.layer1[1].bn2.bias)
    zero(average.module.layer1[1].bn2.running_mean, average.module.layer1[1].conv2.weight)
    optimizer = torch.optim.Adam(model.parameters())
    masks.attach(optimizer)
    model(X).square().mean().backward()
    optimizer.step()
    zero(block.bn2.bias, block.bn2.running_mean)
    seen = []
    model.layer1.register_forward_hook(lambda *_: seen.append(1))
    averaged = average.eval()(X)
    same(model, X, inplace=True, optimizer=optimizer, followers=average, masks=masks)
    assert list(model.layer1._modules) == list(average.module.layer1._modules) == ["0"]
    assert seen
    assert (average(X) - averaged).abs().max() <= 1e-10 * averaged.abs().max()
    live = {name for name, _ in model.named_parameters()}
    assert set(masks) == live
    assert {name: mask.shape for name, mask in masks.items()} == {n: p.shape for n, p in model.named_parameters()}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}
    assert {id(p) for p in optimizer.state} == {id(p) for p in held}
    # Everything still works together.
    optimizer.zero_grad()
    model.train()(X).square().mean().backward()
    optimizer.step()
    average.update_parameters(model)
    assert masks.density() == 1.0


def test_what_fails_brings_everything_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(resnet(8))
    zero(model.layer1[0].conv2.weight)
    average = torch.optim.swa_utils.AveragedModel(model)
    masks = Masks(model, {"layer1.0.conv2.weight": torch.zeros(16, 16, 3, 3, dtype=torch.bool)})
    optimizer = torch.optim.Adam(model.parameters())
    model(X).square().mean().backward()
    optimizer.step()
    zero(model.layer1[0].conv2.weight)
    before = copy.deepcopy((dict(model.state_dict()), optimizer.state_dict(), average.state_dict(), dict(masks)))
    modules = list(model.modules())

    def fails(*_: object) -> bool:
        raise RuntimeError("stop")

    monkeypatch.setattr(sys.modules["resgrow.surgery.compact"], "_narrow", fails)
    with pytest.raises(RuntimeError, match="stop"):
        compact(model, X, inplace=True, optimizer=optimizer, followers=[average], masks=masks)
    assert list(map(id, model.modules())) == list(map(id, modules))
    after = (dict(model.state_dict()), optimizer.state_dict(), average.state_dict(), dict(masks))
    torch.testing.assert_close(after, before, rtol=0, atol=0)


@pytest.mark.parametrize(("to", "left"), [(1, 5), (2, 6), (4, 8), (8, 8), (16, 16), (3, 6)])
def test_round_to(to: int, left: int) -> None:
    model = trained(nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 2)))
    zero(model[0].weight[5:], model[0].bias[5:])
    small = same(model, X, round_to=to)
    assert small[0].weight.shape[0] == left
    assert small[3].weight.shape[1] == left * 36


def test_groups_are_rounded_in_channels() -> None:
    model = trained(nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, groups=8), nn.ReLU(), nn.Conv2d(16, 2, 1)))
    zero(model[3].weight[:, 6:])
    assert same(model, X)[1].weight.shape[0] == 6
    assert same(model, X, round_to=4)[1].weight.shape[0] == 8


class Named(nn.Module):
    """Keyword arguments, and several results by name."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(4, 6), nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, *, a: Tensor, b: Tensor) -> dict[str, object]:
        hidden = (self.left(a) + self.right(b)).relu()
        return {"logits": self.head(hidden), "all": (hidden.mean(1), None), "count": 3}


def test_named_arguments_and_results() -> None:
    model = trained(Named())
    zero(model.head.weight[:, 2:])
    inputs = {"a": torch.randn(5, 4, dtype=torch.float64), "b": torch.randn(5, 3, dtype=torch.float64)}
    small = compact(model, inputs)
    torch.testing.assert_close(small(**inputs), model(**inputs), rtol=1e-12, atol=0)
    assert small.left.weight.shape[0] == 6  # the mean is a result, too


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"round_to": 0}, "round_to must be"),
        ({"round_to": True}, "round_to must be"),
        ({"followers": resnet(8)}, "inplace=True only"),
        ({"inplace": True, "followers": resnet(8)}, "followers must have the model's"),
        ({"inplace": True, "masks": Masks(nn.Linear(1, 1), {})}, "masks must be those of the model"),
    ],
)
def test_refusals(options: dict[str, object], message: str) -> None:
    model = trained(resnet(14))
    with pytest.raises(ValueError, match=message):
        compact(model, X, **options)


def test_refuses_other_types() -> None:
    model = trained(resnet(8))
    for name in ("followers", "masks"):
        with pytest.raises(TypeError, match=f"{name} must be"):
            compact(model, X, inplace=True, **{name: [3]})
