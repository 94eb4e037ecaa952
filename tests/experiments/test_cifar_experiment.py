"""ResNets of equal training compute: every method at a small size, what is counted, and what is told."""

from __future__ import annotations

from functools import partial
from itertools import islice
from typing import Any

import pytest
import torch
from alone import is_drawn, lines_of, made, told_in
from small import small_data
from torch import nn

from resgrow.experiments.controller import cifar, cifar_methods, cifar_training
from resgrow.experiments.controller.cifar_methods import Followed, Magnitude, Schedule, sparsity
from resgrow.experiments.controller.cifar_training import Compute, Training, augmented, batches, rate
from resgrow.nn import resnet
from resgrow.surgery.count import count_macs

HELD = 32


@pytest.fixture
def data(monkeypatch):
    """Images and batches of a second; what is done beside the steps takes no time."""
    found = small_data(train=HELD + 160, test=24)
    monkeypatch.setattr(cifar, "load_data", lambda name, data_dir: found)
    monkeypatch.setattr(cifar, "DEPTH", 8)
    monkeypatch.setattr(cifar_methods, "MOVES", 3)
    monkeypatch.setattr(cifar_methods, "COMPACT", 2)
    for module in (cifar, cifar_training):
        monkeypatch.setattr(module, "BATCH", 16)
        monkeypatch.setattr(module, "HELD", HELD)
    monkeypatch.setattr(Training, "timed", lambda training, make: make())
    return found


def small_training(data: Any, compute: float = 1e12) -> Training:
    torch.manual_seed(0)
    model = Followed(resnet(8, in_channels=1, num_classes=2))
    return Training(model, data, Compute(compute), 0)


def test_every_part_runs_within_its_compute_and_the_budget(data, tmp_path):
    made(cifar.EXPERIMENT, tmp_path, 1, 2)
    results = {run["part"]: run for run in lines_of(tmp_path)}
    assert list(results) == list(cifar.PARTS)
    dense = results["dense"]
    assert (dense["steps"], dense["macs"]) == (20, dense["whole"])
    for part, run in results.items():
        assert 1 <= run["trained"] / run["limit"] < 1.06
        assert run["curve"][-1]["error"] == run["error"]
        if part != "dense":
            assert run["macs"] <= 0.5 * run["whole"]
            assert run["steps"] > 20
    assert results["controller"]["met"]
    assert results["magnitude"]["met"]
    streams = [run["widths"]["net.layer3.0.conv2"] for run in results.values()]
    assert min(streams) < 64  # streams take part
    assert results["same"]["widths"] == results["controller"]["widths"]
    told = told_in(tmp_path)
    assert "| controller | 0 |" in told
    assert "Error of the controller minus that of magnitude: " in told
    assert is_drawn(tmp_path)


def test_batches_depend_on_the_seed_alone_and_leave_out_what_is_held(data):
    one, same, other = (list(islice(batches(data, seed), 12)) for seed in (0, 0, 1))
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[0][0], other[0][0])
    assert len(one[0][1]) == 16
    held = cifar_training.held_out(data)
    assert torch.equal(torch.cat([x for x, _ in held]), data.train_x[-HELD:])


def test_images_are_shifted_and_mirrored():
    x = torch.arange(64.0).view(1, 1, 8, 8).repeat(200, 2, 1, 1) + 1
    made = augmented(x, torch.Generator().manual_seed(0))
    assert made.shape == x.shape
    padded = nn.functional.pad(x[:1], (4, 4, 4, 4))
    wanted = {
        tuple(image.flatten().tolist())
        for top in range(9)
        for left in range(9)
        for cut in [padded[0, :, top : top + 8, left : left + 8]]
        for image in (cut, cut.flip(2))
    }
    found = {tuple(image.flatten().tolist()) for image in made}
    assert found <= wanted
    assert len(found) > 80  # of 162


def test_what_a_method_does_is_counted_at_the_price_of_a_step():
    compute = Compute(limit=100.0, trained=40.0, step_seconds=8.0, own_seconds=2.0)
    assert compute.own == 10
    assert compute.share == 0.5
    assert Compute(limit=100.0).share == 0


