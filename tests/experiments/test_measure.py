from __future__ import annotations

import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resgrow._errors import RunError
from resgrow.experiments import measure
from resgrow.experiments.measure import evaluate, latency, require_same_outputs


@pytest.mark.parametrize("batch", [3, 1000])
def test_evaluate_is_the_mean_over_all_images(monkeypatch, batch):
    monkeypatch.setattr(measure, "EVALUATION_BATCH", batch)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 3))
    x, y = torch.randn(10, 1, 2, 2), torch.arange(10) % 3
    loss, accuracy = evaluate(model, x, y)
    assert model.training
    logits = model.eval()(x)
    assert loss == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-5)
    assert accuracy == int((logits.argmax(1) == y).sum()) / 10


class Recorder(nn.Module):
    def __init__(self, name, log, pause):
        super().__init__()
        self.name, self.log, self.pause = name, log, pause

    def forward(self, x):
        self.log.append(self.name)
        time.sleep(self.pause)
        return x


def test_latency_takes_turns_and_tells_slow_from_fast(monkeypatch):
    monkeypatch.setattr(measure, "LATENCY_SECONDS", 0.0)
    monkeypatch.setattr(measure, "LATENCY_REPETITIONS", 10)
    log = []
    models = {"fast": Recorder("fast", log, 0.0), "slow": Recorder("slow", log, 0.003)}
    times = latency(models, torch.zeros(1, 1, 2, 2))
    assert log[2 * measure.WARM_UP :] == ["fast", "slow", "slow", "fast"] * 5
    assert times["slow"] >= 0.003 > times["fast"]


def test_same_outputs():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    x = torch.randn(5, 1, 2, 2)
    assert require_same_outputs(model, model, x) == 0


@pytest.mark.parametrize("change", [0.1, float("nan")])
def test_other_outputs(change):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    other = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    other.load_state_dict(model.state_dict())
    other[1].bias.data[0] += change
    with pytest.raises(RunError, match="must give the outputs of the masked one"):
        require_same_outputs(model, other, torch.randn(5, 1, 2, 2))
