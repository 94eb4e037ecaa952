"""Channels, neurons and heads of models that are followed by their operations: units, prune, masks, compact."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from structure_nets import MODELS as FOLLOWED
from structure_nets import Concatenated, Grouped, Residual
from structure_nets import X as IMAGES
from surgery_nets import saliency_like
from torch import Tensor, nn
from torch.nn import functional as F

from resgrow.surgery import ChannelUnits, Masks, Units, compact, count_macs, count_params, make_units, prune
from resgrow.surgery.structure import Group, Place

VECTORS = torch.randn(6, 4, dtype=torch.float64)
SEQUENCES = torch.randn(2, 5, 12, dtype=torch.float64)


class Stream(nn.Module):
    """A square layer, used twice, reads and feeds one stream: rows and columns of its units cross."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.square, self.norm = nn.Linear(4, 7), nn.Linear(7, 7), nn.BatchNorm1d(7)
        self.inner, self.outer, self.head = nn.Linear(7, 5), nn.Linear(5, 7, bias=False), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(2):
            x = x + self.square(x.relu())
        return self.head(self.norm(x + self.outer(self.inner(x).tanh())))


class Tied(nn.Module):
    """Two layers with one weight, one behind the other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(self.stem(x)).relu()).relu())


MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    **{name: (make, IMAGES) for name, make in FOLLOWED.items()},
    "stream": (Stream, VECTORS),
    "tied": (Tied, VECTORS),
    "torch's encoder": (lambda: nn.TransformerEncoderLayer(12, 4, 20, batch_first=True), SEQUENCES),
}


def made(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(seed)
    make, x = MODELS[name]
    model = make().double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    return model, x


def scores_of(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    return {name: score.double() for name, score in saliency_like(model, seed).items()}


def left(units: Units, keep: list[Tensor], masks: dict[str, Tensor] | None) -> dict[str, Tensor]:
    kept = units.to_masks(keep)
    return kept if masks is None else {name: mask & masks[name] for name, mask in kept.items()}


def cost_of(units: Units, masks: dict[str, Tensor], by: str) -> float:
    """Element by element, where `Units` reckons with rows and columns."""
    return sum(units._factor(name, by) * int(mask.sum()) for name, mask in masks.items())


def check_sums(units: Units, by: str, masks: dict[str, Tensor] | None) -> None:
    """Scores, costs, live and total against masks without one unit each."""
    saliency = scores_of(units._model)
    everything = left(units, units.live(), masks)
    assert units.total(masks, by) == cost_of(units, everything, by)
    scores, costs, live = units.scores(saliency), units.costs(masks, by), units.live(masks)
    for group, there in enumerate(live):
        for unit in range(len(there)):
            keep = units.live()
            keep[group][unit] = False
            covered = units.to_masks(keep)
            remaining = left(units, keep, masks)
            wanted = sum(float(saliency[name][~mask].sum()) for name, mask in covered.items())
            assert float(scores[group][unit]) == pytest.approx(wanted, rel=1e-12)
            cost = cost_of(units, everything, by) - cost_of(units, remaining, by)
            assert float(costs[group][unit]) == pytest.approx(cost, rel=1e-12)
            assert bool(there[unit]) == any(not torch.equal(remaining[name], everything[name]) for name in remaining)


def check_selection(units: Units, by: str, masks: dict[str, Tensor] | None, share: float) -> None:
    """At least what was asked for goes, and not with one unit less."""
    scores = units.scores(scores_of(units._model))
    wanted = share * units.savable(scores, masks, by)
    keep = units.select(scores, wanted, masks, by)
    before = cost_of(units, left(units, units.live(), masks), by)

    def saved(kept: list[Tensor]) -> float:
        return before - cost_of(units, left(units, kept, masks), by)

    assert saved(keep) >= wanted * (1 - 1e-12)
    live = units.live(masks)
    assert all(kept.any() for kept, there in zip(keep, live, strict=True) if there.any())
    prices = [s / c.clamp_min(1e-12) for s, c in zip(scores, units.costs(masks, by), strict=True)]
    gone = [there & ~kept for there, kept in zip(live, keep, strict=True)]
    if any(lost.any() for lost in gone):
        dearest = max(float(price[lost].max()) for price, lost in zip(prices, gone, strict=True) if lost.any())
        back = [kept | (lost & (price == dearest)) for kept, lost, price in zip(keep, gone, prices, strict=True)]
        assert saved(back) < wanted


def some_masks(units: Units, seed: int) -> dict[str, Tensor]:
    """Whole units and single weights missing."""
    generator = torch.Generator().manual_seed(seed)
    keep = [torch.rand(there.shape, generator=generator) > 0.3 for there in units.live()]
    return {
        name: mask & (torch.rand(mask.shape, generator=generator) > 0.3) for name, mask in units.to_masks(keep).items()
    }


@pytest.mark.parametrize("by", ["params", "macs"])
@pytest.mark.parametrize("name", MODELS)
def test_units_are_what_their_masks_say(name: str, by: str) -> None:
    model, x = made(name)
    units = make_units(model, "channel", example_inputs=x)
    for masks in (None, some_masks(units, 1), units.to_masks(units.live())):
        check_sums(units, by, masks)
        for share in (0.1, 0.6, 1.0):
            check_selection(units, by, masks, share)
    parameters = dict(model.named_parameters())
    assert set(units.parameters) <= set(parameters)
    assert set(units.required) == {name for name in units.parameters if parameters[name].dim() > 1}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_pattern_of_places(data: st.DataObject) -> None:
    """Units anywhere in one, two or three dimensions of a parameter, several groups side by side in each."""
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3), label="units of each group")
    rank = data.draw(st.integers(1, 3))
    shape, places = [], [[] for _ in sizes]
    for dim in range(rank):
        counts = [data.draw(st.integers(0 if rank > 1 else 1, 2), label="indices of a unit") for _ in sizes]
        covered = sum(size * count for size, count in zip(sizes, counts, strict=True))
        shape.append(max(1, covered + data.draw(st.integers(0, 2), label="indices of nobody")))
        order = torch.tensor(data.draw(st.permutations(range(shape[-1]))))
        for number, (size, count) in enumerate(zip(sizes, counts, strict=True)):
            if count:
                places[number].append(Place("weight", dim, order[: size * count].view(size, count), dim == 1))
                order = order[size * count :]
    groups = [Group(tuple(found)) for found in places if found]
    if not groups:
        return
    model = nn.Module()
    model.weight = nn.Parameter(torch.randn(shape, dtype=torch.float64))
    units = ChannelUnits(model, groups)
    for number, group in enumerate(groups):
        for unit in range(group.size):
            keep, expected = units.live(), torch.ones(shape, dtype=torch.bool)
            keep[number][unit] = False
            for place in group.places:
                expected.index_fill_(place.dim, place.index[unit], False)
            assert torch.equal(units.to_masks(keep)["weight"], expected)
    for masks in (None, some_masks(units, 2)):
        check_sums(units, "params", masks)
        check_selection(units, "params", masks, data.draw(st.floats(0.01, 1)))


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=6, deadline=None)
@given(
    seed=st.integers(0, 999),
    share=st.floats(0.05, 0.95),
    scope=st.sampled_from(["global", "layer"]),
    cost=st.sampled_from(["params", "macs"]),
)
def test_compact_takes_out_exactly_what_prune_removes(
    name: str, seed: int, share: float, scope: str, cost: str
) -> None:
    model, x = made(name, seed)
    scores = scores_of(model, seed)
    units = make_units(model, "channel", example_inputs=x)
    sparsity = share * units.savable(units.scores(scores), by=cost) / units.total(by=cost)
    before = count_params(model)
    masks = prune(model, scores, sparsity=sparsity, block="channel", scope=scope, cost=cost, example_inputs=x)
    for key, mask in masks.items():
        assert not model.get_parameter(key)[~mask].any()
    small = compact(model, x)
    assert count_params(small) == masks.live_parameters()
    assert count_params(model) == before
    if name != "torch's encoder":  # with fewer heads its projections run as modules, which are counted
        assert count_macs(small, x) == count_macs(model, x, masks)
    if scope == "global":
        assert units.total(masks, cost) <= units.total(by=cost) - round(sparsity * units.total(by=cost))
    with torch.no_grad():
        assert (small(x) - model(x)).abs().max() <= 1e-10


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop])
@pytest.mark.parametrize("name", ["residual", "concatenated", "transformer", "stream", "tied"])
def test_removed_units_stay_zero_in_training(name: str, make: type[torch.optim.Optimizer]) -> None:
    model, x = made(name)
    model.train()
    options = {} if make is torch.optim.AdamW else {"momentum": 0.9}
    optimizer = make(model.parameters(), lr=1e-2, weight_decay=0.1, **options)

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    step()
    masks = prune(model, scores_of(model), sparsity=0.4, block="channel", example_inputs=x).attach(optimizer)
    assert model.training
    for _ in range(5):
        step()
    for key, mask in masks.items():
        parameter = model.get_parameter(key)
        state = [entry for entry in optimizer.state[parameter].values() if entry.shape == parameter.shape]
        assert all(not tensor[~mask].any() for tensor in (parameter, *state))
        assert parameter[mask].any()
    model.eval()
    small = compact(model, x)
    assert count_params(small) == masks.live_parameters() < count_params(model)
    with torch.no_grad():
        assert (small(x) - model(x)).abs().max() <= 1e-10


def test_units_and_their_names() -> None:
    def groups(model: nn.Module, exclude: tuple[str, ...] = ()) -> list[str]:
        return list(make_units(model.double(), "channel", exclude, IMAGES).groups)

    assert groups(Residual()) == ["stem", "inner", "squeeze"]
    # All that feeds a stream makes its channels; what reads it, norms and biases do not.
    for name in ("stem", "outer.weight", "exc*"):
        assert groups(Residual(), (name,)) == ["inner", "squeeze"]
    assert groups(Residual(), ("norm", "head", "*.bias")) == ["stem", "inner", "squeeze"]
    # A transposed convolution makes channels in dimension 1 of its weight.
    assert groups(Concatenated()) == ["down", "deep", "up"]
    assert groups(Concatenated(), ("up",)) == ["down", "deep"]
    assert groups(Concatenated(), ("out",)) == ["down", "deep", "up"]
    # All channels of the shuffled group are one unit, which has to stay.
    assert groups(Grouped()) == ["left"]
    with pytest.raises(ValueError, match="nothing is left"):
        groups(Grouped(), ("left",))


def test_buffers_are_no_places() -> None:
    model, x = made("residual")
    masks = prune(model, scores_of(model), sparsity=0.5, block="channel", example_inputs=x)
    assert isinstance(masks, Masks)
    assert "norm.weight" in masks
    assert not any("running" in name for name in masks)
    gone = ~masks["norm.weight"]
    assert gone.any()
    assert model.norm.running_mean[gone].all()


def test_heads_go_whole() -> None:
    model, x = made("transformer")
    scores = {name: torch.ones_like(parameter) for name, parameter in model.named_parameters()}
    scores["attention.proj.weight"][:, 6:9] = 0
    scores["attention.qkv.weight"].view(3, 4, 3, 12)[:, 2] = 0
    masks = prune(model, scores, sparsity=0.1, block="channel", exclude=("wide",), example_inputs=x)
    assert (~masks["attention.qkv.bias"]).nonzero().flatten().tolist() == [6, 7, 8, 18, 19, 20, 30, 31, 32]
    assert compact(model, x).attention.num_heads == 3


def test_macs_of_what_is_not_called_as_a_module_count_nothing() -> None:
    model, x = made("torch's encoder")
    units = make_units(model, "channel", example_inputs=x)
    heads, neurons = units.costs(by="macs")
    assert units.groups == ("self_attn.in_proj_weight", "linear1")
    assert heads.tolist() == [0] * 4
    assert neurons.tolist() == [5 * 2 * 12] * 20
    tied, x = made("tied")
    assert make_units(tied, "channel", example_inputs=x).total(by="macs") == count_macs(tied, x) == 24 + 2 * 36 + 18


def branching(x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


class Branching(Stream):
    def forward(self, x: Tensor) -> Tensor:
        return branching(super().forward(x))


class Mixed(nn.Module):
    """Everything in front of a norm over all channels has to stay."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.norm(self.first(x)))


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (Stream, {}, ValueError, r"needs example_inputs \(got none for Stream\); pass one batch.*block=\(1, 1\)"),
        (Stream, {"example_inputs": 3.0}, TypeError, "float"),
        (Stream, {"example_inputs": [None]}, TypeError, "example_inputs must be a tensor or a sequence"),
        (Stream, {"example_inputs": VECTORS[:0]}, ValueError, "at least one sample"),
        (Stream, {"example_inputs": SEQUENCES}, ValueError, "does not run on example_inputs"),
        (Stream, {"example_inputs": VECTORS, "exclude": ["nowhere"]}, ValueError, "'nowhere'"),
        (Stream, {"example_inputs": VECTORS, "exclude": ["*"]}, ValueError, "nothing is left"),
        (Stream, {"example_inputs": VECTORS, "sparsity": 0.99}, ValueError, "at most"),
        (Branching, {"example_inputs": VECTORS}, ValueError, "make_units: torch.export must be able to follow"),
        (Mixed, {"example_inputs": VECTORS}, ValueError, "nothing is left"),
    ],
)
def test_bad_input_leaves_everything_as_it_was(
    make: Callable[[], nn.Module], options: dict, error: type[Exception], message: str
) -> None:
    model = make().double().train()
    F.mse_loss(model(VECTORS), torch.zeros(6, 3, dtype=torch.float64)).backward()
    state = copy.deepcopy(model.state_dict())
    grads = [parameter.grad.clone() for parameter in model.parameters()]
    with pytest.raises(error, match=message):
        prune(model, scores_of(model), **{"sparsity": 0.3, "block": "channel", **options})
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        assert torch.equal(parameter.grad, grad)
    assert all(module.training for module in model.modules())


def test_scores_must_have_all_weights() -> None:
    model, x = made("stream")
    scores = scores_of(model)
    for name in ("square.weight", "head.weight"):
        rest = {key: score for key, score in scores.items() if key != name}
        with pytest.raises(ValueError, match=f"missing.*{name}"):
            prune(model, rest, sparsity=0.3, block="channel", example_inputs=x)
    del scores["norm.weight"], scores["stem.bias"]
    assert prune(model, scores, sparsity=0.3, block="channel", example_inputs=x).density() <= 0.7


def test_what_is_not_known_is_named() -> None:
    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(3, 6), nn.Linear(6, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.second(self.first(x).sort(-1).values).relu())

    x = torch.randn(4, 3)
    model = Sorted()
    scores = {name: parameter.detach().abs() for name, parameter in model.named_parameters()}
    with pytest.warns(UserWarning, match=r"stays as it is: aten.sort.default in the model"):
        masks = prune(model, scores, sparsity=0.3, block="channel", example_inputs=x)
    assert "first.weight" not in masks
    assert "second.weight" in masks
