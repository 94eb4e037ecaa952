"""Growth and both directions: what comes is worth it, what does not leaves no trace, and all of it can be resumed."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import resgrow
from resgrow import Budget, Controller, Trust
from resgrow.controller.probation import LONGEST, STILL, Probation
from resgrow.controller.shrink import LEAST, Removal, calibrated
from resgrow.controller.workshop import Shrunk

Batch = tuple[Tensor, Tensor]


def wave(count: int, seed: int = 0, k: float = 4.0) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        x = 2 * torch.rand(64, 1, generator=generator) - 1
        found.append((x, torch.sin(k * x)))
    return found


def network(width: int = 3, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(1, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, ctl: Controller | None, data: list[Batch]) -> None:
    for x, y in data:
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()
        if ctl is not None:
            ctl.step((x, y))


def setup(
    budget: Budget, width: int = 3, kind: type = torch.optim.Adam, lr: float = 0.01, **options
) -> tuple[nn.Sequential, torch.optim.Optimizer, Controller]:
    model = network(width)
    optimizer = kind(model.parameters(), lr)
    options = {"every": 20, "held": wave(4, seed=1), "example_inputs": torch.zeros(2, 1)} | options
    return model, optimizer, Controller(model, optimizer, nn.MSELoss(), budget, **options)


def numbers(model: nn.Module, optimizer: torch.optim.Optimizer, ctl: Controller) -> list[Tensor]:
    """Everything that a move may change, in one order."""
    state = [t for p in model.parameters() for t in optimizer.state.get(p, {}).values() if isinstance(t, Tensor)]
    return [t.detach().clone() for t in (*model.state_dict().values(), *state, *ctl.masks.values())]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("init", ["tiny", "gradmax", "random"])
def test_a_network_that_is_too_small_grows_until_its_loss_is_low_enough(init):
    model, optimizer, ctl = setup(Budget(loss=0.02), width=1, init=init)
    assert not ctl.met
    for batch in wave(4000):
        train(model, optimizer, ctl, [batch])
        if ctl.met and not ctl.on_probation and ctl.history:
            break
    grown = [move for move in ctl.history if move.kind == "widen" and move.accepted]
    assert grown
    assert ctl.met
    assert ctl.cost["params"] == sum(p.numel() for p in model.parameters()) - sum(
        int((~mask).sum()) for mask in ctl.masks.values()
    )
    for move in grown:
        assert move.predicted < 0
        assert move.actual < 0
        assert move.ratio == pytest.approx(move.actual / move.predicted)
        assert move.count == sum(move.where.values())
        assert move.price > 0
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}


def test_measured_loss_is_that_of_the_grown_model():
    held = wave(4, seed=1)
    model, optimizer, ctl = setup(Budget(loss=1e-6))
    for batch in wave(1500):
        train(model, optimizer, None, [batch])
        if ctl.step(batch) is not None:
            with torch.no_grad():
                loss = sum(F.mse_loss(model(x), y).item() for x, y in held) / len(held)
            assert ctl.history[-1].loss_after == pytest.approx(loss, rel=1e-5)
            break
    else:
        pytest.fail("nothing grew")


def test_a_network_that_is_too_large_shrinks_as_far_as_its_loss_allows():
    model, optimizer, ctl = setup(Budget(loss=0.02), width=24)
    before = ctl.cost["params"]
    train(model, optimizer, ctl, wave(3000))
    assert ctl.cost["params"] < before / 2
    small = resgrow.compact(model, torch.zeros(2, 1))
    assert sum(p.numel() for p in small.parameters()) == ctl.cost["params"]


def test_growth_that_is_not_worth_it_leaves_no_trace(monkeypatch):
    monkeypatch.setattr("resgrow.controller.growing.WORTH", 1e9)
    monkeypatch.setattr("resgrow.controller.growing.ENOUGH", 10**9)
    model, optimizer, ctl = setup(Budget(loss=1e-6), every=10)
    tried = 0
    for batch in wave(800):
        train(model, optimizer, None, [batch])
        before = numbers(model, optimizer, ctl)
        shapes = [layer.extra_repr() for layer in model]
        assert ctl.step(batch) is None
        assert same(before, numbers(model, optimizer, ctl))
        assert shapes == [layer.extra_repr() for layer in model]
        tried = len(ctl.history)
    assert tried > 1
    assert not any(move.accepted for move in ctl.history)


def test_a_network_whose_units_are_all_dead_grows_all_the_same():
    """No gradient tells of anything to gain, and the loss is above its limit."""
    model, optimizer, ctl = setup(Budget(loss=0.05), width=2)
    with torch.no_grad():
        model[0].bias.fill_(-100)
    train(model, optimizer, ctl, wave(2000))
    assert any(move.kind == "widen" and move.accepted for move in ctl.history)
    assert ctl.met


@pytest.mark.parametrize("unit", ["weight", (2, 1)])
def test_masked_parts_change_places_with_present_ones(unit):
    model, optimizer, ctl = setup(Budget(params=0.6), width=16, unit=unit, example_inputs=None)
    # Weights are missing where they are worth most: in the last layer.
    missing = torch.zeros(1, 16, dtype=torch.bool)
    missing[0, :4] = True
    middle = torch.arange(16)[:, None] < 8
    ctl.masks.update({"4.weight": missing, "2.weight": middle.expand(16, 16)})
    train(model, optimizer, ctl, wave(800))
    assert ctl.met
    kept = [move for move in ctl.history if move.accepted]
    regrown = [move for move in kept if move.kind == "regrow"]
    assert regrown
    assert all(move.unit == ("weight" if unit == "weight" else "block") for move in kept)
    assert ctl.masks["4.weight"].sum() > 4
    limit = int(0.6 * sum(p.numel() for p in model.parameters()))
    dear = [move for move in regrown if move.cost["params"] > limit]
    assert dear
    for move in dear:  # something goes for it in the same step
        assert any(other.cost["params"] <= limit for other in kept if other.step == move.step)
    for name, mask in ctl.masks.items():
        assert (model.get_parameter(name)[~mask] == 0).all()


def test_without_growth_only_removals_happen():
    model, optimizer, ctl = setup(Budget(params=0.5), width=16, unit="weight", grow=False)
    train(model, optimizer, ctl, wave(1500))
    assert {move.kind for move in ctl.history} == {"shrink"}


class Stream(nn.Module):
    """A stage of residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(1, 8)
        self.stage = nn.Sequential(resgrow.nn.Residual(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))))
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stage(self.stem(x)))


