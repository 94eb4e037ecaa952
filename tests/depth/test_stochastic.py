"""Stochastic depth by hooks: what it does to a model, to copies of it, and what it learns of the branches."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.utils.checkpoint import checkpoint

import resgrow
from resgrow.depth import StochasticDepth, stochastic_depth
from resgrow.nn import Residual, resnet

X = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def linear_net(blocks: int = 3) -> nn.Sequential:
    """Linear in its input and in each branch."""
    torch.manual_seed(0)
    branches = (Residual(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 5))) for _ in range(blocks))
    return nn.Sequential(nn.Linear(5, 5), *branches, nn.Linear(5, 2)).double().train()


def images() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = resnet(14, 0.25).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model, torch.randn(4, 3, 8, 8, dtype=torch.float64)


def by_hand(model: nn.Sequential, x: Tensor, factors: dict[str, Tensor]) -> Tensor:
    for name, module in model.named_children():
        x = x + factors[name] * module.branch(x) if isinstance(module, Residual) else module(x)
    return x


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_rates_by_schedule_in_forward_order() -> None:
    depth = stochastic_depth(linear_net(4), X, rate=0.4)
    assert list(depth.rates) == ["1", "2", "3", "4"]
    assert list(depth.rates.values()) == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert set(stochastic_depth(linear_net(4), X, rate=0.4, schedule="uniform").rates.values()) == {0.4}
    assert list(stochastic_depth(linear_net(), X, exclude=("2.branch.0",)).rates) == ["1", "3"]


def test_evaluation_is_the_model_to_the_bit() -> None:
    model, x = images()
    expected, names, before = model.eval()(x), list(model.state_dict()), model.forward
    depth = stochastic_depth(model, x, rate=0.5)
    assert torch.equal(model(x), expected)
    assert list(model.state_dict()) == names
    assert model.forward == before
    assert depth.decisions() == {}
    assert list(depth.rates) == ["layer1.0", "layer1.1", "layer2.1", "layer3.1"]


@pytest.mark.parametrize("per_sample", [False, True])
def test_dropped_branches_are_gone_and_others_scaled(per_sample: bool) -> None:
    model = linear_net()
    depth = stochastic_depth(model, X, rate=0.5, per_sample=per_sample)
    seen = set()
    for _ in range(12):
        actual = model(X)
        kept = depth.decisions()
        factors = {path: (kept[path].double() / (1 - rate)).view(-1, 1) for path, rate in depth.rates.items()}
        depth.detach()
        assert (actual - by_hand(model, X, factors)).abs().max() < 1e-14
        depth.attach()
        assert {each.shape for each in kept.values()} == {(8,) if per_sample else ()}
        seen |= {tuple(each.flatten().tolist()) for each in kept.values()}
    assert len(seen) > 1


def test_blocks_with_an_activation_behind_the_addition() -> None:
    """Dropped, the block is its activation of the shortcut, exactly."""
    model, x = images()
    depth = stochastic_depth(model.train(), x, rate=0.999999, schedule="uniform")
    seen: list[tuple[Tensor, Tensor]] = []
    model.layer2[1].register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    model(x)
    assert not any(depth.decisions().values())
    assert torch.equal(seen[0][1], seen[0][0])  # not negative, for it comes from a ReLU


def test_the_mean_over_all_decisions_is_the_evaluation() -> None:
    """Exactly, for a net that is linear in each branch's factor, with each decision weighted by its probability."""
    model = linear_net()
    depth = stochastic_depth(model, X, rate=0.6)
    expected = copy.deepcopy(model).eval()(X)
    total, left = torch.zeros_like(expected), 1.0
    found: set[tuple[bool, ...]] = set()
    while left > 1e-12:
        out = model(X)
        kept = tuple(bool(each) for each in depth.decisions().values())
        if kept not in found:
            found.add(kept)
            chances = [1 - r if k else r for k, r in zip(kept, depth.rates.values(), strict=True)]
            weight = torch.tensor(chances, dtype=torch.float64).prod()
            total, left = total + weight * out, left - float(weight)
    assert len(found) == 8
    assert (total - expected).abs().max() < 1e-13


