"""The controller's experiments: small runs, resuming, and what is told of them."""

from __future__ import annotations

import copy
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from alone import is_drawn, lines_of, made, told_in
from torch import nn

from resgrow._errors import InputError
from resgrow.experiments.controller import capacity, overhead, robustness
from resgrow.experiments.controller.problems import batches, digit_task, friedman_task, optimizers, wine_task


def test_capacity_runs_resume_and_tell(tmp_path, monkeypatch):
    monkeypatch.setattr(capacity, "FREQUENCIES", (2,))
    made(capacity.EXPERIMENT, tmp_path, 1, 15)
    results = lines_of(tmp_path)
    assert [run["start"] for run in results] == ["small", "large"]
    for run in results:
        assert run["params"] == run["curve"][-1][1]
        assert run["at"] >= run["curve"][-1][0]
        assert run["moves"]
    large = results[1]
    assert large["params"] < sum(p.numel() for p in capacity.network(32).parameters())
    assert made(capacity.EXPERIMENT, tmp_path, 1, 15) == ""
    assert lines_of(tmp_path) == results
    assert "Runs: 2, of which 2" in told_in(tmp_path)
    assert is_drawn(tmp_path)


def size(k: int, start: str, params: int | None, seed: int = 0) -> dict[str, Any]:
    return {
        "k": k,
        "start": start,
        "seed": seed,
        "params": params,
        "seconds": 2,
        "controller_seconds": 1,
        "reversals": 1,
    }


def test_ends_are_compared_by_frequency_and_seed():
    results = [size(2, "small", 10), size(2, "large", 12), size(4, "small", 40), size(4, "large", 30)]
    results += [size(2, "small", 10, seed=1), size(4, "large", None, seed=1)]
    assert capacity.ratios(results[:4]) == {(2, 0): 1.2, (4, 0): pytest.approx(4 / 3)}
    told = capacity.tell(results)
    assert "within 25 % of each other in 1 of 2 pairs, median ratio 1.27" in told
    assert "target 1.25 in the median: missed" in told
    assert "1.00 from small, 1.00 from large; target 0.9 in each: missed" in told  # 0.89 of all
    assert "Runs: 6, of which 5" in told
    assert "10 ± 0 (10, 10)" in told
    assert capacity.ranks([size(k, "small", -k) for k in (2, 4, 6)]) == pytest.approx(-1)


def test_only_changes_of_size_are_kept():
    assert capacity.changes([(50, 9), (100, 9), (150, 7), (200, 9)]) == [(50, 9), (150, 7), (200, 9)]


def test_tasks_have_columns_of_variance_one_and_a_fixed_split():
    task = friedman_task(None)
    assert task.classes is None
    assert (len(task.train[0]), len(task.test[0])) == (3200, 800)
    torch.testing.assert_close(task.train[0].std(0, correction=0), torch.ones(10), atol=1e-4, rtol=0)
    assert float(task.train[1].mean()) == pytest.approx(0, abs=1e-5)
    mean = nn.Sequential(nn.Linear(10, 1))
    nn.init.zeros_(mean[0].weight)
    nn.init.constant_(mean[0].bias, float(task.test[1].mean()))
    loss, score = task.score(mean)
    assert loss == pytest.approx(float(task.test[1].var(correction=0)), rel=1e-4)
    assert score == pytest.approx(0, abs=1e-3)
    known = digit_task(None)
    assert known.train[0].shape == (1437, 64)
    assert known.score(known.network(0))[1] < 50


def test_wine_is_read_from_both_files(tmp_path, monkeypatch):
    monkeypatch.delenv("RESGROW_DATA_DIR", raising=False)
    with pytest.raises(InputError, match="winequality-red"):
        wine_task(str(tmp_path / "nowhere"))
    folder = tmp_path / "tabular"
    folder.mkdir()
    rows = np.random.default_rng(0).normal(size=(60, 12))
    for colour, part in (("red", rows[:20]), ("white", rows[20:])):
        text = ";".join(f'"{name}"' for name in [*range(11), "quality"]) + "\n"
        text += "\n".join(";".join(f"{value:.6f}" for value in row) for row in part)
        (folder / f"winequality-{colour}.csv").write_text(text)
    task = wine_task(str(tmp_path))
    assert task.train[0].shape == (48, 11)
    assert task.test[1].shape == (12, 1)
    assert task.classes is None