def test_residual_blocks_are_added():
    torch.manual_seed(0)
    model = Stream()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    ctl = Controller(
        model,
        optimizer,
        nn.MSELoss(),
        Budget(loss=1e-4),
        unit="residual",
        every=100,
        held=wave(4, seed=1, k=12),
        example_inputs=torch.zeros(2, 1),
    )
    train(model, optimizer, ctl, wave(800, k=12))
    deeper = [move for move in ctl.history if move.kind == "deepen" and move.accepted]
    assert deeper
    assert len(model.stage) == 1 + sum(move.where.get("stage", 0) for move in deeper)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_any_optimizer(kind):
    lr = 0.1 if kind is torch.optim.SGD else 0.01
    model, optimizer, ctl = setup(Budget(loss=0.05), width=1, kind=kind, lr=lr)
    train(model, optimizer, ctl, wave(1500))
    assert any(move.accepted and move.kind == "widen" for move in ctl.history)
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("at", [130, 260, 421, 700])
@pytest.mark.parametrize("width", [3, 24])
def test_a_killed_run_goes_on_bit_for_bit(at, width):
    data = wave(900)
    model, optimizer, ctl = setup(Budget(loss=0.03), width=width)
    train(model, optimizer, ctl, data[:at])
    file = io.BytesIO()
    torch.save([ctl.state_dict(), model.state_dict(), optimizer.state_dict()], file)
    train(model, optimizer, ctl, data[at:])

    file.seek(0)
    states = torch.load(file, weights_only=True)
    other, other_optimizer, other_ctl = setup(Budget(loss=0.03), width=width)
    other_ctl.load_state_dict(states[0])
    other.load_state_dict(states[1])
    other_optimizer.load_state_dict(states[2])
    train(other, other_optimizer, other_ctl, data[at:])
    assert other_ctl.history == ctl.history
    assert len(ctl.history) > 1
    assert same(numbers(model, optimizer, ctl), numbers(other, other_optimizer, other_ctl))


def test_a_copy_goes_on_alike():
    data = wave(700)
    model, optimizer, ctl = setup(Budget(loss=0.03), width=8)
    train(model, optimizer, ctl, data[:300])
    other, other_optimizer, other_ctl = copy.deepcopy((model, optimizer, ctl))
    train(model, optimizer, ctl, data[300:])
    before = numbers(model, optimizer, ctl)
    train(other, other_optimizer, other_ctl, data[300:])
    assert other_ctl.history == ctl.history
    assert same(before, numbers(other, other_optimizer, other_ctl))
    assert same(before, numbers(model, optimizer, ctl))


def test_block_by_block_it_waits_until_training_has_settled():
    model, optimizer, ctl = setup(Budget(params=0.5), width=16, blockwise=True, grow=False)
    for batch in wave(600):
        train(model, optimizer, None, [batch])
        tried = len(ctl.history)
        last = list(ctl._course.losses)
        ctl.step(batch)
        if len(ctl.history) > tried:
            before, known = ctl.history[-1].loss_before, ctl._course.uninformed - last[-1]
            assert before >= last[-1] - 0.05 * max(last[-1], 0.1 * known) - 1e-9
    assert ctl.history[0].fraction > 0.1
    assert any(move.accepted for move in ctl.history)


