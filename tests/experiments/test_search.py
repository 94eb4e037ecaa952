"""Searches for widths: what they cost, when they end, that they resume, and what is told of them."""

from __future__ import annotations

import sys

import pytest
import torch
from alone import is_drawn, lines_of, made, told_in
from small import small_data

import resgrow.data
from resgrow._errors import RunError
from resgrow.experiments.architecture import search as experiment
from resgrow.experiments.architecture import search_report, searchers
from resgrow.experiments.architecture.search import GATES, Problem, learnt, searched
from resgrow.experiments.architecture.searchers import Price, best, search
from resgrow.experiments.architecture.widths import LENET5, Widths, build, hold_out, training_macs
from resgrow.experiments.config import make_config
from resgrow.experiments.frame.runs import Runs
from resgrow.experiments.training import Training, make_optimizer
from resgrow.nn import lenet5
from resgrow.surgery.count import count_macs, count_params


def config(seed=0, epochs=4, **_):
    return make_config("mnist", "lenet5", budget="params=1", epochs=epochs, batch_size=16, lr=3e-3, seed=seed)


@pytest.fixture
def data(monkeypatch):
    found = small_data(train=96, test=32, size=28)
    monkeypatch.setattr(resgrow.data, "load", lambda *_: found)
    monkeypatch.setattr(experiment, "_config", config)
    return found


def objective(widths):
    """Least at 6-9, merged."""
    return abs(widths.first - 6) + abs(widths.second - 9) + (widths.third or 0)


def price(widths):
    return Price(trial=widths.neurons, final=4 * widths.neurons)


# ---- networks and their price ----


def test_widths_are_built_with_and_without_the_third_layer():
    data = small_data(size=28)
    shapes = [tuple(p.shape) for p in build(LENET5, data, 0).parameters()]
    assert shapes == [tuple(p.shape) for p in lenet5(1, 2, 28).parameters()]
    small, merged = build(Widths(3, 4, 5), data, 0), build(Widths(3, 4, None), data, 0)
    assert count_params(small) == 26 * 3 + 4 * (25 * 3 + 1) + 5 * (16 * 4 + 1) + 2 * (5 + 1)
    assert count_params(merged) == 26 * 3 + 4 * (25 * 3 + 1) + 2 * (16 * 4 + 1)
    assert (str(Widths(3, 4, 5)), str(Widths(3, 4, None))) == ("3-4-5-10", "3-4-10")
    assert (Widths(3, 4, 5).neurons, Widths(3, 4, None).neurons) == (12, 7)
    same, other = build(Widths(3, 4, None), data, 0), build(Widths(3, 4, None), data, 1)
    assert torch.equal(merged[0].weight, same[0].weight)
    assert not torch.equal(merged[0].weight, other[0].weight)


def test_a_twelfth_is_held_out_and_test_images_are_not_touched():
    data = small_data(train=96, test=32)
    held = hold_out(data)
    assert (len(held.train_y), len(held.test_y)) == (88, 8)
    both = torch.cat([held.train_x, held.test_x]).flatten(1)
    assert torch.equal(both.sort(0).values, data.train_x.flatten(1).sort(0).values)
    assert torch.equal(hold_out(data).test_x, held.test_x)


def test_macs_of_a_training_are_those_that_ran():
    """A hook counts the images that pass the first layer: with gradients three forward passes' worth, else one."""
    data, setting = hold_out(small_data(train=96, test=32, size=28)), config(epochs=2)
    model = build(Widths(3, 4, None), data, 0)
    passed = 0

    def count(module, inputs):
        nonlocal passed
        passed += len(inputs[0]) * (3 if torch.is_grad_enabled() else 1)

    handle = model[0].register_forward_pre_hook(count)
    Training("dense", model, make_optimizer(model.parameters(), setting), data, setting).run(
        params=lambda: 0, on_step=lambda *_: None, on_epoch=lambda _: None
    )
    handle.remove()
    assert training_macs(model, data, setting) == passed * count_macs(model, data.train_x[:1])


# ---- the search itself, of a known objective ----


# Of the Gaussian process each proposal takes a quarter of a second.
@pytest.mark.parametrize(("method", "budget"), [("random", 3000), ("evolutionary", 3000), ("bayesian", 400)])
def test_a_search_stays_within_its_budget_and_uses_it(method, budget):
    measured = []
    found = search(method, 0, budget, price, lambda widths: measured.append(widths) or objective(widths))
    assert [trial.widths for trial in found.trials] == measured
    assert len(set(measured)) == len(measured)  # nothing is paid for twice
    costs = [price(widths).trial for widths in measured]
    assert [trial.spent for trial in found.trials] == [sum(costs[: i + 1]) for i in range(len(costs))]
    total = found.trials[-1].spent + price(best(found.trials).widths).final
    assert 0.8 * budget < total <= budget
    assert best(found.trials).objective == min(map(objective, measured))


@pytest.mark.parametrize(("method", "budget", "seeds"), [("evolutionary", 1000, range(3)), ("bayesian", 400, [1])])
def test_searchers_use_what_they_are_told(method, budget, seeds):
    """Told the truth they come nearer than told nothing."""

    def least(measure):
        tried = [trial.widths for seed in seeds for trial in search(method, seed, budget, price, measure).trials]
        return sum(sorted(map(objective, tried))[:3])

    assert least(objective) < least(lambda _: 0.0)


