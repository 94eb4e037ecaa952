"""Milliseconds as a cost of channels and blocks: with a clock that goes by a formula, predictions are exact."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from latency_clock import Clock, clock, true_seconds  # noqa: F401
from structure_nets import MODELS, X, made
from surgery_nets import convnet, saliency_like
from torch import Tensor, nn

import resgrow
from resgrow.controller.meter import Meter
from resgrow.surgery import BlockUnits, Speed, Units, compact, count_latency, make_units, swap
from resgrow.surgery.latency import density

MS = "latency_ms"
IMAGES = torch.randn(3, 2, 11, 11)
# Where nothing but channels of layers goes, compact leaves what masks say.
FOLLOWED = [name for name in MODELS if name != "gated"]


def some_units(units: Units, seed: int, share: float = 0.6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    keep = [torch.rand(there.shape, generator=generator) < share for there in units.live()]
    for kept in keep:
        kept.view(-1)[0] = True
    return keep


def masked(model: nn.Module, masks: dict[str, Tensor]) -> nn.Module:
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    return model


def scores_of(units: Units, seed: int = 0) -> list[Tensor]:
    return units.scores(saliency_like(units._model, seed))


def left(keep: list[Tensor], units: Units, masks: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: mask & masks[name] for name, mask in units.to_masks(keep).items()}


@pytest.mark.parametrize("name", FOLLOWED)
def test_the_prediction_is_the_time_of_the_smaller_model(clock: Clock, name: str) -> None:  # noqa: F811
    model = made(name)
    units = make_units(model, "channel", example_inputs=X)
    assert units.total(None, MS) == pytest.approx(1e3 * true_seconds(model, X))
    clock.drift = 3.0  # a busier machine is no slower model
    masks = units.to_masks(some_units(units, 0))
    small = compact(masked(model, masks), X)
    assert units.total(masks, MS) == pytest.approx(1e3 * true_seconds(small, X))
    assert units.total(masks, MS) < units.total(None, MS)


@pytest.mark.parametrize("name", FOLLOWED)
@pytest.mark.parametrize("whole", [True, False])
def test_a_cost_is_what_one_unit_less_saves(clock: Clock, name: str, whole: bool) -> None:  # noqa: F811
    model = made(name)
    units = make_units(model, "channel", example_inputs=X)
    masks = units.to_masks(units.live() if whole else some_units(units, 3))
    live, costs, total = units.live(masks), units.costs(masks, MS), units.total(masks, MS)
    for group, (there, cost) in enumerate(zip(live, costs, strict=True)):
        assert cost.dtype == torch.float64
        assert torch.equal(cost > 0, there)
        if int(there.sum()) == 1:
            continue  # a layer of no channels takes what one of one channel does
        for unit in there.nonzero().flatten()[::3]:
            keep = [kept.clone() for kept in live]
            keep[group][unit] = False
            saved = total - units.total(left(keep, units, masks), MS)
            assert float(cost[unit]) == pytest.approx(saved)
    assert all(torch.equal(one, other) for one, other in zip(units.costs(masks, MS), costs, strict=True))


@pytest.mark.parametrize("name", ["residual", "grouped", "cardinal", "transformer", "package's"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_selection_saves_enough_and_no_unit_more(clock: Clock, name: str, share: float) -> None:  # noqa: F811
    units = make_units(made(name), "channel", example_inputs=X)
    masks = units.to_masks(some_units(units, 4, 0.8))
    scores = scores_of(units)
    most = units.savable(scores, masks, MS)
    keep = units.select(scores, share * most, masks, MS)

    def saved(keep: list[Tensor]) -> float:
        return units.total(masks, MS) - units.total(left(keep, units, masks), MS)

    assert saved(keep) >= share * most
    live = units.live(masks)
    prices = [s.double() / c.clamp_min(1e-12) for s, c in zip(scores, units.costs(masks, MS), strict=True)]
    gone = [there & ~kept for there, kept in zip(live, keep, strict=True)]
    assert (share > 0) == any(bool(lost.any()) for lost in gone)
    if share == 0:
        return
    dearest = max(float(price[lost].max()) for price, lost in zip(prices, gone, strict=True) if lost.any())
    one_less = [kept | (lost & (price == dearest)) for kept, lost, price in zip(keep, gone, prices, strict=True)]
    assert saved(one_less) < share * most
    if share == 1:
        assert saved(keep) == most
        with pytest.raises(ValueError, match="latency_ms can be saved"):
            units.select(scores, most * 1.001, masks, MS)


def test_more_units_gone_never_take_more_time(clock: Clock) -> None:  # noqa: F811
    units = make_units(made("package's"), "channel", example_inputs=X)
    keep, order = units.live(), torch.randperm(sum(there.numel() for there in units.live()))
    flat = torch.cat(keep)
    last = units.total(None, MS)
    for unit in order:
        flat[unit] = False
        now = units.total(units.to_masks(list(flat.split([there.numel() for there in keep]))), MS)
        assert 0 < now <= last * (1 + 1e-12)
        last = now


def test_nothing_is_measured_before_it_is_asked_for(clock: Clock) -> None:  # noqa: F811
    model = convnet()
    for block in ("channel", (4, 1), (1, 1)):
        units = make_units(model, block, example_inputs=IMAGES)
        units.select(scores_of(units), 10, by="macs")
        Meter(model, [units], IMAGES)
    assert (clock.models, clock.layers) == (0, 0)
    units = make_units(model, "channel", example_inputs=IMAGES)
    assert Meter(model, [units], IMAGES, ("latency_ms",)).cost(None)[MS] == units.total(None, MS)
    assert (clock.models, clock.layers) == (1, 4)


def test_layers_are_measured_once_on_a_machine(clock: Clock, cache: Path, threads: None) -> None:  # noqa: F811
    def asked() -> float:
        units = make_units(made("package's"), "channel", example_inputs=X)
        masks = units.to_masks(some_units(units, 0))
        return units.total(None, MS) + units.total(masks, MS) + float(units.costs(masks, MS)[0].sum())

    first = asked()
    measured = clock.layers
    assert measured == len(json.loads(next(cache.iterdir()).read_text())["seconds"])
    assert measured < 4 * 10  # five kinds of layers, although there are ten
    assert asked() == pytest.approx(first)
    assert (clock.models, clock.layers) == (2, measured)
    torch.set_num_threads(torch.get_num_threads() + 1)
    asked()
    assert clock.layers == 2 * measured


@pytest.mark.parametrize("model", ["convnet", "channels_last", "float64", "batch"])
def test_anything_that_matters_is_measured_apart(clock: Clock, model: str) -> None:  # noqa: F811
    count_latency(convnet(), IMAGES)
    before = clock.layers
    x = IMAGES[:2] if model == "batch" else IMAGES
    net: nn.Module = convnet()
    if model == "channels_last":
        net = net.to(memory_format=torch.channels_last)
    if model == "float64":
        net, x = net.double(), x.double()
    count_latency(net, x)
    again = {"convnet": 0, "channels_last": 2, "float64": 4, "batch": 4}[model]
    assert clock.layers - before == again


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: "{",
        lambda content: json.dumps({"seconds": {key: [1.0] for key in json.loads(content)["seconds"]}}),
        lambda content: json.dumps({"seconds": {key: [1.0, -1.0] for key in json.loads(content)["seconds"]}}),
    ],
)
def test_a_broken_cache_is_measured_anew(clock: Clock, cache: Path, spoil) -> None:  # noqa: F811
    first = count_latency(convnet(), IMAGES)
    before = clock.layers
    (path,) = cache.iterdir()
    path.write_text(spoil(path.read_text()))
    assert count_latency(convnet(), IMAGES) == pytest.approx(first)
    assert clock.layers == 2 * before
    count_latency(convnet(), IMAGES)
    assert clock.layers == 2 * before


def test_a_cache_that_cannot_be_written_is_done_without(
    clock: Clock,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RESGROW_CACHE_DIR", str(tmp_path / "file"))
    units = make_units(convnet(), "channel", example_inputs=IMAGES)
    masks = units.to_masks(some_units(units, 0))
    first = units.total(masks, MS)
    before = clock.layers
    assert units.total(masks, MS) == first
    assert clock.layers == before  # kept by the units themselves


def test_asking_leaves_no_trace() -> None:
    model = convnet().train()  # batch norm and dropout
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    assert count_latency(model, IMAGES) > 0
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training and not module._forward_hooks for module in model.modules())


def test_real_times_are_positive_and_remembered(cache: Path) -> None:
    units = make_units(convnet(), "channel", example_inputs=IMAGES)
    scores = scores_of(units)
    keep = units.select(scores, 0.3 * units.savable(scores, None, MS), None, MS)
    times = [units.total(None, MS), units.total(units.to_masks(keep), MS)]
    assert 0 < times[1] < times[0] < float("inf")
    assert all(bool((cost > 0).all()) and bool(cost.isfinite().all()) for cost in units.costs(None, MS))
    stored = next(cache.iterdir()).read_text()
    count_latency(convnet(), IMAGES, units.to_masks(keep))
    assert next(cache.iterdir()).read_text() == stored


@pytest.fixture
def sparse(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> list[float]:  # noqa: F811
    """Block-sparse layers are faster below a density of 3/4."""
    asked: list[float] = []

    def measure(layer: nn.Module, shape: tuple[int, ...], mask: Tensor, block: tuple[int, int], **options) -> Speed:
        share = mask.float().mean().item()
        asked.append(share)
        return Speed(1.0, 0.1 + 1.2 * share, 0.0, share, block, shape, options["channels_last"], False, 1, "float32")

    monkeypatch.setattr(density, "measure", measure)
    return asked


def blocks() -> tuple[nn.Module, BlockUnits, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 9, 64), nn.Linear(64, 6))
    x = torch.randn(4, 8, 5, 5)
    units = make_units(model, (16, 1), example_inputs=x)
    assert isinstance(units, BlockUnits)
    return model, units, x


def test_blocks_save_what_swap_would(sparse: list[float]) -> None:
    model, units, x = blocks()
    whole = units.total(None, MS)
    assert whole == pytest.approx(1e3 * true_seconds(model, x))
    assert sparse == []
    keep = units.live()
    keep[1].view(-1)[: int(0.1 * keep[1].numel())] = False
    assert units.total(units.to_masks(keep), MS) == pytest.approx(whole)  # dense is faster
    keep[1].view(-1)[: keep[1].numel() // 2] = False
    alone = 1e3 * (3e-5 + 1e-9 * 4 * 288 * 64)
    assert units.total(units.to_masks(keep), MS) == pytest.approx(whole - 0.3 * alone, rel=1e-3)
    assert len(sparse) <= 5


def test_costs_of_blocks_lead_past_where_dense_is_faster(sparse: list[float]) -> None:
    _, units, _ = blocks()
    costs = units.costs(None, MS)
    assert all(bool((cost > 0).all()) for cost in costs)
    alone = 1e3 * (3e-5 + 1e-9 * 4 * 288 * 64)
    assert float(costs[1].sum()) == pytest.approx(0.9 * alone, rel=1e-3)
    keep = units.live()
    keep[1][:, ::2] = False
    assert float(units.costs(units.to_masks(keep), MS)[1].sum()) == pytest.approx(0.6 * alone, rel=1e-3)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_selection_of_blocks_saves_enough_and_no_block_more(sparse: list[float], share: float) -> None:
    _, units, _ = blocks()
    masks = units.to_masks(some_units(units, 1, 0.9))
    scores = scores_of(units)
    most = units.savable(scores, masks, MS)
    keep = units.select(scores, share * most, masks, MS)

    def saved(keep: list[Tensor]) -> float:
        return units.total(masks, MS) - units.total(left(keep, units, masks), MS)

    assert saved(keep) >= share * most
    if share:
        prices = [s.double() / c for s, c in zip(scores, units.costs(masks, MS), strict=True)]
        gone = [there & ~kept for there, kept in zip(units.live(masks), keep, strict=True)]
        dearest = max(float(price[lost].max()) for price, lost in zip(prices, gone, strict=True) if lost.any())
        one_less = [kept | (lost & (price == dearest)) for kept, lost, price in zip(keep, gone, prices, strict=True)]
        assert saved(one_less) < share * most


def test_layers_that_swap_leaves_dense_save_nothing(sparse: list[float]) -> None:
    model, _, x = blocks()
    units = make_units(model, (3, 1), example_inputs=x)  # no kernels
    assert units.savable(scores_of(units), None, MS) == 0
    tied = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    tied[1].weight = tied[0].weight
    units = make_units(tied, (16, 1), example_inputs=torch.randn(2, 16))
    assert units.savable(scores_of(units), None, MS) == 0
    assert sparse == []


def test_real_blocks_are_those_that_swap_measures(cache: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64)).eval()
    x = torch.randn(8, 64)
    units = make_units(model, (16, 1), example_inputs=x)
    keep = units.live()
    keep[0][:, 4:] = False
    masks = units.to_masks(keep)
    assert 0 < units.total(masks, MS) <= units.total(None, MS)
    stored = next(cache.iterdir()).read_text()
    swap(model, masks, example_inputs=x, block=(16, 1))
    assert next(cache.iterdir()).read_text() == stored


def test_errors() -> None:
    weights = make_units(convnet(), example_inputs=IMAGES)
    for ask in (
        lambda: weights.costs(None, MS),
        lambda: weights.total(None, MS),
        lambda: weights.select(scores_of(weights), 1, None, MS),
        lambda: weights.savable(scores_of(weights), None, MS),
    ):
        with pytest.raises(ValueError, match="single weights"):
            ask()
    for block in ("channel", (16, 1)):
        bare = make_units(convnet(), block)
        for ask in (bare.costs, bare.total):
            with pytest.raises(ValueError, match="give make_units example_inputs"):
                ask(None, MS)
    with pytest.raises(ValueError, match="'latency_ms'"):
        weights.costs(by="latency")
    with pytest.raises(ValueError, match="cpu and cuda only"):
        count_latency(convnet().to("meta"), IMAGES.to("meta"))
    with pytest.raises(ValueError, match="does not run"):
        count_latency(convnet(), torch.zeros(1, 7))


def test_the_meter_measures_what_it_is_asked_for(clock: Clock) -> None:  # noqa: F811
    model = convnet()
    units = make_units(model, "channel", example_inputs=IMAGES)
    meter = Meter(model, [units], IMAGES, ("params", "latency_ms"))
    masks = units.to_masks(some_units(units, 0))
    cost = meter.cost(masks)
    small = compact(masked(model, masks), IMAGES)
    assert cost["params"] == sum(parameter.numel() for parameter in small.parameters())
    assert cost[MS] == pytest.approx(1e3 * true_seconds(small, IMAGES))
    assert cost[MS] == pytest.approx(count_latency(model, IMAGES, masks))
    assert set(Meter(model, [units], IMAGES).cost(None)) == {"params", "macs"}
    assert set(Meter(model, [units], None).cost(None)) == {"params"}


def test_a_controller_keeps_to_milliseconds(clock: Clock) -> None:  # noqa: F811
    torch.manual_seed(0)
    model = convnet()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    with torch.no_grad():
        classes = model(IMAGES).shape[1]
    budget = resgrow.Budget(latency_ms="75%")
    options = {"every": 2, "deadline": 24, "example_inputs": IMAGES, "samples": 32}
    ctl = resgrow.Controller(model, optimizer, nn.CrossEntropyLoss(), budget, **options)
    limit = 0.75 * ctl.cost[MS]
    for step in range(24):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(16, *IMAGES.shape[1:], generator=generator)
        y = torch.randint(classes, (16,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        ctl.step((x, y))
    assert ctl.met
    assert ctl.cost[MS] <= limit
    assert ctl.history[-1].by == MS
    small = compact(model, IMAGES)
    assert 1e3 * true_seconds(small, IMAGES) <= limit * (1 + 1e-9)
    other = convnet()
    with pytest.raises(ValueError, match="got single weights"):
        resgrow.Controller(
            other,
            torch.optim.Adam(other.parameters()),
            nn.CrossEntropyLoss(),
            budget,
            unit="weight",
            example_inputs=IMAGES,
        )