def test_stochastic_depth_tells_what_residual_blocks_are_worth():
    torch.manual_seed(0)
    blocks = [resgrow.nn.Residual(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))) for _ in range(3)]
    model = nn.Sequential(nn.Linear(1, 8), *blocks, nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    x = torch.zeros(2, 1)
    depth = resgrow.stochastic_depth(model, x, rate=0.3)
    ctl = Controller(
        model,
        optimizer,
        nn.MSELoss(),
        Budget(params=0.8),
        unit="residual",
        grow=False,
        confirm=0,
        every=50,
        held=wave(4, seed=1),
        example_inputs=x,
        depth=depth,
    )
    for inputs, target in wave(400):
        optimizer.zero_grad()
        loss = F.mse_loss(model(inputs), target)
        loss.backward()
        optimizer.step()
        depth.observe(loss)
        worth = {path: difference for path, (difference, _) in depth.importance().items()}
        ctl.step((inputs, target))
        if ctl.history:
            break
    move = ctl.history[0]
    assert move.unit == "residual"
    (gone,) = move.where
    assert worth[gone] == min(worth.values())
    assert move.predicted == pytest.approx(max(0.0, worth[gone]))


def test_a_removal_that_training_does_not_recover_from_is_undone_to_the_bit(monkeypatch):
    monkeypatch.setattr("resgrow.controller.probation.LONGEST", 1)
    model, optimizer, ctl = setup(Budget(loss=0.02), width=8, every=10, trust=Trust(fraction=0.3))
    data = iter(wave(4000))
    train(model, optimizer, None, [next(data) for _ in range(1500)])
    before: list[Tensor] = []
    for batch in data:
        train(model, optimizer, None, [batch])
        now = numbers(model, optimizer, ctl)
        ctl.step(batch)
        if ctl.history and ctl.history[-1].kind == "restore":
            assert same(before, numbers(model, optimizer, ctl))
            removal = next(move for move in reversed(ctl.history) if move.kind == "shrink")
            assert ctl.history[-1].where == removal.where
            assert ctl.history[-1].loss_after == pytest.approx(removal.loss_before)
            return
        if ctl.history and ctl.history[-1].step == ctl._course.steps and ctl._limit.probation is not None:
            before = now
    pytest.fail("nothing was undone")


def test_probation_ends_with_success_stillness_or_time():
    assert Probation({}, limit=1.0).verdict([2.0, 0.9]) is None  # one look alone can be chance
    assert Probation({}, limit=1.0).verdict([2.0, 0.9, 0.9, 0.9]) is True
    still = Probation({}, limit=1.0)
    assert [still.verdict([2.0] * 3) for _ in range(STILL)] == [None] * (STILL - 1) + [False]
    slow = Probation({}, limit=1.0)
    falling = [4.0, 3.5, 3.0]
    assert [slow.verdict(falling) for _ in range(LONGEST)] == [None] * (LONGEST - 1) + [False]


def test_a_removal_is_judged_by_what_is_made_up_for():
    """Of two units that are the same, one can go: the other takes its part, and nothing is on probation."""
    held = wave(1, seed=1)[0]
    model, optimizer, ctl = setup(Budget(loss=0.02), width=12, held=held)
    data = iter(wave(1501))
    train(model, optimizer, None, [next(data) for _ in range(1500)])
    with torch.no_grad():
        hidden = model[:4](held[0])
        first, second = (model[4].weight[0].abs() * hidden.std(0)).argsort(descending=True)[:2].tolist()
        for layer in (model[2].weight, model[2].bias):
            layer[second] = layer[first]
        whole = float(model[4].weight[0, first])
        model[4].weight[0, [first, second]] = whole / 2
    train(model, optimizer, ctl, [next(data)])
    scene = ctl._course.scene()
    wanted = {name: torch.ones_like(mask) for name, mask in ctl.masks.items()}
    for name in ("2.weight", "2.bias"):
        wanted[name][first] = False
    wanted["4.weight"][:, first] = False
    removal = Removal("channel", wanted, {"2": 1}, 1, 0.0, 0.0, 1.0)
    gone = {name: model.get_parameter(name).detach() * mask for name, mask in wanted.items()}
    shrunk = Shrunk(removal, ctl._course.shop.loss(scene.check, gone), ctl.cost)
    before = numbers(model, optimizer, ctl)
    better = ctl._course.shop.refitted(scene, shrunk)
    assert same(before, numbers(model, optimizer, ctl))
    assert better.after < shrunk.after
    assert better.after == pytest.approx(scene.before, rel=0.2)
    ctl._course.shop.keep_shrunk(better)
    assert ctl._course.shop.loss(scene.check) == pytest.approx(better.after, rel=1e-5)
    assert model[4].weight[0, first] == 0
    assert abs(model[4].weight[0, second].item()) > 0.75 * abs(whole)


def test_what_is_not_measured_is_put_on_the_scale_of_what_is():
    scores = [torch.tensor([1.0, 2.0, 4.0]), torch.tensor([8.0])]
    measured = [torch.tensor([0.5, 2.0, 4.0]), torch.tensor([8.0])]
    found = calibrated(scores, measured)
    assert torch.allclose(found[0], torch.tensor([0.5, 1.0, 2.0]))
    assert torch.allclose(found[1], torch.tensor([4.0]))
    # That the cheapest one costs nothing does not make the others cost nothing.
    found = calibrated(scores, [torch.tensor([0.0, 2.0, 4.0]), torch.tensor([8.0])])
    assert torch.allclose(found[0], torch.tensor([0.0, 2 * LEAST, 4 * LEAST]))
    assert torch.allclose(found[1], torch.tensor([8 * LEAST]))
    assert all(torch.equal(a, b) for a, b in zip(calibrated(scores, scores), scores, strict=True))


def test_compact_takes_out_what_is_masked_and_goes_on():
    model, optimizer, ctl = setup(Budget(params=0.4), width=16, deadline=400)
    train(model, optimizer, ctl, wave(400))
    assert ctl.met
    cost, x = ctl.cost, torch.randn(5, 1)
    expected = model(x)
    ctl.compact()
    assert ctl.cost["params"] == cost["params"] == sum(p.numel() for p in model.parameters())
    torch.testing.assert_close(model(x), expected)
    train(model, optimizer, ctl, wave(50, seed=2))
    assert not torch.equal(model(x), expected)


@pytest.mark.parametrize("unit", ["channel", "weight"])
def test_prices_tell_what_is_cheapest_and_what_would_bring_most(unit):
    model, optimizer, ctl = setup(Budget(params=0.6), width=8, unit=unit)
    with pytest.raises(ValueError, match="needs batches"):
        ctl.prices()
    train(model, optimizer, ctl, wave(10))
    if unit == "weight":
        mask = torch.arange(64).view(8, 8) % 5 != 0
        ctl.masks.update({"2.weight": mask})
    before = numbers(model, optimizer, ctl)
    prices = ctl.prices()
    assert same(before, numbers(model, optimizer, ctl))
    by_group = {price.group: price for price in prices}
    assert all(price.keeps >= 0 for price in prices)
    if unit == "weight":
        assert (by_group["2.weight"].present, by_group["2.weight"].absent) == (51, 13)
        assert by_group["2.weight"].brings > 0
        assert by_group["0.weight"].brings is None
    else:
        assert [price.present for price in prices] == [8, 8]
        assert all(price.brings > 0 for price in prices)
    assert "keeps" in str(prices)


def test_bad_input_changes_nothing():
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    state = copy.deepcopy(model.state_dict())
    for options, message in [
        ({"held": []}, "held: data yielded no batches"),
        ({"share": 0.0}, "share must be in"),
        ({"hysteresis": 0.5}, "hysteresis must be at least 1"),
        ({"confirm": -1}, "confirm must not be negative"),
        ({"init": "zeros"}, "init must be one of"),
        ({"unit": []}, "at least one kind"),
        ({"unit": ["channel", "channel"]}, "each once"),
        ({"unit": (0, 4)}, "unit must be one of"),
    ]:
        with pytest.raises(ValueError, match=message):
            Controller(model, optimizer, nn.MSELoss(), Budget(params=0.5), **options)
    with pytest.raises(ValueError, match="hold"):
        Controller(model, torch.optim.Adam(network().parameters()), nn.MSELoss(), Budget(params=0.5))
    with pytest.raises(ValueError, match="state_dict returned"):
        Controller(model, optimizer, nn.MSELoss(), Budget(params=0.5)).load_state_dict({})
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("limits", [{"loss": 0}, {"loss": "5"}, {"latency_ms": "-3%"}, {"params": "x%"}])
def test_bad_limits(limits):
    with pytest.raises(ValueError, match="positive number"):
        Budget(**limits)


def test_shares_and_absolute_limits():
    budget = Budget(params="25%", latency_ms="50%", loss="110%")
    assert budget.targets({"params": 1001, "latency_ms": 3.0}) == {"params": 250, "latency_ms": 1.5}
    assert budget.loss_limit(0.5) == pytest.approx(0.55)
    assert Budget(loss=0.2).loss_limit(7.0) == 0.2
    assert Budget(params=0.5).loss_limit(7.0) == float("inf")
