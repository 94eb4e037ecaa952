"""The architecture experiments on images of a second: what they record, and that they resume."""

from __future__ import annotations

import pytest
import torch
from alone import is_drawn, lines_of, made, told_in
from small import small_data

import resgrow.data
from resgrow.experiments.architecture import classes, coefficients, depth, table
from resgrow.experiments.architecture.table import Row, learn_row
from resgrow.experiments.config import make_config
from resgrow.experiments.frame.data_part import with_classes
from resgrow.experiments.frame.runs import Runs


@pytest.fixture
def data(monkeypatch):
    found = small_data(train=96, test=32, size=28)
    monkeypatch.setattr(resgrow.data, "load", lambda *arguments: found)
    return found


def config(**changes):
    return make_config(
        "mnist", "lenet5", **{"budget": "params=1", "epochs": 6, "batch_size": 16, "lr": 1e-3, **changes}
    )


def test_a_row_is_learnt_made_smaller_and_trained_again(data):
    found = learn_row(Row(("width", "neither", "both"), 3e-2), config(), data)
    first, second, third = found["widths"]
    assert second is None  # not learnt: all 50 stay
    assert first < 20
    assert third < 500
    assert found["deviation"] <= 1e-12
    if not found["linear"]:
        assert found["params"] == 26 * first + 50 * (25 * first + 1) + third * 801 + (third + 1) * 2
    assert {step["step"] for step in found["curve"]} == set(range(1, 37))
    assert found["curve"][0]["widths"] == {"2": 20, "8": 500}
    assert found["accuracy"] > 0.9
    assert found["scratch_accuracy"] > 0.9


def test_results_are_kept_and_not_made_again(data, tmp_path, monkeypatch):
    monkeypatch.setattr(table, "make_config", lambda *_, seed, epochs, **__: config(seed=seed))
    said = made(table.EXPERIMENT, tmp_path, 2, 6, "dense", "third, small")
    assert said.startswith("alone: row dense, seed 0, epochs 6  ")
    lines = lines_of(tmp_path)
    assert [(line["row"], line["seed"], line["epochs"]) for line in lines] == [
        (row, seed, 6) for seed in (0, 1) for row in ("dense", "third, small")
    ]
    assert lines[0]["svd-10"]["params"] < lines[0]["svd-40"]["params"] < lines[0]["params"]
    told = told_in(tmp_path)
    assert "| dense |  | 6 | 2 | 20-50-500-10 | " in told
    assert "SVD, rank 70" in told
    assert is_drawn(tmp_path)
    assert made(table.EXPERIMENT, tmp_path, 2, 6, "dense", "third, small") == ""
    assert lines_of(tmp_path) == lines


def test_part_of_the_classes():
    data = small_data(train=96, test=32, size=28)
    part = with_classes(data, [1, 0], 9)
    assert part.train_y.bincount().tolist() == [4, 5]
    ones = data.train_x[data.train_y == 1][:4]
    assert all(any(x.equal(one) for one in ones) for x in part.train_x[part.train_y == 0])
    assert (part.test_y == 0).sum() == (data.test_y == 1).sum()
    assert part.classes == (data.classes[1], data.classes[0])
    assert len(with_classes(data, [1]).train_y) == (data.train_y == 1).sum()
    with pytest.raises(ValueError, match="class 0 must have 500 training images"):
        with_classes(data, [0, 1], 1000)


@pytest.mark.parametrize(
    ("widths", "share"),
    [
        ([9, 9, 9, 9], 0.0),
        ([500, 300, 100, 101], 0.5),
        ([5, 4, 5, 5], 0.0),
        ([5, 4, 5, 6], 0.5),
        ([1, 1, 1, 100], 0.75),
    ],
)
def test_when_a_width_has_settled(widths, share):
    assert coefficients.settled(widths) == share


