"""The controller: it meets its budget, keeps only moves that are worth it, and leaves no trace of the others."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import resgrow
from resgrow import Budget, Controller
from resgrow.controller.recent import Recent
from resgrow.controller.trust import LARGEST, SMALLEST, STRONGEST, Trust, pace

Batch = tuple[Tensor, Tensor]


def batches(count: int, seed: int = 0) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        x = torch.randn(32, 10, generator=generator)
        found.append((x, (x[:, 0] * x[:, 1] > 0).long()))
    return found


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 2))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, ctl: Controller | None, data: list[Batch]) -> None:
    for x, y in data:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        if ctl is not None:
            ctl.step((x, y))


def setup(budget: Budget, **options) -> tuple[nn.Sequential, torch.optim.Optimizer, Controller]:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    options = {"every": 5, "samples": 256} | options
    return model, optimizer, Controller(model, optimizer, nn.CrossEntropyLoss(), budget, **options)


@pytest.mark.parametrize("unit", ["channel", "weight"])
def test_the_budget_is_met_by_the_deadline_and_held(unit):
    model, optimizer, ctl = setup(Budget(params=0.4), unit=unit, deadline=100)
    train(model, optimizer, ctl, batches(100))
    assert ctl.met
    limit = int(0.4 * sum(p.numel() for p in model.parameters()))
    assert limit * 0.9 < ctl.cost["params"] <= limit
    moves = len(ctl.history)
    train(model, optimizer, ctl, batches(30, seed=1))
    assert len(ctl.history) == moves
    alive = sum(int((p != 0).sum()) for p in model.parameters())
    assert alive <= limit
    small = resgrow.compact(model, torch.zeros(1, 10))
    if unit == "channel":
        assert sum(p.numel() for p in small.parameters()) <= limit


class Residual(nn.Module):
    """A stream that two layers feed; not a model that is known without example inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer = nn.Linear(10, 24), nn.Linear(24, 16), nn.Linear(16, 24)
        self.head = nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head((x + self.outer(F.gelu(self.inner(x)))).relu())


@pytest.mark.parametrize("by", ["params", "macs"])
def test_channels_of_any_model_that_can_be_followed(by):
    torch.manual_seed(0)
    model = Residual()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    options = {"every": 5, "samples": 256, "deadline": 60}
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="needs example_inputs"):
        Controller(model, optimizer, nn.CrossEntropyLoss(), Budget(params=0.3), **options)
    assert not optimizer.state
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    x = torch.randn(3, 10)
    ctl = Controller(model, optimizer, nn.CrossEntropyLoss(), Budget(**{by: 0.3}), example_inputs=x, **options)
    train(model, optimizer, ctl, batches(60))
    assert ctl.met
    small = resgrow.compact(model.eval(), x)
    assert sum(p.numel() for p in small.parameters()) == ctl.cost["params"] == ctl.masks.live_parameters()
    assert resgrow.surgery.count_macs(small, x) == ctl.cost["macs"]
    assert small.head.in_features < 24
    assert small.inner.out_features < 16
    with torch.no_grad():
        torch.testing.assert_close(small(x), model(x))


def test_macs_are_a_budget_of_their_own():
    model, optimizer, ctl = setup(Budget(macs=0.5), example_inputs=torch.zeros(1, 10), deadline=60)
    train(model, optimizer, ctl, batches(60))
    assert ctl.met
    small = resgrow.compact(model, torch.zeros(1, 10))
    macs = sum(m.weight.numel() for m in small.modules() if isinstance(m, nn.Linear))
    assert macs <= 0.5 * (10 * 32 + 32 * 16 + 16 * 2)
    assert ctl.history[-1].cost["macs"] == ctl.cost["macs"] == macs


def test_history_explains_every_move():
    model, optimizer, ctl = setup(Budget(params=0.3), deadline=100)
    train(model, optimizer, ctl, batches(100))
    kept = [move for move in ctl.history if move.accepted]
    sizes = [move.cost["params"] for move in kept]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == ctl.cost["params"]
    for move in ctl.history:
        assert move.kind == "shrink"
        assert move.unit == "channel"
        assert move.count == sum(move.where.values()) > 0
        assert move.predicted >= 0
        assert move.actual == pytest.approx(move.loss_after - move.loss_before)
        assert move.ratio == pytest.approx(move.actual / max(move.predicted, 1e-12))
        assert 0 < move.fraction < 1
        assert move.price >= 0
    assert any(move.predicted > 0 and move.price > 0 for move in ctl.history)