def test_batches_depend_on_the_seed_alone():
    task = friedman_task(None)
    one, same, other = (list(batches(task, seed, 64, 60)) for seed in (0, 0, 1))
    assert len(one) == 60
    assert all(torch.equal(a[0], b[0]) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[0][0], other[0][0])
    assert len({float(x[0, 0]) for x, _ in one[:50]}) == 50  # an epoch repeats nothing


def test_robustness_runs_and_tells(tmp_path, monkeypatch):
    monkeypatch.setattr(robustness, "BUDGETS", (0.2,))
    monkeypatch.setattr(robustness, "STEPS_PER_EPOCH", 150)
    monkeypatch.setattr(robustness, "optimizers", lambda: {"Adam": optimizers()["Adam"]})
    made(robustness.EXPERIMENT, tmp_path, 1, 2, "friedman")
    twin, limited, free = lines_of(tmp_path)
    assert (twin["budget"], limited["deadline"], free["deadline"]) == (None, 240, None)
    assert limited["met"]
    assert limited["params"] <= 0.2 * sum(p.numel() for p in friedman_task(None).network(0).parameters())
    assert limited["identical"]
    assert free["identical"]
    told = told_in(tmp_path)
    assert "Runs: 1; budget met in 1" in told
    assert "1 of 1 ended identical" in told
    assert "Errors: 0." in told


def test_a_run_that_differs_is_seen():
    task = friedman_task(None)
    made = [robustness.parts(task, "SGD", 0.5, 0, None) for _ in range(2)]
    data = list(islice(batches(task, 0, 64, 30), 30))
    for model, optimizer, ctl in made:
        robustness.train(model, optimizer, ctl, task, data)
    assert robustness.same(*made)
    state = made[1][1].state[made[1][0][0].weight]
    state["momentum_buffer"] = state["momentum_buffer"] + 1e-6
    assert not robustness.same(*made)


def test_errors_are_results():
    def fails() -> dict[str, Any]:
        raise ValueError("no")

    assert robustness.guarded(fails) == {"error": "no"}
    assert robustness.guarded(lambda x: {"x": x}, 3) == {"x": 3, "error": None}


def test_overhead_runs_and_tells(tmp_path, monkeypatch):
    monkeypatch.setattr(overhead, "UNITS", ("channel",))
    made(overhead.EXPERIMENT, tmp_path, 1, 1, "perceptron-64")
    (run,) = lines_of(tmp_path)
    assert run["every"] == 462  # by the batch and the share of the work
    assert 0 < run["curvature"] < run["step"]
    assert run["all"] == pytest.approx(run["step"] + run["masks"])
    assert "perceptron-64" in told_in(tmp_path)


def test_twins_of_an_overhead_run_start_alike_and_only_one_changes():
    pair = overhead.Pair.of(overhead.LOADS["perceptron-64"], "channel", 0)
    before = copy.deepcopy(pair.alone.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in pair.beside.state_dict().items())
    spent = pair.stretch(2)
    assert min(spent["alone"], spent["beside"], spent["controller"]) > 0
    assert all(torch.equal(value, pair.beside.state_dict()[name]) for name, value in pair.alone.state_dict().items())


def test_ratios_are_medians_relative_to_training_alone():
    rows = [{"alone": 1.0, "beside": 1.0 + 0.1 * i, "controller": 0.1 * i, "curvature": 0.05 * i} for i in (1, 2, 9)]
    told = overhead._ratios(rows)
    assert told["all"] == pytest.approx(0.4)
    assert told["step"] == pytest.approx(0.2)
    assert told["curvature"] == pytest.approx(0.1)
    assert told["masks"] == pytest.approx(0.2)