def test_coefficients(data, tmp_path, monkeypatch):
    monkeypatch.setattr(coefficients, "make_config", lambda *_, seed, epochs, **__: config(seed=seed, epochs=epochs))
    monkeypatch.setattr(coefficients, "PRICES", ((1e-3, 2.0), (5e-2, 2.0)))
    monkeypatch.setattr(coefficients, "BINDINGS", ((5e-2, 2.0), (5e-2, 50.0)))
    made(coefficients.EXPERIMENT, tmp_path, 1, 6)
    cheap, dear, bound = lines_of(tmp_path)
    assert dear["neurons"] < cheap["neurons"]
    assert len(dear["curve"]) == len(dear["steps"])
    # Far stronger than the price it holds gates where they are, .7, rather than closes them.
    assert bound["neurons"] > dear["neurons"]
    assert "| 0.05 | 50 | 6 | 1 |" in told_in(tmp_path)


def test_classes(data, tmp_path, monkeypatch):
    monkeypatch.setattr(classes, "make_config", lambda *_, seed, epochs, **__: config(seed=seed, epochs=epochs))
    monkeypatch.setattr(classes, "PRICES", (1e-3, 5e-2))
    made(classes.EXPERIMENT, tmp_path, 1, 6)
    cheap, dear = lines_of(tmp_path)
    assert dear["neurons"] == sum(dear["widths"]) < cheap["neurons"]
    assert [(run["classes"], run["gates"]) for run in (cheap, dear)] == [(2, 1e-3), (2, 5e-2)]


def test_rank_correlation_of_classes_and_widths():
    def runs(seed, widths):
        return [
            {"seed": seed, "classes": 2 + i, "widths": [1, 1, width], "gates": 0.1, "accuracy": 0.5}
            for i, width in enumerate(widths)
        ]

    up, down = runs(0, [3, 5, 9, 10]), runs(1, [9, 5, 3, 2])
    assert classes.rank_correlation(up, 2) == pytest.approx(1)
    assert classes.rank_correlation(down, 2) == pytest.approx(-1)
    assert classes.rank_correlation(up + runs(1, [8, 9, 2, 30]), 2) == pytest.approx(3 / 22.5**0.5)  # 5.5, 7, 5.5, 20
    assert "by seed 1.00, -1.00; of the means" in classes.tell(up + down)


def test_depth(data, tmp_path, monkeypatch):
    monkeypatch.setattr(depth, "make_config", lambda *_, seed, epochs, **__: config(seed=seed, epochs=epochs))
    monkeypatch.setattr(depth, "DEPTHS", (3, 5))
    made(depth.EXPERIMENT, tmp_path, 1, 2)
    runs = lines_of(tmp_path)
    assert [(run["what"], run["layers"]) for run in runs] == [("learnt", 3), ("plain", 3), ("learnt", 5), ("plain", 5)]
    for run in runs[::2]:
        assert run["deviation"] <= 1e-12
        assert run["found"] == len(run["widths"]) <= run["layers"]
    assert [run["params"] for run in runs[1::2]] == [784 * 100 + 100 + 10_100 * n + 202 for n in (1, 3)]
    told = depth.tell(runs + [run | {"epochs": 9, "seed": 1, "found": 2} for run in runs])
    assert f"| 2 | 3 | 1 | {runs[0]['found']} | {runs[0]['found']}.0 |" in told
    assert "| 9 | 5 | 1 | 2 | 2.0 |" in told


def test_the_network_of_the_depth_experiment_keeps_the_size_of_its_signals(data):
    x = torch.randn(64, *data.train_x.shape[1:])
    deep, shallow = (depth.plain_network(layers, data, 0)(x).detach().std() for layers in (15, 3))
    assert 0.2 < deep / shallow < 5


def test_a_run_is_found_by_its_settings(tmp_path):
    runs = Runs(tmp_path / "new", "x")
    first = runs.make({"seed": 0, "learn": ("a", "b")}, lambda: {"value": 1})
    assert first["value"] == 1
    again = runs.make({"seed": 0, "learn": ("a", "b")}, lambda: pytest.fail("made again"))
    assert again["value"] == 1
    assert runs.make({"seed": 1, "learn": ("a", "b")}, lambda: {"value": 2})["value"] == 2
    assert [run["value"] for run in runs] == [1, 2]