def test_measured_loss_is_that_of_the_model_after_the_move():
    model, optimizer, ctl = setup(Budget(params=0.5), deadline=40, every=20)
    data = batches(20)
    train(model, optimizer, ctl, data)
    check = data[-4:]  # 256 samples are the last 8 batches, of which the newer half checks
    with torch.no_grad():
        loss = sum(F.cross_entropy(model(x), y).item() for x, y in check) / 4
    assert ctl.history[-1].accepted
    assert ctl.history[-1].loss_after == pytest.approx(loss, rel=1e-5)


def test_a_bad_move_leaves_no_trace():
    trust = Trust(fraction=0.3, tolerance=-1.0, patience=-1.0)  # units that are dead cost nothing
    model, optimizer, ctl = setup(Budget(params=0.1), trust=trust, confirm=0)
    train(model, optimizer, None, batches(40))
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict(), ctl.masks.state_dict()))
    for batch in batches(10):  # of the first look nothing is known about how the loss moves
        assert ctl.step(batch) is None
    assert len(ctl.history) > 1
    assert not any(move.accepted for move in ctl.history)
    fractions = [move.fraction for move in ctl.history]
    assert fractions == sorted(fractions, reverse=True)
    assert ctl.trust.fraction < 0.3
    assert ctl.trust.damping > 1
    after = (model.state_dict(), optimizer.state_dict(), ctl.masks.state_dict())
    assert all(torch.equal(before[0][name], value) for name, value in after[0].items())
    assert all(torch.equal(before[2][name], value) for name, value in after[2].items())
    for index, state in after[1]["state"].items():
        assert all(torch.equal(before[1]["state"][index][key], value) for key, value in state.items())


def test_what_nothing_depends_on_goes_first_and_costs_nothing():
    """Weights into a unit without ways out are as good as gone, however large they are."""
    model, optimizer, ctl = setup(Budget(params=0.5), unit="weight", share=1.0, every=30)
    cut = {name: mask.clone() for name, mask in ctl.masks.items()}
    cut["2.weight"][:, :8] = False
    ctl.masks.update(cut)
    with torch.no_grad():
        model[0].weight[:8] *= 10
    train(model, optimizer, ctl, batches(300))
    first = next(move for move in ctl.history if move.accepted)
    assert first.where.keys() <= {"0.weight", "0.bias"}
    assert first.predicted == 0
    assert first.actual == 0
    gone = ~ctl.masks["0.weight"][:8]
    assert gone.sum() >= min(first.count, gone.numel()) * 0.5
    # Their biases go, too: a budget is not spent on units that nothing reads.
    later = next(move for move in ctl.history if move.accepted and "0.bias" in move.where)
    assert not ctl.masks["0.bias"][:8].any()
    assert later.step <= first.step + 60


def test_removed_weights_and_their_moments_stay_zero():
    model, optimizer, ctl = setup(Budget(params=0.4), unit="weight", deadline=50)
    train(model, optimizer, ctl, batches(80))
    for name, mask in ctl.masks.items():
        parameter = model.get_parameter(name)
        assert (parameter[~mask] == 0).all()
        assert (optimizer.state[parameter]["exp_avg"][~mask] == 0).all()
        assert (optimizer.state[parameter]["exp_avg_sq"][~mask] == 0).all()


def test_state_round_trip_continues_alike():
    data = batches(60)
    model, optimizer, ctl = setup(Budget(params=0.3), deadline=60)
    train(model, optimizer, ctl, data[:30])
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), ctl.state_dict()))
    other, other_optimizer, other_ctl = setup(Budget(params=0.3), deadline=60)
    other.load_state_dict(saved[0])
    other_optimizer.load_state_dict(saved[1])
    other_ctl.load_state_dict(saved[2])
    assert other_ctl.history == ctl.history
    assert other_ctl.cost == ctl.cost
    assert other_ctl.trust == ctl.trust
    train(other, other_optimizer, other_ctl, data[30:])
    assert other_ctl.met


