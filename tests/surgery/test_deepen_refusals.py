"""What deepen refuses, and why; model, optimizer, followers and masks are then as they were, to the bit."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from deepen_nets import VECTORS, encoder, made, plain, step, with_act
from structure_nets import Net, assert_alike, everything
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import LBFGS, Adam

from resgrow import Masks, deepen
from resgrow.nn import Residual


def branch(last: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 5), Residual(nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 5), last)))


class PostActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(5, 9), nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.outer(self.inner(x).relu()))


class Counted(nn.Module):
    """Divides by the number of its blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(branch(nn.Identity())[1] for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x / len(self.blocks)


class Dense(nn.Module):
    """Returns the result of every block."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(branch(nn.Identity())[1] for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        outs = [x]
        for block in self.blocks:
            outs.append(block(outs[-1]))
        return torch.cat(outs, 1)


def dead() -> nn.Module:
    """Nothing arrives at the block, and it adds nothing of its own."""
    stem = nn.Linear(5, 5)
    nn.init.zeros_(stem.weight)
    nn.init.zeros_(stem.bias)
    inner = nn.Sequential(nn.Linear(5, 9, bias=False), nn.Tanh(), nn.Linear(9, 5, bias=False))
    return nn.Sequential(stem, Residual(inner))


def half_frozen() -> nn.Module:
    model = branch(nn.Identity())
    model[1].requires_grad_(False)
    return model


def frozen_layer() -> nn.Module:
    model = with_act(nn.ReLU())()
    model[0].requires_grad_(False)
    return model


def no_statistics() -> nn.Module:
    norm = nn.BatchNorm1d(6, track_running_stats=False)
    return plain(nn.Linear(5, 6), norm, nn.ReLU(), nn.Linear(6, 2))()


BAD: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], type[Exception], str]] = {
    "unknown": (lambda: branch(nn.Identity()), {"name": "1.brunch"}, ValueError, r"got '1.brunch'\); close to it: 1"),
    "init": (lambda: branch(nn.Identity()), {"init": "gradmax"}, ValueError, r"auto, zero, identity, residual \(got"),
    "inputs": (lambda: branch(nn.Identity()), {"example_inputs": 3}, TypeError, r"deepen: example_inputs"),
    "small inputs": (lambda: branch(nn.Identity()), {"example_inputs": VECTORS[:, :2]}, ValueError, r"does not run"),
    "not finite": (lambda: branch(nn.Identity()), {"example_inputs": VECTORS * torch.nan}, ValueError, r"be finite"),
    "no tensor": (lambda: Net(lambda m, x: [m.a(x).sum().item()], a=nn.Linear(5, 2)), {}, TypeError, r"got list"),
    "optimizer": (lambda: branch(nn.Identity()), {"optimizer": [3]}, TypeError, r"Optimizer \(got int"),
    "followers": (lambda: branch(nn.Identity()), {"followers": nn.Linear(2, 2)}, ValueError, r"copies of the model"),
    "no module": (lambda: branch(nn.Identity()), {"followers": [3]}, TypeError, r"must be modules \(got int"),
    "masks": (lambda: branch(nn.Identity()), {"masks": [{}]}, TypeError, r"must be resgrow.Masks, .*\(got dict"),
    "no block": (with_act(nn.ReLU()), {"name": ""}, ValueError, r"0: shape \(6, 5\) becomes"),
    "a layer as a block": (with_act(nn.ReLU()), {"name": "0", "init": "zero"}, ValueError, r"0 \(Linear\) has to add"),
    "block of another shape": (
        lambda: nn.Sequential(nn.Sequential(nn.Linear(5, 6), nn.Tanh()), nn.Linear(6, 2)),
        {"name": "0"},
        ValueError,
        r"0.1: it has no parameters; 0.0: shape \(6, 5\) becomes \(6, 6\); 0: shape",
    ),
    "a block as an identity": (
        lambda: branch(nn.Identity()),
        {"name": "1", "init": "identity"},
        ValueError,
        r"must be a Linear or a convolution in an nn.Sequential \(got 1, a Residual in a Sequential",
    ),
    "no activation": (with_act(nn.ReLU()), {"name": "2"}, ValueError, r"behind 2 in its Sequential \(got nothing"),
    "not in a Sequential": (
        lambda: Net(lambda m, x: m.a(x), a=nn.Linear(5, 2)),
        {"name": "a"},
        ValueError,
        r"got a, a Linear in a Net",
    ),
    "tanh": (with_act(nn.Tanh()), {"name": "0"}, ValueError, r"as ReLU is \(got Tanh behind 0, which changes"),
    "gelu": (with_act(nn.GELU()), {"name": "0"}, ValueError, r"got GELU behind 0.*use init='residual'"),
    "sigmoid": (with_act(nn.Sigmoid()), {"name": "0"}, ValueError, r"got Sigmoid behind 0"),
    "softmax": (with_act(nn.Softmax(1)), {"name": "0"}, ValueError, r"got Softmax '1', Linear '2'"),
    "statistics of the batch": (no_statistics, {"name": "0"}, ValueError, r"and a gain only \(got 1,"),
    "layer norm": (
        plain(nn.Linear(5, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 2)),
        {"name": "0"},
        ValueError,
        r"got 1, a LayerNorm.*use init='residual'",
    ),
    "ends in relu": (lambda: branch(nn.ReLU()), {}, ValueError, r"1: it ends in relu, .*behind which zeros would not"),
    "ends in sigmoid": (lambda: branch(nn.Sigmoid()), {}, ValueError, r"1: it ends in sigmoid"),
    "negative behind relu": (
        lambda: nn.Sequential(nn.Linear(5, 5), nn.Sequential(nn.Linear(5, 5), nn.Tanh()), PostActivation()),
        {"name": "1"},
        RuntimeError,
        r"another result of 1_1, whose input goes through relu\); everything has been undone. ReLU behind",
    ),
    "counts": (Counted, {"name": "blocks"}, RuntimeError, r"to the bit, with blocks.2 \(got a difference of"),
    "returns all": (Dense, {"name": "blocks"}, RuntimeError, r"got shapes \[\(6, 20\)\] instead of \[\(6, 15\)\]"),
    "half": (half_frozen, {}, ValueError, r"got 1.branch.2.weight, which has requires_grad=False"),
    "frozen layer": (frozen_layer, {"name": "0"}, ValueError, r"got 0.weight, which has requires_grad=False"),
    "frozen layer, residual": (
        frozen_layer,
        {"name": "0", "init": "residual"},
        ValueError,
        r"got 0.weight, which has requires_grad=False",
    ),
    "dead inputs": (dead, {}, RuntimeError, r"must have a gradient \(got none for 2.branch.2"),
}  # fmt: skip


def masked(model: nn.Module) -> Masks:
    names = [name for name, parameter in model.named_parameters() if parameter.dim() > 1][-1:]
    return Masks(model, {name: torch.ones_like(model.get_parameter(name), dtype=torch.bool) for name in names})


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_leaves_everything_as_it_was(kind: str) -> None:
    make, arguments, error, message = BAD[kind]
    model = made(make)
    optimizer = Adam(model.parameters(), lr=1e-9)
    if kind not in ("no tensor", "dead inputs"):
        step(model, VECTORS, optimizer)
    follower, masks = copy.deepcopy(model), masked(model)
    before = [everything(model, optimizer), everything(follower), [*masks.state_dict().items()]]
    groups = [list(group["params"]) for group in optimizer.param_groups]
    given: dict[str, Any] = {
        "name": "",
        "example_inputs": VECTORS,
        "optimizer": optimizer,
        "followers": [follower],
        "masks": [masks],
    }
    state = torch.get_rng_state()
    with pytest.raises(error, match=message):
        deepen(model, generator=torch.Generator().manual_seed(0), **{**given, **arguments})
    assert torch.equal(torch.get_rng_state(), state)
    after = [everything(model, optimizer), everything(follower), [*masks.state_dict().items()]]
    for one, other in zip(after, before, strict=True):
        assert_alike(one, other)
    for group, parameters in zip(optimizer.param_groups, groups, strict=True):
        assert all(p is q for p, q in zip(group["params"], parameters, strict=True))
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def test_a_change_that_fails_at_its_end_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(encoder)
    optimizer = torch.optim.Adagrad(model.parameters())
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    step(model, x, optimizer)
    follower, masks = copy.deepcopy(model), Masks(model, {"layers.0.linear1.weight": torch.ones(12, 8) > 0})
    before = [everything(model, optimizer), everything(follower)]

    def interrupted(*args: Any) -> None:
        assert len(model.layers) == len(follower.layers) == 3
        assert len(masks) == 2
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules[deepen.__module__], "_verify", interrupted)
    with pytest.raises(KeyboardInterrupt):
        deepen(model, "layers.0", example_inputs=x, optimizer=optimizer, followers=follower, masks=masks)
    assert_alike(everything(model, optimizer), before[0])
    assert_alike(everything(follower), before[1])
    assert list(masks) == ["layers.0.linear1.weight"]
    assert type(model.layers) is type(follower.layers) is nn.ModuleList


def test_optimizers_that_look_at_the_whole_weight_are_refused() -> None:
    model = made(lambda: branch(nn.Identity()))
    with pytest.raises(ValueError, match=r"deepen: the optimizer must work weight by weight \(got LBFGS"):
        deepen(model, "", example_inputs=VECTORS, optimizer=LBFGS(model.parameters()))
    other = Adam(nn.Linear(2, 2).parameters())
    with pytest.raises(ValueError, match="holds none of them"):
        deepen(model, "", example_inputs=VECTORS, optimizer=other)