def test_own_seconds_are_measured(monkeypatch):
    ticks = iter(range(100))
    monkeypatch.setattr(cifar_training, "fair_clock", lambda: partial(next, ticks))
    training = small_training(small_data())
    assert training.timed(lambda: next(ticks)) == 1
    assert training.compute.own_seconds == 2


def test_a_network_that_gets_cheaper_makes_more_steps(data):
    per_step = 3 * 16 * count_macs(small_training(data).model, data.train_x[:1])

    class Halves:
        def after_step(self, step: int, batch: Any) -> bool:
            if step == 4:
                training.model.net = resnet(8, 0.5, in_channels=1, num_classes=2)
            return step == 4

    training = small_training(data, 8 * per_step)
    training.run(Halves())
    assert training.steps > 4 + 2 * 4
    assert 8 * per_step <= training.compute.trained < 9 * per_step


def test_rates_rise_and_fall_with_the_compute():
    assert 0 < rate(0) < rate(0.02) < rate(0.05) == 1
    assert rate(0.525) == pytest.approx(0.5)
    assert rate(1.1) == pytest.approx(0)


def test_the_schedule_keeps_its_shares(monkeypatch):
    monkeypatch.setattr(cifar_methods, "MOVES", 8)
    monkeypatch.setattr(cifar_methods, "COMPACT", 4)
    schedule = Schedule(1000)
    due = [step for step in range(1001) if schedule.due(step)]
    assert (due[0], due[-1], len(due)) == (250, 600, 8)
    assert [step for step in due if schedule.compacts(step)] == [400, 600]
    assert [sparsity(t) for t in (0, 0.5, 1, 2)] == pytest.approx([0, 0.4375, 0.5, 0.5])


def test_magnitude_takes_the_smallest_of_every_group(data):
    training = small_training(data)
    model = training.model
    with torch.no_grad():
        for name in ("layer1.0.conv1", "layer3.0.conv1"):
            layer = model.net.get_submodule(name)
            layer.weight[:5] *= 0.01
        # A layer of small weights is not emptied for it.
        model.net.layer2[0].conv1.weight *= 1e-3
    schedule = Schedule(10)
    magnitude = Magnitude(training, schedule)
    before = count_macs(model, data.train_x[:1])
    magnitude.after_step(schedule.start + 1, None)
    masks = magnitude._masks
    assert count_macs(model, data.train_x[:1], masks) <= (1 - sparsity(1 / schedule.length)) * before
    gone = {name: (~masks[f"net.{name}.weight"]).flatten(1).all(1) for name in ("layer1.0.conv1", "layer3.0.conv1")}
    assert all(bool(each[:5].all()) for each in gone.values())
    inside = model.net.layer2[0].conv1.weight.flatten(1)
    assert int((inside.abs().sum(1) > 0).sum()) > 16


def result(part: str, seed: int, error: float) -> dict[str, Any]:
    return {"part": part, "seed": seed, "epochs": 1, "error": error}


def test_the_controller_is_compared_seed_by_seed():
    results = [result("uniform", seed, 20 + 5 * seed) for seed in range(3)]
    results += [result("controller", seed, 19 + 5 * seed + 0.1 * (seed - 1)) for seed in range(3)]
    assert cifar._targets(results) == (
        "Error of the controller minus that of uniform: -1.00 ± 0.06 points (mean of 3 seeds, its standard error): "
        "better."
    )
    assert cifar._apart([1.0]) == "+1.00 points, one seed"
    assert cifar._apart([1.0, -0.8]).endswith("no difference that seeds would show")


def test_uniform_width_is_the_widest_within_the_budget(data):
    whole = count_macs(cifar.fresh(data, 1.0, 0), data.train_x[:1])
    width = cifar.uniform_width(data, whole / 2)
    assert count_macs(cifar.fresh(data, width, 0), data.train_x[:1]) <= whole / 2
    assert count_macs(cifar.fresh(data, width + 0.1, 0), data.train_x[:1]) > whole / 2
    assert cifar_methods.BUDGET == 0.5