def test_an_unreachable_budget_names_what_is_reachable():
    model = network()
    state = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    with pytest.raises(ValueError, match=r"must be reachable.*params=9.*leaves \d+"):
        Controller(model, optimizer, nn.CrossEntropyLoss(), Budget(params=9))
    assert not optimizer._optimizer_step_post_hooks
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": "neuron"}, "unit must be one of channel, weight"),
        ({"deadline": 0}, "deadline must be at least 1"),
        ({"every": 0}, "every must be at least 1"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"exclude": ("9",)}, "exclude must match"),
        ({"budget": Budget(macs=0.5)}, "needs example_inputs"),
    ],
)
def test_bad_arguments(options, message):
    model = network()
    arguments = {"budget": Budget(params=0.5)} | options
    with pytest.raises(ValueError, match=message):
        Controller(model, torch.optim.SGD(model.parameters(), 0.1), nn.CrossEntropyLoss(), **arguments)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({}, "at least one limit"),
        ({"params": 0}, "positive number"),
        ({"params": -0.5}, "positive number"),
        ({"macs": float("nan")}, "positive number"),
        ({"params": 10.5}, "fraction in"),
        ({"params": True}, "positive number"),
    ],
)
def test_bad_budgets(limits, message):
    with pytest.raises(ValueError, match=message):
        Budget(**limits)


def test_budget_fractions_and_absolutes():
    cost = {"params": 1001.0, "macs": 5000.0}
    assert Budget(params=0.1, macs=400).targets(cost) == {"params": 100, "macs": 400}
    assert Budget(params=1).targets(cost) == {"params": 1001}


def test_nan_in_the_data_is_reported_and_changes_nothing():
    model, _, ctl = setup(Budget(params=0.5), every=2)
    state = copy.deepcopy(model.state_dict())
    x, y = batches(1)[0]
    ctl.step((x, y))
    with pytest.raises(ValueError, match="NaN"):
        ctl.step((x * float("nan"), y))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert ctl.masks.density() == 1
    assert ctl.history == []


def test_a_batch_must_be_a_pair():
    _, _, ctl = setup(Budget(params=0.5))
    with pytest.raises(TypeError, match=r"Controller\.step.*pairs"):
        ctl.step(torch.zeros(3, 10))


def test_trust_grows_with_good_predictions_and_shrinks_with_bad_ones():
    trust = Trust(fraction=0.1)
    trust.kept(predicted=1.0, actual=0.2, stakes=0.1)
    assert trust.fraction > 0.1
    assert trust.damping < 1
    trust = Trust(fraction=0.1)
    trust.kept(predicted=1.0, actual=1.9, stakes=0.1)
    assert trust.fraction < 0.1
    assert trust.damping > 1
    for _ in range(30):
        trust.refused()
    assert trust.fraction == SMALLEST
    assert trust.damping == STRONGEST
    for _ in range(60):
        trust.kept(predicted=1.0, actual=-0.1, stakes=1.0)
    assert trust.fraction == LARGEST


def test_trust_accepts_what_is_harmless_and_gives_way_when_nothing_is():
    trust = Trust(tolerance=0.1)
    assert trust.accepts(actual=0.009, stakes=0.1)
    assert not trust.accepts(actual=0.011, stakes=0.1)
    trust.stuck()
    assert trust.accepts(actual=0.011, stakes=0.1)
    for _ in range(20):
        trust.kept(predicted=1.0, actual=1.0, stakes=0.1)
    assert trust.tolerance == trust.patience == 0.1


def test_pace_reaches_the_target_in_equal_steps():
    cost = 1000.0
    share = pace(cost, 100.0, 7)
    for _ in range(7):
        cost *= 1 - share
    assert cost == pytest.approx(100.0)
    assert pace(100.0, 100.0, 3) == 0
    assert pace(1000.0, 100.0, 0) == pytest.approx(0.9)


def test_a_loss_that_constant_outputs_do_not_have_is_compared_with_itself(monkeypatch):
    _, _, ctl = setup(Budget(params=0.5))
    train(ctl.model, ctl.optimizer, ctl, batches(1))
    scene = ctl._course.scene()
    monkeypatch.setattr("resgrow.controller.workshop.uninformed_loss", lambda *given: torch.inf)
    assert ctl._course.stakes(scene) == scene.before

    def undefined(*given):
        raise ValueError("Controller: the loss is NaN")

    ctl._course.uninformed = None
    monkeypatch.setattr("resgrow.controller.workshop.uninformed_loss", undefined)
    assert ctl._course.stakes(scene) == scene.before
    ctl._course.uninformed = scene.before + 20 * abs(scene.before)
    assert ctl._course.stakes(scene) == pytest.approx(2 * scene.before)


def test_recent_keeps_the_newest_samples_and_splits_them():
    recent = Recent(64)
    data = batches(5)
    for batch in data:
        recent.add(batch)
    older, newer = recent.split()
    assert older == data[3:4]
    assert newer == data[4:5]
    single = Recent(8)
    single.add(data[0])
    assert single.split() == ([data[0]], [data[0]])
