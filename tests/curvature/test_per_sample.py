"""Per-sample gradients against one sample at a time in float64."""

from __future__ import annotations

import warnings

import pytest
import torch
from measured import TARGET, Logits, noise, randomised
from test_uses import INDEX, SAMPLES, Bare, Beside, Tied, Twice, Windows
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from resgrow.curvature.heads import head_of
from resgrow.curvature.per_sample import per_sample_gradients


@pytest.mark.parametrize(
    "make", [Twice, Bare, Tied, lambda: Windows(False), Beside, lambda: weight_norm(nn.Linear(3, 4))]
)
def test_per_sample_gradients(make):
    shapes = {Bare: noise(SAMPLES, 5, 6), Tied: INDEX[:, :3], Twice: noise(SAMPLES, 2, 3)}
    model = make()
    x = shapes.get(type(model), noise(SAMPLES, 3, 2, 3) if isinstance(model, Windows) else noise(SAMPLES, 3))
    model, y, head = randomised(Logits(model)), TARGET[:SAMPLES], head_of("test", nn.CrossEntropyLoss())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = per_sample_gradients(model, head, x, y)
    for n in range(SAMPLES):
        loss = F.cross_entropy(model(x[n : n + 1]), y[n : n + 1])
        wanted = torch.autograd.grad(loss, list(model.parameters()))
        for (name, value), grad in zip(found.items(), wanted, strict=True):
            assert (value[n] - grad).abs().max() <= 1e-10 * grad.abs().max(), name
