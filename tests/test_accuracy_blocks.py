"""benchmarks/accuracy_blocks.py: its parts that hold logic, and a whole run on a small network."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import resgrow
from resgrow.data import load

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import _recipes
import accuracy_blocks
from _accuracy import check, remove
from _block_tables import accuracies, densities
from _recipes import PAD, cycle, shift_and_flip


def test_images_are_shifted_and_mirrored_windows_of_themselves():
    x = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    moved = shift_and_flip(x, torch.Generator().manual_seed(1))
    assert moved.shape == x.shape
    assert moved.is_contiguous(memory_format=torch.channels_last)
    padded = torch.nn.functional.pad(x, (PAD,) * 4)
    seen = set()
    for image, found in zip(padded, moved, strict=True):
        places = [
            (row, column, mirrored)
            for row in range(2 * PAD + 1)
            for column in range(2 * PAD + 1)
            for mirrored in (False, True)
            if torch.equal(found, window(image, row, column, mirrored))
        ]
        assert places
        seen.add(places[0])
    assert {row for row, _, _ in seen} == {column for _, column, _ in seen} == set(range(2 * PAD + 1))
    assert {mirrored for _, _, mirrored in seen} == {False, True}


def window(image: torch.Tensor, row: int, column: int, mirrored: bool) -> torch.Tensor:
    found = image[:, row : row + 8, column : column + 8]
    return found.flip(2) if mirrored else found


def test_the_learning_rate_rises_once_and_falls_to_almost_zero():
    factors = [cycle(step, 40, 0.25) for step in range(40)]
    assert factors[:10] == sorted(factors[:10])
    assert 0 < factors[0] < 0.1
    assert factors[10] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert 0 < factors[-1] < 0.01
    assert cycle(0, 5, 0.0) == 1.0


@pytest.mark.parametrize("block", [(1, 1), (4, 1), (16, 16), "channel"])
def test_what_is_removed_stays_removed_whatever_its_new_score(block):
    torch.manual_seed(0)
    model = resgrow.nn.resnet(8, 0.5)
    masks = remove(model, resgrow.saliency(model, method="magnitude"), 0.5, block)
    check(model, masks, block, 0.5)
    favoured = {name: 1.0 - parameter.detach().abs() for name, parameter in model.named_parameters()}
    again = remove(model, favoured, 0.7, block, masks)
    check(model, again, block, 0.7)
    assert all(not (again[name] & ~mask).any() for name, mask in masks.items())


def test_check_sees_weights_that_came_back():
    torch.manual_seed(0)
    model = resgrow.nn.resnet(8, 0.25)
    masks = remove(model, resgrow.saliency(model, method="magnitude"), 0.5, (4, 1))
    with pytest.raises(AssertionError, match="asked for"):
        check(model, masks, (4, 1), 0.7)
    with torch.no_grad():
        model.fc.weight.fill_(1.0)
    with pytest.raises(AssertionError, match="not zero"):
        check(model, masks, (4, 1), 0.5)


def row(pattern: str, sparsity: float, accuracy: float, **other: object) -> dict:
    left = {"first": 1.0, "a": 0.2, "b": 0.1, "last": 0.5}
    known = {"method": "obd", "exclude": "", "pattern": pattern, "sparsity": sparsity, "accuracy": accuracy}
    return {**known, "left": left, "macs": 0.3, **other}


def test_tables_show_means_ranges_and_gaps():
    rows = [row("4x1", 0.5, 90.0), row("4x1", 0.5, 91.0), row("4x1", 0.9, 60.0), row("16x1", 0.5, 80.0)]
    rows += [row("4x1", 0.9, 70.0, exclude="0 9"), row("4x1", 0.9, 50.0, method="magnitude")]
    assert accuracies(rows) == [
        "| removed | 50% | 90% |",
        "|---|---:|---:|",
        "| 4x1 | **90.50 (90.00 to 91.00)** | 60.00 |",
        "| 16x1 | 80.00 |  |",
        "| 4x1, 0 and 9 left whole |  | **70.00** |",
        "| 4x1, magnitude |  | 50.00 |",
    ]
    assert densities(rows[:1])[-1] == "| 4x1 | 30% | 100% | 50% | 20% (a) | 10% (b) |"
    fewer = row("channels", 0.5, 80.0, left={"a": 0.2, "b": 0.1})
    assert densities([rows[0], fewer])[-1] == "| channels | 30% | no candidate | no candidate | 20% (a) | 10% (b) |"


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A function that runs the command on resnet(8) of quarter width and the digits; its results so far."""
    recipe = replace(
        _recipes.RECIPES["resnet20"],
        make=lambda: resgrow.nn.resnet(8, 0.25, in_channels=1),
        shifted=False,
    )
    monkeypatch.setattr(_recipes.Recipe, "load", lambda self, cifar: load("digits"))
    monkeypatch.setitem(_recipes.RECIPES, "resnet20", recipe)

    def run(*options: str) -> list[dict]:
        common = ["accuracy_blocks", "resnet20", "--work", str(tmp_path), "--epochs", "1", "--tuning", "2"]
        monkeypatch.setattr(sys, "argv", [*common, "--images", "64", "--sparsities", "0.6", "0.5", *options])
        accuracy_blocks.main()
        return [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]

    return run


def test_a_run_goes_on_where_it_was_stopped_and_reports(small, monkeypatch, tmp_path):
    few = small("--patterns", "4x1", "--stages", "tuned", "--method", "magnitude")
    assert [(found["stage"], found["sparsity"]) for found in few] == [("tuned", 0.6), ("tuned", 0.5)]
    stages = ("--stages", "one-shot", "tuned", "iterative", "--method", "magnitude", "--patterns", "4x1", "channels")
    every = small(*stages)
    assert every[:2] == few
    assert len(every) == 12  # two patterns, three stages, two sparsities
    assert small(*stages) == every
    monkeypatch.setattr(sys, "argv", ["accuracy_blocks", "--work", str(tmp_path), "--out", str(tmp_path / "report")])
    accuracy_blocks.main()
    report = (tmp_path / "report.md").read_text()
    assert all(text in report for text in ("### One-shot", "### Tuned", "### Iterative", "| channels, magnitude |"))
    assert (tmp_path / "report.png").stat().st_size > 0
