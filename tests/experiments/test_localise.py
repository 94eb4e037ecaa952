"""Which layer to change: verdicts by hand, rules and truths on real networks, resuming, and what is told."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from alone import is_drawn, lines_of, made, told_in
from scipy.stats import binomtest

import resgrow
from resgrow.experiments.localise import grow, ripple, shrink
from resgrow.experiments.localise.networks import HIDDEN, LOSS, around, loss, problem, train
from resgrow.experiments.localise.verdicts import always, by_best, guessed, hit, hits, rank_correlation, wilson
from resgrow.surgery.count import count_params


def test_hits_and_equals():
    truth = [0.1, 0.3, 0.2]
    assert [hit(rule, truth) for rule in ([1, 3, 2], [3, 1, 2], [2, 2, 1], [0, 0, 0])] == [
        1,
        0,
        0.5,
        pytest.approx(1 / 3),
    ]
    assert hit([1, 0, 0], [1e-9, 0, -1]) == hit([0, 1, 0], [1e-9, 0, -1]) == 1  # equal but for rounding
    cases = [([1, 2, 3], [0, 0.1, 0.2]), ([1, 2, 3], [0.2, 0.1, 0]), ([5, 5, 5], [0.3, 0.2, 0.1])]
    assert hits(cases) == pytest.approx((1 + 0 + 1 / 3) / 3)
    assert hits(guessed(cases)) == pytest.approx(1 / 3)
    assert hits(always(0, cases)) == pytest.approx(2 / 3)
    assert by_best(cases) == "0.333 of 2, 0 of 0, 1 of 1"
    assert rank_correlation(cases) == pytest.approx((1 - 1 + 0) / 3)


@pytest.mark.parametrize(("right", "count"), [(0, 30), (22, 30), (30, 30), (70, 90)])
def test_intervals_are_wilsons(right, count):
    expected = binomtest(right, count).proportion_ci(0.95, method="wilson")
    assert wilson(right / count, count, 1.959964) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_problems_depend_on_their_numbers_alone():
    first, same, other = problem(0, 1, (4, 6, 9)), problem(0, 1, (4, 6, 9)), problem(0, 2, (4, 6, 9))
    assert first.widths == same.widths
    assert torch.equal(first.model[0].weight, same.model[0].weight)
    assert torch.equal(first.train[1], same.train[1])
    assert not torch.equal(first.train[1], other.train[1])
    both = torch.cat([first.train[0], first.test[0]])
    assert both.shape == (1797, 64)
    assert (both.min(), both.max()) == (0, 1)


@pytest.fixture(scope="module")
def trained():
    given = problem(0, 3, (8, 12))
    train(given.model, given.train, 10, 3e-3, seed=0)
    return given


def test_ripples_are_those_of_the_weights_around_a_layer(trained):
    found = resgrow.ripple(trained.model, LOSS, trained.train, draws=2, directions=2)
    told = around(found)
    rows = [found[name] for name in ("0", "2", "4", "6")]
    assert told["analytic"] == [a.analytic + b.analytic for a, b in pairwise(rows)]
    assert told["reach"] == [(a.reach**2 + b.reach**2) ** 0.5 for a, b in pairwise(rows)]
    assert told["per weight"][0] == told["analytic"][0] / (rows[0].params + rows[1].params)


def test_rules_of_growth(trained):
    model = trained.model
    told = grow.rules(model, trained.train)
    gains = resgrow.growth_gain(model, LOSS, trained.train, example_inputs=trained.train[0][:2])
    assert told["rho+ of 8 units"] == [pytest.approx(float(gains[name].gain[:8].sum())) for name in HIDDEN]
    assert told["narrowest"] == [-float(width) for width in trained.widths]
    larger = copy.deepcopy(model)
    resgrow.widen(larger, "2", 8, example_inputs=trained.train[0][:2])
    cost = count_params(larger) - count_params(model)
    assert grow.added(trained.widths)[1] == cost
    assert told["rho+ of 8 units per parameter"][1] == pytest.approx(told["rho+ of 8 units"][1] / cost)
    # The largest squared gradients of eight units: of what reads the layer, by what it reads itself.
    activations = [torch.relu(model[0](trained.train[0])), model[2](torch.relu(model[0](trained.train[0])))]
    hidden = activations[1].detach().requires_grad_()
    after = torch.relu(hidden).detach()
    z = model[4](after).detach().requires_grad_()
    (g,) = torch.autograd.grad(LOSS(model[6](torch.relu(z)), trained.train[1]), z)
    b = torch.cat([activations[0].detach(), torch.ones(len(g), 1)], 1)
    assert told["GradMax"][1] == pytest.approx(float(torch.linalg.svdvals(b.T @ g)[:8].square().sum()), rel=1e-3)


def test_the_cheapest_units_go(trained):
    told, order = shrink.rules(trained.model, trained.train)
    s = resgrow.saliency(trained.model, LOSS, trained.train, "obd", damping=0.0, samples=8)
    each = s["2.weight"].sum(1) + s["2.bias"] + s["4.weight"].sum(0)
    assert torch.equal(each.argsort()[:4].sort().values, order[1][:4].sort().values)
    assert told[shrink.BEST][1] == pytest.approx(float(each.sort().values[:4].sum()), rel=1e-5)
    before = copy.deepcopy(trained.model.state_dict())
    smaller = shrink.without(trained.model, 1, order[1][:4], trained.train[0][:2])
    kept = order[1][4:].sort().values
    assert torch.equal(smaller[2].weight, trained.model[2].weight[kept])
    assert torch.equal(smaller[4].weight, trained.model[4].weight[:, kept])
    assert all(torch.equal(value, before[name]) for name, value in trained.model.state_dict().items())


def test_truth_is_against_training_on_without_a_change(trained, monkeypatch):
    """Without further training units of no fan-out gain nothing, and what goes costs what it costs at once."""
    base = loss(trained.model, trained.train)
    assert all(abs(fall) < 1e-6 for part in grow.truth(trained, 0).values() for fall in part)
    monkeypatch.setattr(shrink, "FINE_EPOCHS", 0)
    _, order = shrink.rules(trained.model, trained.train)
    rises = shrink.truth(trained, order)
    assert rises["at once"] == rises["fine-tuned"]
    smaller = shrink.without(trained.model, 2, order[2][:4], trained.train[0][:2])
    assert rises["at once"][2] == loss(smaller, trained.train) - base


def test_runs_resume_and_reports_tell(tmp_path, monkeypatch):
    monkeypatch.setattr(grow, "NETWORKS", 1)
    monkeypatch.setattr(shrink, "NETWORKS", 1)
    made(ripple.EXPERIMENT, tmp_path, 1, 2)
    assert [(run["chapter"], run["network"]) for run in lines_of(tmp_path)] == [("grow", 0), ("shrink", 0)]
    assert made(ripple.EXPERIMENT, tmp_path, 1, 2) == ""
    assert told_in(tmp_path).count("Networks: 1.") == 2
    assert is_drawn(tmp_path)


def runs_of(rules: dict[str, list[float]], **truth: Any) -> list[dict[str, Any]]:
    return [{"seed": seed, "widths": [4, 9, 24], "rules": rules, **truth} for seed in (0, 1)]


def rows_of(told: str) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in told.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in cells}


def test_what_is_told_of_growth():
    falls = {"training": [0.3, 0.29, 0.1], "test": [0.1, 0.2, 0.3]}
    told = grow.tell(runs_of({grow.BEST: [3, 2, 1], "narrowest": [0, 0, 1]}, fall=falls))
    rows = rows_of(told)
    assert rows[grow.BEST][0] == rows["always layer 1"][0] == "100"
    assert rows[grow.BEST][2:6] == ["1.00", "2 of 2, 0 of 0, 0 of 0", "100, 100", "0"]
    # Of 592, 232 and 160 parameters the second layer's fall is the largest for each.
    assert rows[grow.BEST][6].startswith("0 (")
    assert rows["always layer 2"][6].startswith("100 (")
    assert rows["narrowest"][0] == "0"
    assert "met (100 %)" in told


def test_what_is_told_of_shrinking():
    rises = {"at once": [3.0, 0.0, 2.0], "fine-tuned": [0.3, 0.0, 0.2]}
    told = shrink.tell(runs_of({shrink.BEST: [0.9, 0.0, 0.4], "widest": [-4, -9, -24]}, rise=rises))
    rows = rows_of(told)
    assert rows[shrink.BEST][0] == "100"
    assert rows[shrink.BEST][2:4] == ["1.00", "1.00"]
    assert rows["widest"][0] == "0"
    assert "in the 2 networks where one layer alone is the cheapest" in told
    dead = {"at once": [0.0, 0.0, 2.0], "fine-tuned": [0.0, 0.0, 0.2]}
    told = shrink.tell(runs_of({shrink.BEST: [0.0, 0.0, 0.4], "widest": [-4, -9, -24]}, rise=dead))
    assert "in the 0 networks where one layer alone is the cheapest" in told
    assert rows_of(told)["chance"][0] == "67"
