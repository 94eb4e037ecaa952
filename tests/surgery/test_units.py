import functools
import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from surgery_nets import convnet, saliency_like, small_resnet
from torch import Tensor, nn

from resgrow.surgery import LayerProfile, Units, make_units, profile

X = torch.randn(3, 2, 11, 11)


def all_units(by: str = "params") -> list[Units]:
    blocks = [(1, 1), (2, 3), (4, 1), "channel"]
    models = [convnet(), small_resnet()]
    with_biases = make_units(convnet(), (1, 1), example_inputs=X, biases=True)
    return [
        with_biases,
        *(make_units(model, block, example_inputs=X) for model, block in itertools.product(models, blocks)),
    ]


def some_masks(units: Units, seed: int = 0) -> dict[str, Tensor]:
    """Whole units and single weights missing."""
    generator = torch.Generator().manual_seed(seed)
    keep = [torch.rand(there.shape, generator=generator) > 0.3 for there in units.live()]
    masks = units.to_masks(keep)
    return {name: mask & (torch.rand(mask.shape, generator=generator) > 0.3) for name, mask in masks.items()}


def assert_same(actual: list[Tensor], wanted: list[Tensor]) -> None:
    assert len(actual) == len(wanted)
    for a, b in zip(actual, wanted, strict=True):
        torch.testing.assert_close(a.double(), b.double())


