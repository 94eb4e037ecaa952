"""Residual branches as units: which there are, what they are worth and cost, and that compact takes just that out."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping

import pytest
import torch
from deepen_nets import BLOCKS, made
from surgery_nets import convnet, saliency_like
from torch import Tensor, nn
from torch.nn import functional as F

from resgrow.nn import Residual, resnet
from resgrow.surgery import Masks, ResidualUnits, compact, count_macs, count_params, make_units, prune

X = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Nested(nn.Module):
    """A branch inside of a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 4))
        self.up, self.down = nn.Linear(5, 4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x).relu()
        return x + self.down(y + self.inner(y))


class Parallel(nn.Module):
    """Two branches that are summed before they are added, one of which ends in a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix, self.mlp = (
            nn.LayerNorm(5),
            nn.Linear(5, 5),
            nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 5)),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return self.mix(y).relu() + self.mlp(y) + x


class Shared(nn.Module):
    """The branches share their first layer; the last one is called twice, so that neither call can go alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.b, self.again = (nn.Linear(5, 5) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.a(self.first(x).tanh())
        x = x + self.b(self.first(x).tanh())
        for _ in range(2):
            x = x + self.again(x)
        return x


class Moved(nn.Module):
    """What is added lies elsewhere than what is read; a scale at the end; a shortcut of another shape; no branches."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.scale = nn.Linear(5, 5), nn.Parameter(torch.ones(5, 1))
        self.wide, self.short = nn.Linear(5, 6), nn.Linear(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = x.view(-1, 5).t() + self.scale * self.mix(x.view(-1, 5)).t()
        y = y.t() + 0.044715 * y.t() ** 3  # of the stream only
        return self.wide(y).relu() + self.short(y)


def chain(*parts: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(5, 5), *copy.deepcopy(parts), nn.Linear(5, 2))


# The model, its inputs, and the names of its units.
MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor, tuple[str, ...]]] = {
    "nested": (chain(Nested(), Nested()), X, ("1.inner", "1", "2.inner", "2")),
    "parallel": (chain(Parallel()), X, ("1.mix", "1.mlp")),
    "shared": (chain(Shared()), X, ("1.a", "1.b")),
    "norm at the end": (
        chain(Residual(nn.Sequential(nn.Linear(5, 5), nn.LayerNorm(5)))),
        X,
        ("1",),
    ),
    "stage": (*BLOCKS["stage"][:2], ("layer1.0", "layer1.1", "layer2.1", "layer3.1")),
    "transformer": (
        *BLOCKS["transformer"][:2],
        ("layers.0.self_attn", "layers.0.linear2", "layers.1.self_attn", "layers.1.linear2"),
    ),
    "norms behind": (
        *BLOCKS["norms behind"][:2],
        ("layers.0.self_attn", "layers.0.linear2", "layers.1.self_attn", "layers.1.linear2"),
    ),
    "one": (*BLOCKS["the model"][:2], ("1",)),
}


def units_of(name: str) -> tuple[nn.Module, Tensor, ResidualUnits]:
    make, x, groups = MODELS[name]
    model = made(make)
    units = make_units(model, "residual", example_inputs=x)
    assert isinstance(units, ResidualUnits)
    assert units.groups == groups
    return model, x, units


def doubled(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    return {name: score.double() for name, score in saliency_like(model, seed).items()}


def without(units: ResidualUnits, *gone: int) -> list[Tensor]:
    return [torch.tensor([number not in gone]) for number in range(len(units.groups))]


def live_cost(units: ResidualUnits, masks: Mapping[str, Tensor], by: str) -> float:
    return sum(units._factor(name, by) * int(mask.sum()) for name, mask in masks.items())


@pytest.mark.parametrize("name", MODELS)
def test_compact_takes_out_what_a_unit_costs(name: str) -> None:
    model, x, units = units_of(name)
    for number, cost in enumerate(units.costs()):
        masked = copy.deepcopy(model)
        masks = Masks(masked, units.to_masks(without(units, number)))
        masks.apply()
        small = compact(masked, x)
        assert masks.live_parameters() == count_params(model) - int(cost) == count_params(small)
        with torch.no_grad():
            expected = masked(x)
            assert (small(x) - expected).abs().max() <= 1e-12 * expected.abs().max()
            assert not torch.allclose(expected, model(x))
        gone = {parameter for parameter in units.parameters if parameter not in dict(small.named_parameters())}
        assert set(units.last[number]) <= gone


def is_gone(model: nn.Module, path: str) -> bool:
    """The identity, or left out of its Sequential."""
    return isinstance(dict(model.named_modules()).get(path, nn.Identity()), nn.Identity)


@pytest.mark.parametrize("name", ["stage", "one"])
def test_a_block_that_has_gone_is_the_identity(name: str) -> None:
    model, x, units = units_of(name)
    for number in range(len(units.groups)):
        masked = copy.deepcopy(model)
        Masks(masked, units.to_masks(without(units, number))).apply()
        small = compact(masked, x)
        assert [is_gone(small, path) for path in units.groups] == [at == number for at in range(len(units.groups))]


def test_a_layer_whose_branches_have_all_gone() -> None:
    """torch's encoder passes further arguments to its layers and looks into the first, which therefore stay."""
    for name in ("transformer", "norms behind"):
        model, x, units = units_of(name)
        Masks(model, units.to_masks(without(units, *range(4)))).apply()
        small = compact(model, x)
        assert count_params(small) == count_params(model) - units.total()
        assert torch.equal(small(x), model(x))


@pytest.mark.parametrize("by", ["params", "macs"])
@pytest.mark.parametrize("name", MODELS)
def test_costs_and_live_units_are_what_their_masks_say(name: str, by: str) -> None:
    _, _, units = units_of(name)
    generator = torch.Generator().manual_seed(0)
    some = {
        parameter: mask & (torch.rand(mask.shape, generator=generator) > 0.3)
        for parameter, mask in units.to_masks(without(units, 0)).items()
    }
    for masks in (None, some):
        before = units.to_masks(units.live()) if masks is None else masks
        assert units.total(masks, by) == live_cost(units, before, by)
        for number, (cost, there) in enumerate(zip(units.costs(masks, by), units.live(masks), strict=True)):
            left = {n: mask & before[n] for n, mask in units.to_masks(without(units, number)).items()}
            assert float(cost) == live_cost(units, before, by) - live_cost(units, left, by)
            assert bool(there) == any(not torch.equal(left[n], before[n]) for n in left)


def test_macs_are_those_that_the_model_no_longer_makes() -> None:
    model, x, units = units_of("stage")
    for number, cost in enumerate(units.costs(by="macs")):
        masked = copy.deepcopy(model)
        Masks(masked, units.to_masks(without(units, number))).apply()
        assert count_macs(model, x) - count_macs(compact(masked, x), x) == float(cost) > 0


def test_the_score_is_that_of_the_branchs_end() -> None:
    model, _, units = units_of("stage")
    saliency = doubled(model)
    for last, score in zip(units.last, units.scores(saliency), strict=True):
        assert float(score) == pytest.approx(sum(float(saliency[name].sum()) for name in last), rel=1e-12)
        assert score.dtype == torch.float64
    assert units.scores({name: each.float() for name, each in saliency.items()})[0].dtype == torch.float32
    assert units.required == tuple(name for last in units.last for name in last)
    with pytest.raises(ValueError, match=r"missing \['layer2\.1\.bn2\.bias'\]"):
        units.scores({name: score for name, score in saliency.items() if name != "layer2.1.bn2.bias"})


@pytest.mark.parametrize("by", ["params", "macs"])
@pytest.mark.parametrize("name", MODELS)
def test_selection_saves_enough_and_not_a_unit_more(name: str, by: str) -> None:
    model, _, units = units_of(name)
    scores = units.scores(doubled(model, 1))
    if by == "macs" and not units.total(by=by):
        return
    everything = units.savable(scores, by=by)
    assert everything == pytest.approx(units.total(by=by))
    prices = [float(score) / max(float(cost), 1e-12) for score, cost in zip(scores, units.costs(by=by), strict=True)]
    order = sorted(range(len(prices)), key=prices.__getitem__)
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        keep = units.select(scores, share * everything, by=by)
        count = next(
            n
            for n in range(len(order) + 1)
            if units.total(by=by) - live_cost(units, units.to_masks(without(units, *order[:n])), by)
            >= share * everything
        )
        expected = units.live(units.to_masks(without(units, *order[:count])))
        assert [bool(each) for each in keep] == [bool(each) for each in expected]
    with pytest.raises(ValueError, match="at most"):
        units.select(scores, everything + 1, by=by)


def test_an_inner_branch_goes_with_the_outer_one_and_is_paid_once() -> None:
    model, x, units = units_of("nested")
    inner, outer = (float(cost) for cost in units.costs()[:2])
    assert inner == 3 * 5 + 4 * 4
    assert outer == inner + 4 * 6 + 5 * 5
    assert units.total() == 2 * outer
    masks = units.to_masks(without(units, 1))
    assert [bool(there) for there in units.live(masks)] == [False, False, True, True]
    assert [float(cost) for cost in units.costs(masks)] == [0, 0, inner, outer]
    keep = units.select([torch.tensor([score]) for score in (9.0, 0.1, 9.0, 9.0)], outer)
    assert [bool(each) for each in keep] == [False, False, True, True]
    both = units.select([torch.tensor([score]) for score in (0.1, 0.3, 9.0, 9.0)], outer)
    assert [bool(each) for each in both] == [False, False, True, True]
    # With the inner one gone, the outer one saves what is left of it.
    assert float(units.costs(units.to_masks(without(units, 0)))[1]) == outer - inner
    Masks(model, units.to_masks(without(units, 0))).apply()
    assert isinstance(compact(model, x)[1], Nested)


def test_what_branches_share_stays() -> None:
    model, _, units = units_of("shared")
    masks = units.to_masks(without(units, 0, 1))
    assert not any("first" in name or "again" in name for name in masks)
    assert not any(mask.any() for mask in masks.values())
    with torch.no_grad():
        before = model[1].again(model[0](X)) + model[0](X)
        Masks(model, masks).apply()
        assert torch.allclose(model(X), model[2](before + model[1].again(before)))


def test_tied_weights_belong_to_no_branch() -> None:
    def tied() -> nn.Module:
        model = chain(Residual(nn.Linear(5, 5)), Residual(nn.Linear(5, 5)), Residual(nn.Linear(5, 5)))()
        model[1].branch.weight = model[2].branch.weight
        return model.double()

    assert make_units(tied(), "residual", example_inputs=X).groups == ("3",)


def test_streams_are_followed_through_other_shapes() -> None:
    units = make_units(Moved().double(), "residual", example_inputs=X)
    assert units.groups == ("scale",)
    assert set(units.parameters) == {"mix.weight", "mix.bias", "scale"}


def test_only_what_is_added_as_it_is() -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            return torch.add(x, self.layer(x), alpha=0.5)

    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            return x + F.softmax(self.layer(x), -1)

    for model in (Weighted(), Ends(), convnet(), nn.Sequential(nn.Linear(5, 5), nn.ReLU())):
        x = (
            torch.randn(2, 2, 11, 11)
            if isinstance(model[0] if isinstance(model, nn.Sequential) else 0, nn.Sequential)
            else X.float()
        )
        with pytest.raises(ValueError, match="nothing is left to remove with block='residual', as a branch has to be"):
            make_units(model, "residual", example_inputs=x)


def test_excluded_parameters_keep_their_branches() -> None:
    model, x, _ = units_of("stage")
    units = make_units(model, "residual", exclude=("layer1.1.conv1", "layer3.*"), example_inputs=x)
    assert units.groups == ("layer1.0", "layer2.1")
    with pytest.raises(ValueError, match=r"nothing is left to remove.*\(got exclude=\['\*\.bn2'\]\)"):
        make_units(model, "residual", exclude=("*.bn2",), example_inputs=x)


@pytest.mark.parametrize("cost", ["params", "macs"])
def test_prune_removes_a_share_of_the_branches(cost: str) -> None:
    model, x, units = units_of("stage")
    saliency = doubled(model)
    masks = prune(model, saliency, sparsity=0.3, block="residual", cost=cost, example_inputs=x)
    expected = units.select(units.scores(saliency), round(0.3 * units.total(by=cost)), by=cost)
    for name, mask in units.to_masks(expected).items():
        assert torch.equal(masks[name], mask)
        assert not model.get_parameter(name)[~mask].any()
    small = compact(model, x)
    assert count_params(small) == masks.live_parameters()
    for path, kept in zip(units.groups, expected, strict=True):
        assert is_gone(small, path) != bool(kept)


def test_a_pruned_model_trains_on_without_its_branches() -> None:
    model, x, units = units_of("stage")
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    masks = prune(model, doubled(model), sparsity=0.5, block="residual", example_inputs=x).attach(optimizer)
    model.train()(x).square().mean().backward()
    optimizer.step()
    left = int(masks.live_parameters())
    compact(model, x, inplace=True, optimizer=optimizer, masks=masks)
    assert count_params(model) == left
    assert sum(p.numel() for group in optimizer.param_groups for p in group["params"]) == left
    assert make_units(model, "residual", example_inputs=x).groups == tuple(
        path for path in units.groups if not is_gone(model, path)
    )


def test_bad_arguments() -> None:
    model, x = resnet(8, 0.25).double(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"block='residual' needs example_inputs.*\(got none\)"):
        make_units(model, "residual")
    with pytest.raises(ValueError, match=r"scope='layer' takes a share of each group.*use scope='global'"):
        prune(model, doubled(model), sparsity=0.5, block="residual", scope="layer", example_inputs=x)
    with pytest.raises(ValueError, match=r"one of \('channel', 'residual'\) \(got 'residuals'\)"):
        make_units(model, "residuals", example_inputs=x)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_several_branches_go_at_once() -> None:
    model, x, units = units_of("nested")
    for gone in itertools.chain.from_iterable(itertools.combinations(range(4), n) for n in (2, 4)):
        masked = copy.deepcopy(model)
        masks = Masks(masked, units.to_masks(without(units, *gone)))
        masks.apply()
        small = compact(masked, x)
        assert count_params(small) == masks.live_parameters()
        assert (small(x) - masked(x)).abs().max() < 1e-12
