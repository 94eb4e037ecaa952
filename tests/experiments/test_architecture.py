"""The architecture experiments on images of a second: what they record, and that they resume."""

from __future__ import annotations

import json

import pytest
from small import small_data

import resgrow.data
from resgrow.experiments.architecture import table
from resgrow.experiments.architecture.command import main
from resgrow.experiments.architecture.table import Row, learn_row
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


def test_results_are_kept_and_not_made_again(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(table, "make_config", lambda *_, seed, epochs, **__: config(seed=seed))
    arguments = ["table", "--work", str(tmp_path), "--only", "dense", "third, small", "--seeds", "0", "1"]
    main([*arguments, "--epochs", "6"])
    lines = [json.loads(line) for line in (tmp_path / "table.jsonl").read_text().splitlines()]
    assert [(line["row"], line["seed"], line["epochs"]) for line in lines] == [
        (row, seed, 6) for seed in (0, 1) for row in ("dense", "third, small")
    ]
    assert lines[0]["svd-10"]["params"] < lines[0]["svd-40"]["params"] < lines[0]["params"]
    told = (tmp_path / "table.md").read_text()
    assert "| dense |  | 6 | 2 | 20-50-500-10 | " in told
    assert "SVD, rank 70" in told
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    main([*arguments, "--epochs", "6"])
    assert capsys.readouterr().out == ""
    assert len((tmp_path / "table.jsonl").read_text().splitlines()) == 4


def test_parts_are_known_names(tmp_path):
    with pytest.raises(SystemExit, match="--only takes all, small"):
        main(["table", "--work", str(tmp_path), "--only", "fourth"])
