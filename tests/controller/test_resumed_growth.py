"""A model that has grown comes back from a file, in its shapes and with its optimizer."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resgrow import Controller
from tests.integrations.growing import BUDGET, OPTIONS, SAVED, STEPS, Stream, same_numbers, same_state, wave


def setup(unit: str) -> tuple[Stream, torch.optim.Optimizer, Controller]:
    model = Stream()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    return model, optimizer, Controller(model, optimizer, nn.MSELoss(), BUDGET, unit=unit, **OPTIONS)


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, ctl: Controller, data: list[tuple[Tensor, Tensor]]
) -> None:
    for x, y in data:
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()
        ctl.step((x, y))


@pytest.mark.parametrize("unit", ["channel", "residual"])
def test_a_run_goes_on_to_the_bit_after_growth(unit):
    data = wave(STEPS)
    model, optimizer, ctl = setup(unit)
    train(model, optimizer, ctl, data[:SAVED])
    assert any(move.grows and move.accepted for move in ctl.history)
    file = io.BytesIO()
    torch.save([ctl.state_dict(), model.state_dict(), optimizer.state_dict()], file)
    train(model, optimizer, ctl, data[SAVED:])

    file.seek(0)
    states = torch.load(file, weights_only=True)
    other, its, other_ctl = setup(unit)
    for part, state in zip((other_ctl, other, its), states, strict=True):
        part.load_state_dict(state)
    train(other, its, other_ctl, data[SAVED:])
    assert other_ctl.history == ctl.history
    assert same_numbers(model, other)
    assert same_state(model, optimizer, other, its)
