"""The architecture learning experiment on images of a second: what it records, and that it resumes."""

from __future__ import annotations

import json

import pytest
from small import small_data

import resgrow.data
from resgrow.experiments import architecture_learning
from resgrow.experiments.architecture_learning import Row, learn, main
from resgrow.experiments.config import make_config


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
    found = learn(Row(("width", "neither", "both"), 3e-2), config(), data)
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


def test_results_are_kept_and_not_made_again(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(architecture_learning, "make_config", lambda *_, seed, epochs, **__: config(seed=seed))
    arguments = ["x", "--work", str(tmp_path), "--rows", "dense", "--seeds", "0", "1", "--epochs", "6"]
    monkeypatch.setattr("sys.argv", arguments)
    main()
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [(line["row"], line["seed"], line["epochs"]) for line in lines] == [("dense", 0, 6), ("dense", 1, 6)]
    assert lines[0]["svd-10"]["params"] < lines[0]["svd-40"]["params"] < lines[0]["params"]
    capsys.readouterr()
    main()
    assert capsys.readouterr().out == ""
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 2
