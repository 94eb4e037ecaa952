"""The forms of the speed experiment are what they are said to be, and its answer follows from the times."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from alone import is_drawn, lines_of, made, told_in
from torch import nn

from resgrow.experiments.speed import experiment, forms
from resgrow.experiments.speed.experiment import EXPERIMENT, answer
from resgrow.experiments.speed.forms import COMPACTED, DENSE, FOLDED, FUSED, INFERENCE, SWAPPED, TRAINING, Case, built
from resgrow.nn import BlockSparseConv2d
from resgrow.surgery import swap


def small() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.Flatten(), nn.Linear(32 * 16, 4)
    )


SMALL = Case(small, (2, 8, 8), 4, 2)


@pytest.fixture
def always_swapped(monkeypatch):
    """Whatever is measured on this machine."""
    monkeypatch.setattr(forms, "swap", lambda *given, **more: swap(*given, **more, force=True))


def test_forms_keep_what_they_should(always_swapped):
    model, x = built(SMALL, 0)
    found, left = forms.forms(model, x, 0.25, 0.5, INFERENCE, 0)
    assert list(found) == [DENSE, SWAPPED, FOLDED, FUSED, COMPACTED] == list(left)
    assert isinstance(found[SWAPPED][3], BlockSparseConv2d)
    weights = [m.weight for m in found[DENSE].modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    share = sum(int(weight.count_nonzero()) for weight in weights) / sum(weight.numel() for weight in weights)
    assert share == pytest.approx(0.25, abs=0.02)
    assert left[SWAPPED] == left[FUSED] < 0.5
    assert left[DENSE] == left[FOLDED] == 1
    assert found[COMPACTED][0].out_channels == found[COMPACTED][3].out_channels == 16
    assert 0.25 < left[COMPACTED] < 0.5
    with torch.inference_mode():
        assert torch.allclose(found[FUSED](x), found[DENSE](x), atol=1e-5)
    assert model[0].weight.all()


def test_in_training_nothing_is_fused():
    model, x = built(SMALL, 0)
    found, _ = forms.forms(model, x, 0.25, 0.5, TRAINING, 0)
    assert list(found) == [DENSE, SWAPPED, COMPACTED]
    assert all(form.training for form in found.values())


def test_it_runs_resumes_and_tells(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "CASES", {"lenet5": SMALL})
    monkeypatch.setattr(experiment, "DENSITIES", (0.5, 0.25))
    made(EXPERIMENT, tmp_path, 1, 1, "lenet5")
    runs = lines_of(tmp_path)
    assert [(run["mode"], run["density"]) for run in runs] == [
        (mode, density) for mode in (INFERENCE, TRAINING) for density in (0.5, 0.25)
    ]
    for run in runs:
        assert run["faster"][DENSE] == 1
        assert min(run["milliseconds"].values()) > 0
        assert run["mib"][COMPACTED] < run["mib"][DENSE]
    assert runs[0]["samples"] == 2 * 4 * 5
    assert made(EXPERIMENT, tmp_path, 1, 1, "lenet5") == ""
    assert "**training**" in told_in(tmp_path)
    assert is_drawn(tmp_path)


def run_of(mode: str, density: float, swapped: float, compacted: float, network: str = "lenet5") -> dict[str, Any]:
    faster = {SWAPPED: swapped, FUSED: swapped, COMPACTED: compacted}
    return {"network": network, "mode": mode, "density": density, "threads": 1, "faster": faster}


@pytest.mark.parametrize(
    ("swapped", "compacted", "verdict"), [(3.0, 2.0, "Yes: "), (0.9, 2.0, "In part: "), (0.9, 0.8, "No: ")]
)
def test_the_answer_is_that_of_the_least_density(swapped, compacted, verdict):
    told = answer([run_of(INFERENCE, 0.1, swapped, compacted), run_of(INFERENCE, 0.5, 1.5, 1.5)])
    assert told.startswith(f"{verdict}with 10 % of the weights left")
    assert told.endswith("Nor is it known for training.")


def test_the_answer_tells_from_where_blocks_save_time():
    runs = [run_of(TRAINING, 0.5, 1.1, 1.5), run_of(TRAINING, 0.5, 0.9, 1.5, "resnet20"), run_of(TRAINING, 0.1, 2, 3)]
    told = answer(runs)
    assert told.startswith("Not known yet for inference.")
    assert "from 10 % down" in told
    assert "is 2.0 and 3.0 times" in told
    assert "at no density" in answer(runs[:2])