def test_branches_are_dropped_at_their_rates() -> None:
    model = linear_net()
    depth = stochastic_depth(model, torch.ones(2000, 5).double(), rate=0.3, per_sample=True)
    model(torch.ones(20000, 5).double())
    for path, kept in depth.decisions().items():
        assert float(kept.double().mean()) == pytest.approx(1 - depth.rates[path], abs=0.02)


def test_hooks_go_without_a_trace() -> None:
    model = linear_net()
    expected = model(X)
    depth = stochastic_depth(model, X, rate=0.9, schedule="uniform")
    assert hooks(model) == 4
    depth.detach()
    assert hooks(model) == 0
    assert torch.equal(model(X), expected)
    assert not depth.attached
    assert depth.attach() is depth.attach()
    assert hooks(model) == 4


def test_frozen_blocks_keep_their_branches() -> None:
    model = linear_net()
    depth = stochastic_depth(model, X, rate=0.999, schedule="uniform")
    model[2].eval()
    expected = by_hand(model, X, {"1": torch.zeros(()), "2": torch.ones(()), "3": torch.zeros(())})
    assert (model(X) - expected).abs().max() < 1e-14
    assert list(depth.decisions()) == ["1", "3"]
    depth.observe(1.0)


def train(model: nn.Module, depth: StochasticDepth, optimizer: Any, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.mse_loss(model(X), X[:, :2])
        loss.backward()
        optimizer.step()
        depth.observe(loss)


def test_training_resumes_bit_for_bit() -> None:
    def made() -> tuple[nn.Module, StochasticDepth, SGD]:
        model = linear_net()
        return model, stochastic_depth(model, X, rate=0.5, seed=3), SGD(model.parameters(), 0.05)

    whole = made()
    train(*whole, 12)
    first, again = made(), made()
    train(*first, 5)
    file = io.BytesIO()
    torch.save([each.state_dict() for each in first], file)
    file.seek(0)
    for each, state in zip(again, torch.load(file, weights_only=True), strict=True):
        each.load_state_dict(state)
    train(*again, 7)
    assert all(torch.equal(a, b) for a, b in zip(again[0].parameters(), whole[0].parameters(), strict=True))
    assert again[1].table() == whole[1].table()
    assert again[1].importance() == whole[1].importance()


def test_decisions_that_are_not_observed_yet_are_saved() -> None:
    model = linear_net()
    depth = stochastic_depth(model, X, rate=0.5)
    model(X)
    other = stochastic_depth(linear_net(), X, rate=0.5, seed=9)
    other.load_state_dict(depth.state_dict())
    assert other.decisions() == depth.decisions()
    other.observe(1.0)
    assert depth.decisions()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_copies_have_hooks_of_their_own(copied: Callable[[Any], Any]) -> None:
    model = linear_net()
    depth = stochastic_depth(model, X, rate=0.5)
    train(model, depth, SGD(model.parameters(), 0.01), 3)
    other, others = copied((model, depth))
    expected = [(model(X), depth.decisions()) for _ in range(4)]
    for out, kept in expected:
        assert torch.equal(other(X), out)
        assert others.decisions() == kept
    assert others.table() == depth.table()
    others.detach()
    assert (hooks(other), hooks(model)) == (0, 4)
    alone = copied(model)
    depth.detach()
    assert hooks(alone) == 4
    assert not torch.equal(alone(X), model(X))


def test_checkpoints_compute_the_same_branches_again() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = linear_net()

        def forward(self, x: Tensor) -> Tensor:
            if not self.training:
                return self.net(x)
            for part in self.net:
                x = checkpoint(part, x, use_reentrant=False)
            return x

    plain = linear_net()
    model = Checkpointed()
    depths = [stochastic_depth(each, X, rate=0.5, seed=1) for each in (plain, model.train())]
    for _ in range(4):
        for each in (plain, model):
            each.zero_grad()
            each(X).square().sum().backward()
        assert list(depths[0].decisions().values()) == list(depths[1].decisions().values())
        for one, other in zip(plain.parameters(), model.parameters(), strict=True):
            assert torch.equal(one.grad, other.grad)


def test_compiled_code_draws_as_the_model_does() -> None:
    plain, model = linear_net(), linear_net()
    depths = [stochastic_depth(each, X, rate=0.5) for each in (plain, model)]
    compiled = torch.compile(model, backend="aot_eager")
    for _ in range(5):
        assert (compiled(X) - plain(X)).abs().max() < 1e-14
        assert depths[0].decisions() == depths[1].decisions()
    assert (compiled.eval()(X) - plain.eval()(X)).abs().max() < 1e-14
    depths[1].detach()
    assert (compiled.train()(X) - model.eval()(X)).abs().max() < 1e-14
    torch.compiler.reset()


def test_hooks_that_come_after_compilation_are_missed_by_name() -> None:
    model = linear_net()
    compiled = torch.compile(model, backend="eager")
    compiled(X)
    depth = stochastic_depth(compiled, X, rate=0.5)
    compiled(X)
    if not depth.decisions():
        with pytest.raises(ValueError, match=r"compile it again after torch\.compiler\.reset"):
            depth.observe(1.0)
    torch.compiler.reset()
    compiled(X)
    depth.observe(1.0)


def test_statistics_tell_a_vital_branch_from_a_useless_one() -> None:
    model = linear_net()
    with torch.no_grad():
        model[1].branch[1].weight.mul_(1e-3)
        model[1].branch[1].bias.zero_()
        model[2].branch[1].weight.mul_(5)
    target = copy.deepcopy(model).eval()(X)
    depth = stochastic_depth(model, X, rate=0.3, schedule="uniform")
    for _ in range(300):
        depth.observe(F.mse_loss(model(X), target))
    found = depth.importance()
    (useless, _), (vital, error) = found["1"], found["2"]
    assert vital > 10 * error
    assert abs(useless) < 4 * found["1"][1]
    assert max(found, key=lambda path: found[path][0]) == "2"
    lines = depth.table().splitlines()
    assert lines[0].split() == ["branch", "rate", "with", "loss", "without", "loss", "difference", "error"]
    assert [line.split()[0] for line in lines[1:]] == ["1", "2", "3"]


def test_samples_one_by_one_learn_more_of_a_step() -> None:
    errors = []
    for per_sample in (False, True):
        model = linear_net()
        nn.init.normal_(model[2].branch[1].weight, std=3)
        target = copy.deepcopy(model).eval()(X)
        depth = stochastic_depth(model, X, rate=0.4, schedule="uniform", per_sample=per_sample)
        for _ in range(250):
            losses = (model(X) - target).square().mean(1)
            depth.observe(losses if per_sample else losses.mean())
        difference, error = depth.importance()["2"]
        errors.append(error)
        assert difference > 3 * error
        numbers = depth.table().replace(",", "").splitlines()[1].split()
        assert int(numbers[2]) + int(numbers[4]) == (8 * 249 if per_sample else 249)
    assert errors[1] < errors[0]


def test_surgery_takes_a_branch_out_and_the_others_go_on() -> None:
    model, x = images()
    depth = stochastic_depth(model, x, rate=0.5)
    model.train()
    for _ in range(4):
        model(x)
        depth.observe(1.0)
    before = depth.importance(), depth.table().splitlines()
    units = resgrow.surgery.make_units(model, "residual", example_inputs=x)
    assert units.groups == tuple(depth.rates)
    masks = resgrow.surgery.Masks(model, units.to_masks([torch.tensor([path != "layer2.1"]) for path in units.groups]))
    masks.apply()
    resgrow.compact(model, x, inplace=True, masks=masks)
    model.train()(x)  # the hooks that are left do no harm
    depth.observe(1.0)
    depth.refresh()
    assert list(depth.rates) == ["layer1.0", "layer1.1", "layer3.1"]
    assert list(depth.rates.values()) == pytest.approx([0.5 / 3, 1 / 3, 0.5])
    assert hooks(model) == 4
    assert depth.table().splitlines()[1].split()[2] == str(int(before[1][1].split()[2]) + 1)
    resgrow.deepen(model, "layer3", example_inputs=x)
    depth.refresh()
    assert list(depth.rates)[-1] == "layer3.2"
    assert depth.importance()["layer3.2"][1] == float("inf")


def test_statistics_stay_with_a_branch_whose_name_becomes_its_modules() -> None:
    """Where a layer loses one of two branches, the other is all that it has."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True)).double().train()
    x = torch.randn(3, 7, 8, dtype=torch.float64)
    depth = stochastic_depth(model, x, rate=0.5)
    assert list(depth.rates) == ["0.self_attn", "0.linear2"]
    for number in range(9):
        model(x)
        depth.observe(float(number % 3))
    before = depth.importance()["0.linear2"]
    units = resgrow.surgery.make_units(model, "residual", example_inputs=x)
    resgrow.surgery.Masks(model, units.to_masks([torch.tensor([False]), torch.tensor([True])])).apply()
    resgrow.compact(model, x, inplace=True)
    depth.refresh()
    assert depth.importance() == {"0": before}


class Between(nn.Module):
    """Two branches, one of which ends in what no module returns."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 5)
        self.scale = nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale * (0.5 * self.a(x))
        return x + F.linear(x, self.b.weight)


def test_multiples_of_what_a_module_returns_and_what_none_returns() -> None:
    depth = stochastic_depth(Between().double(), X, rate=0.2)
    assert list(depth.rates) == ["scale"]
    assert depth.left_out == {"b": "no module of its own, called once, returns it"}


def test_attention_and_feed_forward_of_torchs_encoder() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).double()
    x = torch.randn(3, 7, 8, dtype=torch.float64)
    depth = stochastic_depth(model, x, rate=1 - 1e-9, schedule="uniform", per_sample=True)
    assert len(depth.rates) == 4
    expected = x
    for each in model.layers:
        expected = each.norm2(each.norm1(expected))
    assert (model.train()(x) - expected).abs().max() < 1e-12


