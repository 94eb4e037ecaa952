"""Saliency against truth: exact where the loss is quadratic, by hand elsewhere, and what is concluded from it."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from alone import is_drawn, lines_of, made, told_in
from torch import nn

from resgrow.experiments.saliency_truth import deletions, experiment
from resgrow.experiments.saliency_truth.agreement import log_pearson, rank, ratio
from resgrow.experiments.saliency_truth.deletions import GGN, HESSIAN, STEPS, Truth, growing, holds, scores, stepwise
from resgrow.experiments.saliency_truth.experiment import EXPERIMENT, answer, rows
from resgrow.experiments.saliency_truth.networks import JUDGED, Net, trained


@pytest.fixture
def quadratic():
    """Each weight has an input of its own, and the loss its minimum: OBD has nothing to leave out."""
    model = nn.Linear(6, 1, bias=False).double()
    x = torch.diag(torch.arange(1.0, 7.0)).double()
    return Net(model, nn.MSELoss(), x, model(x).detach())


@pytest.mark.parametrize("criterion", [HESSIAN, GGN])
def test_where_the_loss_is_quadratic_predictions_are_what_happens(quadratic, criterion):
    before = copy.deepcopy(quadratic.model.state_dict())
    judged = Truth(quadratic, 6, seed=0).judge(criterion)
    assert len(judged["pairs"]) == 6
    for predicted, measured in judged["pairs"]:
        assert predicted == pytest.approx(measured, rel=1e-9)
    for _, predicted, measured in judged["sets"]:
        assert predicted == pytest.approx(measured, rel=1e-9)
    assert judged["holds"] == deletions.SHARES[-1]
    assert rank(judged["pairs"]) == pytest.approx(1)
    assert ratio(judged["pairs"]) == pytest.approx(1)
    assert all(torch.equal(value, before[name]) for name, value in quadratic.model.state_dict().items())


def test_steps_do_not_count_what_is_gone_already(quadratic):
    score, _ = scores(quadratic, GGN)
    once, again = growing(quadratic, score, in_loss=True), stepwise(quadratic)
    for one, other in zip(once, again, strict=True):
        assert one == pytest.approx(other, rel=1e-9)


def test_sets_are_of_the_lowest_scores(quadratic):
    score = {"weight": torch.tensor([[3.0, 1, 2, 6, 5, 4]]).double()}
    w, found = quadratic.model.weight.detach(), growing(quadratic, score, in_loss=False)
    half = found[deletions.SHARES.index(0.5)]
    cost = float(((w[0, [1, 2, 0]] * torch.tensor([2.0, 3, 1])) ** 2).sum() / 6)
    assert half == (0.5, None, pytest.approx(cost))


@pytest.mark.parametrize(
    ("points", "share"),
    [
        ([(0.1, 1.0, 1.9), (0.2, 2.0, 1.01), (0.3, 4.0, 9.0), (0.4, 5.0, 5.0)], 0.2),
        ([(0.1, 1.0, 2.1)], 0.0),
        ([(0.1, 0.0, 5e-5), (0.2, 1e-7, 9e-5), (0.3, 1e-7, 2e-4)], 0.2),  # too little to speak of
        ([(0.1, 0.1, -0.1)], 0.0),
        ([(0.1, None, 0.2)], 0.0),
    ],
)
def test_how_far_a_prediction_holds(points, share):
    assert holds(points) == share


def test_agreement():
    pairs = [(1.0, 2.0), (10.0, 20.0), (100.0, 200.0), (-5.0, 1.0), (0.5, -1.0)]
    assert ratio(pairs) == pytest.approx(2)
    assert log_pearson(pairs) == pytest.approx(1)
    assert rank(pairs) == pytest.approx(0.9)
    assert math.isnan(rank([(1.0, 2.0), (1.0, 3.0)]))
    assert math.isnan(log_pearson([(1.0, 1.0), (2.0, 2.0)]))
    assert math.isnan(ratio([(-1.0, 1.0)]))


def test_a_minimum_is_one():
    net = trained("tanh", "minimum", 0, 2, None)
    assert net.x.shape == (JUDGED, 64)
    net.loss_fn(net.model(net.x), net.y).backward()
    slope = max(float(p.grad.abs().max()) for p in net.model.parameters())
    ordinary = trained("tanh", "trained", 0, 2, None)
    ordinary.loss_fn(ordinary.model(ordinary.x), ordinary.y).backward()
    assert slope < 1e-2 * max(float(p.grad.abs().max()) for p in ordinary.model.parameters())
    assert ordinary.loss({}) == ordinary.dense


def test_it_runs_resumes_and_tells(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "PER_LAYER", 4)
    short = {name: deletions.CRITERIA[name] for name in (GGN, STEPS, "magnitude")}
    monkeypatch.setattr(experiment, "CRITERIA", short)
    made(EXPERIMENT, tmp_path, 1, 2, "perceptron")
    runs = lines_of(tmp_path)
    assert [(run["state"], run["criterion"]) for run in runs] == [
        (state, name) for state in ("trained", "minimum") for name in short
    ]
    assert all(len(run["pairs"]) == 12 for run in runs)
    # What is measured of single weights is the same for all criteria.
    assert len({tuple(measured for _, measured in run["pairs"]) for run in runs if run["state"] == "minimum"}) == 1
    assert made(EXPERIMENT, tmp_path, 1, 2, "perceptron") == ""
    told = told_in(tmp_path)
    assert "**perceptron, minimum**: 1,440 weights" in told
    assert "| magnitude | " in told
    assert is_drawn(tmp_path)


def run_of(criterion: str, pairs: list[tuple[float, float]], share: float | None, **more: Any) -> dict[str, Any]:
    known = {"network": "perceptron", "state": "trained", "seed": 0, "criterion": criterion, "loss": 0.1}
    return {**known, "weights": 9, "pairs": pairs, "holds": share, "in_loss": share is not None, "sets": [], **more}


UP, DOWN = [(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)], [(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)]
MIXED = [(1.0, 1.0), (2.0, 2.0), (3.0, 4.0), (4.0, 3.0), (5.0, 6.0), (6.0, 5.0), (7.0, 3.5)]


@pytest.mark.parametrize(("pairs", "verdict"), [(UP, "Yes, "), (MIXED, "In part, "), (DOWN, "No, ")])
def test_the_answer_goes_by_the_order_of_single_weights(pairs, verdict):
    told = answer([run_of(GGN, pairs, 0.3), run_of(STEPS, pairs, 0.6), run_of("magnitude", DOWN, None)])
    assert told.startswith(verdict)
    assert "magnitude -1.00" in told
    assert "up to 30 % (30 to 30) of the weights in the median, and up to 60 %" in told


def test_without_exact_curvature_nothing_is_concluded():
    assert answer([run_of("magnitude", UP, None)]).startswith("Not known yet.")


def test_tables_have_a_row_for_each_run_and_each_set():
    found = rows([run_of(GGN, UP, 0.3, sets=[(0.1, 1.0, 2.0), (0.2, 3.0, 4.0)]), run_of("magnitude", UP, None)])
    assert [row["measured_over_predicted"] for row in found["singles"]] == [1, None]
    assert [(row["share"], row["predicted"], row["measured"]) for row in found["sets"]] == [(0.1, 1, 2), (0.2, 3, 4)]