@pytest.mark.parametrize("units", all_units(), ids=lambda units: type(units).__name__)
@pytest.mark.parametrize("by", ["params", "macs"])
@pytest.mark.parametrize("masked", [False, True])
def test_scores_and_costs_are_sums_over_what_one_unit_covers(units: Units, by: str, masked: bool) -> None:
    model = units._model
    saliency = saliency_like(model)
    masks = some_masks(units) if masked else None
    before = {name: mask if masks is None else masks[name] for name, mask in units.to_masks(units.live()).items()}
    scores, costs, live = units.scores(saliency), units.costs(masks, by), units.live(masks)
    assert units.total(masks, by) == pytest.approx(live_cost(units, before, by))
    for group, there in enumerate(live):
        for index in range(0, there.numel(), max(1, there.numel() // 3)):
            keep = units.live()
            keep[group].view(-1)[index] = False
            without = units.to_masks(keep)
            score = sum(float(saliency[name][~mask].sum()) for name, mask in without.items())
            left = {name: mask & before[name] for name, mask in without.items()}
            cost = live_cost(units, before, by) - live_cost(units, left, by)
            assert float(scores[group].view(-1)[index]) == pytest.approx(score, rel=1e-5)
            assert float(costs[group].view(-1)[index]) == pytest.approx(cost)
            gone = all(torch.equal(left[name], before[name]) for name in left)
            assert bool(there.view(-1)[index]) != gone


def live_cost(units: Units, masks: dict[str, Tensor], by: str) -> float:
    if by == "params":
        return sum(int(mask.sum()) for mask in masks.values())
    rows = {f"{row.name}.weight": row.macs / row.params for row in weights_only(units._model)}
    return sum(rows.get(name, 0) * int(mask.sum()) for name, mask in masks.items())


@functools.cache
def weights_only(model: nn.Module) -> list[LayerProfile]:
    """Counts of the layers, with biases taken out of their parameters."""
    rows = [row for row in profile(model, X, memory=False).layers if row.macs]
    return [replace(row, params=model.get_parameter(f"{row.name}.weight").numel()) for row in rows]


@pytest.mark.parametrize("units", all_units(), ids=lambda units: type(units).__name__)
def test_masks_of_all_or_some_units_tell_which_are_live(units: Units) -> None:
    generator = torch.Generator().manual_seed(3)
    keep = [torch.rand(there.shape, generator=generator) > 0.4 for there in units.live()]
    for kept in keep:
        kept.view(-1)[0] = True
    assert set(units.to_masks(keep)) == set(units.parameters)
    assert_same(units.live(units.to_masks(keep)), keep)
    assert all(there.all() for there in units.live(None))


@pytest.mark.parametrize("units", all_units(), ids=lambda units: type(units).__name__)
@pytest.mark.parametrize("by", ["params", "macs"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_selection_saves_enough_and_not_a_unit_more(units: Units, by: str, share: float) -> None:
    masks = some_masks(units)
    scores = units.scores(saliency_like(units._model))
    total, live = units.total(masks, by), units.live(masks)
    wanted = share * units.savable(scores, masks, by)
    keep = units.select(scores, wanted, masks, by)

    def saved(kept: list[Tensor]) -> float:
        left = {name: mask & masks[name] for name, mask in units.to_masks(kept).items()}
        return total - units.total(left, by)

    assert saved(keep) >= wanted
    gone = [there & ~kept for there, kept in zip(live, keep, strict=True)]
    assert all(not (kept & ~there).any() for kept, there in zip(keep, live, strict=True))
    if share == 0:
        assert not any(lost.any() for lost in gone)
        return
    prices = [s.double() / c.double().clamp_min(1e-12) for s, c in zip(scores, units.costs(masks, by), strict=True)]
    dearest = max(float(price[lost].max()) for price, lost in zip(prices, gone, strict=True) if lost.any())
    for price, lost in zip(prices, gone, strict=True):
        lost &= price == dearest
    one_less = [kept | lost for kept, lost in zip(keep, gone, strict=True)]
    assert saved(one_less) < wanted
    if units.parameters != units.groups:  # channels: the best of each group stays
        assert all(kept.any() for kept in keep)
        return
    for price, kept, there in zip(prices, keep, live, strict=True):
        assert not (there & ~kept & (price > dearest)).any()
        assert not (kept & (price < dearest)).any()


def test_every_channel_group_keeps_its_best_channel() -> None:
    units = make_units(convnet(), "channel")
    scores = [torch.zeros(there.shape) for there in units.live()]
    for score in scores:
        score[2] = 1
    most = units.savable(scores)
    assert most < units.total()
    keep = units.select(scores, most)
    assert [kept.nonzero().flatten().tolist() for kept in keep] == [[2], [2], [2]]
    assert units.total() - units.total(units.to_masks(keep)) == most
    with pytest.raises(ValueError, match="at most"):
        units.select(scores, most + 1)


def test_ties_go_by_position() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    for block, by in (((1, 1), "params"), ((1, 1), "macs"), ((1, 2), "params")):
        units = make_units(model, block, example_inputs=torch.ones(1, 4))
        keep = units.select([torch.zeros(there.shape) for there in units.live()], 6, None, by)
        assert not torch.cat([kept.flatten() for kept in keep])[: 6 // block[1]].any()
        assert sum(int((~kept).sum()) for kept in keep) == 6 // block[1]


def test_only_the_given_groups_lose() -> None:
    for units in all_units():
        keep = units.select(units.scores(saliency_like(units._model)), 5, groups=[1])
        assert [bool(kept.all()) for kept in keep] == [index != 1 for index in range(len(keep))]


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 9), columns=st.integers(1, 9), bo=st.integers(1, 5), bi=st.integers(1, 5), conv=st.booleans()
)
def test_blocks_of_ragged_weights(rows: int, columns: int, bo: int, bi: int, conv: bool) -> None:
    model = nn.Sequential(nn.Conv2d(columns, rows, (1, 2)) if conv else nn.Linear(columns, rows))
    units = make_units(model, (bo, bi))
    weight = model[0].weight
    (live,) = units.live()
    assert live.shape == (-(-rows // bo), -(-columns // bi), *weight.shape[2:])
    assert float(units.costs()[0].sum()) == weight.numel()
    (scores,) = units.scores({"0.weight": torch.ones_like(weight)})
    last = scores.reshape(live.shape[0], live.shape[1], -1)[-1, -1, 0]
    assert float(last) == ((rows - 1) % bo + 1) * ((columns - 1) % bi + 1)
    keep = torch.zeros_like(live)
    keep.view(live.shape[0], live.shape[1], -1)[-1, -1, 0] = True
    mask = units.to_masks([keep])["0.weight"]
    assert mask.shape == weight.shape
    assert int(mask.sum()) == int(last)


def test_norms_and_biases_count_where_they_are_scored() -> None:
    model = convnet()
    units = make_units(model, "channel")
    saliency = saliency_like(model)
    bare = {name: score for name, score in saliency.items() if name in units.required}
    assert set(units.required) == {"0.0.weight", "1.weight", "6.weight", "9.weight"}
    difference = units.scores(saliency)[0] - units.scores(bare)[0]
    torch.testing.assert_close(difference, saliency["0.0.bias"] + saliency["0.1.weight"] + saliency["0.1.bias"])


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        (["9"], ["0.0.weight", "1.weight", "6.weight"]),
        (["0"], ["1.weight", "6.weight", "9.weight"]),
        (["*.weight"], None),
        (["1.weight", "[69]"], ["0.0.weight"]),
        (["2"], ["0.0.weight", "1.weight", "6.weight", "9.weight"]),
    ],
)
def test_exclude(exclude: list[str], left: list[str] | None) -> None:
    if left is None:
        with pytest.raises(ValueError, match="nothing is left"):
            make_units(convnet(), exclude=exclude)
    else:
        assert list(make_units(convnet(), exclude=exclude).groups) == left


def test_exclude_of_channels_protects_the_producer() -> None:
    assert make_units(convnet(), "channel", exclude=["6"]).groups == ("0.0", "1")
    with pytest.raises(ValueError, match="nothing is left"):
        make_units(convnet(), "channel", exclude=["0.*", "1", "6"])


@pytest.mark.parametrize("block", [(0, 1), (1,), (1.0, 2), "row", (True, 1), None, 4])
def test_bad_blocks(block: object) -> None:
    with pytest.raises(ValueError, match="block"):
        make_units(convnet(), block)  # type: ignore[arg-type]


def test_biases_are_units_of_their_own_among_single_weights() -> None:
    model = convnet()
    names = make_units(model, biases=True).parameters
    weights = make_units(model).parameters
    assert set(names) - set(weights) == {
        f"{name}.bias" for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)
    } & {name for name, _ in model.named_parameters()}
    assert any(name.endswith("bias") for name in names)
    for block in ((2, 1), "channel"):
        with pytest.raises(ValueError, match="biases"):
            make_units(model, block, biases=True)


def test_bad_exclude_and_costs() -> None:
    with pytest.raises(ValueError, match="'nowhere'"):
        make_units(convnet(), exclude=["nowhere"])
    with pytest.raises(TypeError, match="exclude"):
        make_units(convnet(), exclude="9")
    units = make_units(convnet())
    with pytest.raises(ValueError, match="example_inputs"):
        units.costs(by="macs")
    with pytest.raises(ValueError, match="'latency'"):
        units.costs(by="latency")
    with pytest.raises(ValueError, match="shapes"):
        units.select([torch.zeros(3)], 1)
    scores = [torch.zeros(there.shape) for there in units.live()]
    scores[1][0] = torch.nan
    with pytest.raises(ValueError, match="group 1"):
        units.select(scores, 1)


def test_a_model_without_candidates() -> None:
    with pytest.raises(ValueError, match="nothing is left"):
        make_units(nn.Sequential(nn.Linear(3, 2)), "channel")
    with pytest.raises(ValueError, match="nothing is left"):
        make_units(nn.Sequential(nn.ReLU()))