def test_bad_arguments() -> None:
    model = linear_net()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for options, words in (
        ({"rate": 1.0}, "rate must be"),
        ({"rate": -0.1}, "rate must be"),
        ({"rate": True}, "rate must be"),
        ({"schedule": "cosine"}, "schedule must be"),
        ({"memory": 1}, "memory must be"),
        ({"exclude": ("nothing",)}, "stochastic_depth: exclude must match"),
        ({"exclude": ("*.branch",)}, "got no such branch"),
    ):
        with pytest.raises(ValueError, match=words):
            stochastic_depth(model, X, **options)
    with pytest.raises(ValueError, match="DataParallel"):
        stochastic_depth(nn.DataParallel(model), X)
    with pytest.raises(ValueError, match="add something to the very values"):
        stochastic_depth(nn.Sequential(nn.Linear(5, 2)).double(), X)
    with pytest.raises(TypeError, match="exclude must be a sequence"):
        stochastic_depth(model, X, exclude="1")
    assert hooks(model) == 0
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_bad_losses_and_states() -> None:
    model = linear_net()
    depth = stochastic_depth(model, X, rate=0.5)
    with pytest.raises(ValueError, match="must come before each call"):
        depth.observe(1.0)
    model(X)
    for loss, words in ((float("nan"), "finite"), (torch.ones(8), r"shape of the decisions, \(\)")):
        with pytest.raises(ValueError, match=words):
            depth.observe(loss)
    depth.observe(torch.tensor(1.0, requires_grad=True))
    with pytest.raises(ValueError, match=r"branches and rates must be the same \(got 1 0\.25, 2 0\.5, here 1 0\.167"):
        depth.load_state_dict(stochastic_depth(linear_net(2), X, rate=0.5).state_dict())


def test_samples_that_the_branch_does_not_keep_apart() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.mix(x.T).T

    model = nn.Sequential(Mixed()).double()
    with pytest.raises(ValueError, match=r"0: shape \(5, 8\) of its result does not begin with the 8 samples"):
        stochastic_depth(model, X, per_sample=True)
    assert list(stochastic_depth(model, X).rates) == ["0"]
