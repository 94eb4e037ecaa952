"""What experiments conclude from results that say yes, that say no, and that are too few."""

from __future__ import annotations

from typing import Any

import pytest

from resgrow.experiments.architecture import chapters
from resgrow.experiments.controller import capacity, overhead, robustness
from resgrow.experiments.localise import grow, ripple, shrink

# ---- ripple ----


def networks(right: str, count: int, best: str) -> list[dict[str, Any]]:
    """Networks whose first layer is the one to change, as the rule ``right`` says and others do not."""
    rules = {name: [0.0, 1.0, 0.0] for name in (ripple.NAIVE, best)} | {right: [1.0, 0.0, 0.0]}
    truth = {"fall": {"training": [0.3, 0.2, 0.1], "test": [0.3, 0.2, 0.1]}}
    rise = {"rise": {"at once": [0.1, 0.2, 0.3], "fine-tuned": [0.1, 0.2, 0.3]}}
    return [{"seed": 0, "network": i, "widths": [4, 9, 24], "rules": rules, **truth, **rise} for i in range(count)]


def test_ripple_that_names_the_layer():
    told = ripple.answer({"grow": networks(ripple.NAIVE, 30, grow.BEST)})
    assert told.startswith("Yes: the largest ripple names the layer that is best widened in 100 % of 30 networks (")
    assert "more than chance (33 %), and rho+ does so in 0 %" in told
    assert told.endswith("Nor is it known which to shrink, of 0 networks.")


def test_ripple_that_does_not():
    told = ripple.answer({"grow": networks(grow.BEST, 30, grow.BEST), "shrink": networks(shrink.BEST, 30, shrink.BEST)})
    assert told.startswith("No: ")
    assert "less than chance (33 %), and rho+ does so in 100 %." in told


def test_too_few_networks():
    assert ripple.answer({"grow": networks(grow.BEST, 3, grow.BEST)}).startswith("Not known yet where to grow")


# ---- architecture-learning ----


def row(name: str, accuracy: float, params: int, **more: Any) -> dict[str, Any]:
    return {"row": name, "epochs": 9, "accuracy": accuracy, "scratch_accuracy": accuracy, "params": params, **more}


def depth(layers: int, found: int) -> dict[str, Any]:
    return {"what": "learnt", "layers": layers, "found": found}


@pytest.mark.parametrize(("accuracy", "verdict"), [(0.99, "Yes"), (0.90, "No")])
def test_learnt_widths_against_the_whole_network(accuracy, verdict):
    told = chapters.answer({"table": [row("dense", 0.993, 1000), row("all, small", accuracy, 50)]})
    assert told.startswith(f"{verdict}: 5.0 % of LeNet-5's parameters are learnt, with {100 * accuracy:.2f} %")
    assert "Nor is it known whether the depth" in told


@pytest.mark.parametrize(("ends", "word"), [((5, 6), "little"), ((5, 12), "much")])
def test_depths_that_are_found_from_others(ends, word):
    told = chapters.answer({"depth": [depth(6, ends[0]), depth(12, ends[1])]})
    assert told.startswith("Not known yet whether a smaller LeNet-5 is learnt")
    assert f"depends {word} on that at the start: 5.0 layers are left of 6, and {ends[1]}.0 of 12." in told


# ---- the controller's ----


def sizes(of: dict[int, tuple[int | None, int | None]]) -> list[dict[str, Any]]:
    return [
        {"k": k, "start": start, "seed": 0, "params": params}
        for k, pair in of.items()
        for start, params in zip(capacity.STARTS, pair, strict=True)
    ]


@pytest.mark.parametrize(
    ("of", "verdict", "near"),
    [
        ({2: (10, 11), 4: (20, 21), 6: (40, 44)}, "Yes: ", "near each other"),
        ({2: (10, 15), 4: (20, 30), 6: (40, 60)}, "Only in part: ", "apart"),
        ({2: (40, 90), 4: (20, 60), 6: (10, 30)}, "No: ", "apart"),
    ],
)
def test_whether_sizes_follow_the_task(of, verdict, near):
    told = capacity.answer(sizes(of))
    assert told.startswith(verdict)
    assert f"Both starts end {near}" in told


def test_runs_outside_of_their_limit_are_told_and_may_be_too_many():
    whole = sizes({2: (10, 11), 4: (20, 21), 6: (40, 44), 9: (None, 50)})
    assert "over 7 runs (1 runs never were within the limit)" in capacity.answer(whole)
    assert capacity.answer(whole[:4]).startswith("Not known yet")


def sized(met: bool, identical: bool = True, **more: Any) -> list[dict[str, Any]]:
    known = {"data": "digits", "optimizer": "Adam", "seed": 0, "epochs": 1}
    run = {
        "budget": 0.2,
        "deadline": 80,
        "met": met,
        "finite": True,
        "identical": identical,
        "score": 97.0,
        "error": None,
    }
    return [{**known, "budget": None, "score": 98.0}, {**known, **run, **more}]


@pytest.mark.parametrize(
    ("results", "verdict"),
    [
        (sized(True), "Yes: budgets are met, with finite weights, in 1 of 1 runs with a deadline, -1.0 points"),
        (sized(False), "No: budgets are met, with finite weights, in 0 of 1"),
        (sized(True, identical=False), "No: "),
        (sized(True, error="it broke"), "No: budgets are met, with finite weights, in 0 of 1"),
        (sized(True)[:1], "Not known yet"),
        (sized(True, deadline=None), "Not known yet"),
    ],
)
def test_budgets_and_resumed_runs(results, verdict):
    assert robustness.answer(results).startswith(verdict)


def cost(share: float, curvature: float) -> dict[str, Any]:
    return {"load": "lenet5-64", "unit": "channel", "all": share, "curvature": curvature}


def test_the_dearest_case_is_named():
    little = overhead.answer([cost(0.05, 0.01), cost(0.09, 0.02)])
    assert little.startswith("Little: at most 10 % of training in 2 of 2 cases, and 9.0 % in the dearest (lenet5-64")
    assert overhead.answer([cost(0.05, 0.01), cost(0.3, 0.02)]).startswith("More than was wanted: at most 10 % of")