@pytest.mark.filterwarnings("ignore:PartialFixedSampler is experimental")
def test_a_sure_gaussian_process_still_uses_the_budget(monkeypatch):
    """One that proposes the same for ever is helped by chance."""
    sampler = searchers._sampler

    def stubborn(optuna, method, seed):
        always = {"first": 6, "second": 9, "third": 1, "merged": True}
        by_chance = sampler(optuna, "random", seed)
        return optuna.samplers.PartialFixedSampler(always, by_chance) if method == "bayesian" else by_chance

    monkeypatch.setattr(searchers, "_sampler", stubborn)
    found = search("bayesian", 0, 1500, price, objective)
    assert found.trials[0].widths == Widths(6, 9, None)
    assert found.trials[-1].spent + price(found.trials[0].widths).final > 0.8 * 1500


def test_seeds_differ_and_a_seed_repeats():
    first, again, other = (
        [trial.widths for trial in search("random", seed, 2000, price, objective).trials] for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_a_budget_for_nothing_is_refused():
    with pytest.raises(RunError, match="must pay for a trial and a training"):
        search("random", 0, 1, price, objective)


def test_without_optuna_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(RunError, match=r"pip install 'optuna>=4\.0'"):
        search("random", 0, 3000, price, objective)


# ---- with networks ----


def test_learning_is_the_unit_and_its_objective_counts_open_neurons(data, tmp_path):
    found = learnt(Problem(Runs(tmp_path, "x"), data, 0, 4))
    assert found["spent"] == 1.0
    first, second, third = found["found"]
    assert found["neurons"] == first + second + (third or 0)
    assert found["objective"] == pytest.approx(found["val_loss"] + GATES * found["neurons"])


def test_a_stopped_search_resumes_as_if_it_had_not_been_stopped(data, tmp_path, monkeypatch):
    whole = Runs(tmp_path / "whole", "x")
    expected = searched(Problem(whole, data, 0, 4), "evolutionary", 0.5)
    assert expected["spent"] <= 0.5
    assert expected["curve"][-1]["spent"] < expected["spent"]  # the last training is paid for, too
    runs = Runs(tmp_path / "stopped", "x")
    train, trained = experiment.train, []

    def stop_at_third(model, *arguments):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(model)
        return train(model, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "train", stop_at_third)
        with pytest.raises(KeyboardInterrupt):
            searched(Problem(runs, data, 0, 4), "evolutionary", 0.5)
    kept = list(runs)
    assert len(kept) == 2
    found = searched(Problem(runs, data, 0, 4), "evolutionary", 0.5)
    assert {**found, "work_seconds": 0} == {**expected, "work_seconds": 0}
    assert list(runs)[:2] == kept  # not trained again: their seconds are the old ones
    assert len(list(runs)) == len(list(whole)) == expected["trials"] + 1
    assert found["work_seconds"] >= sum(run["seconds"] for run in runs)


def test_the_command_runs_reports_and_does_nothing_twice(data, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "FACTORS", (0.3,))
    made(experiment.EXPERIMENT, tmp_path, 1, 4, "learnt", "random")
    lines = lines_of(tmp_path)
    parts = [line for line in lines if "part" in line]
    assert [(line["part"], line.get("factor")) for line in parts] == [("learnt", None), ("random", 0.3)]
    assert [line["epochs"] for line in lines if "network" in line] == [1] * parts[1]["trials"] + [4]
    told = told_in(tmp_path)
    assert "| learnt | 4 | 1 | 1.00 |" in told
    assert "| random, budget 0.3 | 4 | 1 |" in told
    assert is_drawn(tmp_path)
    assert made(experiment.EXPERIMENT, tmp_path, 1, 4, "learnt", "random") == ""


# ---- the report ----


def result(part, seed, spent, value, curve=None, **more):
    known = {"part": part, "seed": seed, "epochs": 8, "gates": GATES, "found": [5, 8, None], "neurons": 13}
    judged = {"objective": value, "val_loss": value - 0.065, "params": 3000, "test_accuracy": 0.98}
    more = {**more, "work_seconds": 9.0, "spent": spent}
    trials = [{"spent": at, "objective": each} for at, each in curve or []]
    return {**known, **judged, **more, **({"curve": trials, "trials": len(trials)} if curve else {})}


def test_the_report_says_how_soon_searches_were_as_good_seed_by_seed():
    runs = [
        result("learnt", 0, 1.0, 0.2),
        result("learnt", 1, 1.0, 0.1),
        result("learnt", 2, 1.0, 0.3),
        result("random", 0, 1.9, 0.15, [(0.1, 0.5), (0.4, 0.2), (0.7, 0.19)], factor=2),  # by its second trial
        result("random", 1, 1.8, 0.14, [(0.1, 0.5), (0.4, 0.2)], factor=2),  # never
        result("random", 2, 1.7, 0.25, [(0.1, 0.5), (0.4, 0.4)], factor=2),  # by the last training only
        {"network": [5, 8, None], "seed": 0, "epochs": 8, "objective": 0.0},  # a single network is no method
    ]
    told = search_report.tell(runs)
    assert "random, 8 epochs: learning runs until as good, by seed: 0.40, not within 2, 1.70." in told
    assert "| learnt | 8 | 3 | 1.00 ± 0.00 |  | 5-8-10, 5-8-10, 5-8-10 | 0.2000 ± 0.1000 |" in told
    assert "| random, budget 2 | 8 | 3 | 1.80 ± 0.10 | 2 ± 1 |" in told
    assert "evolutionary" not in told


def test_the_mean_line_starts_where_every_seed_has_a_trial():
    runs = [
        result("random", 0, 1.9, 0.15, [(0.1, 0.5), (0.4, 0.6), (0.7, 0.1)], factor=2),
        result("random", 1, 1.8, 0.14, [(0.2, 0.3)], factor=2),
    ]
    assert search_report._falling(runs[0]) == [0.5, 0.5, 0.1]
    x, y = search_report._mean(runs)
    assert x == [0.2, 0.4, 0.7]
    assert y == pytest.approx([0.4, 0.4, 0.2])
