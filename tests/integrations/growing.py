"""A regression that is too hard for the network that it begins with, for the trainers alike."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import resgrow
from resgrow import Budget

STEPS, SAVED = 100, 50


class Stream(nn.Module):
    """Blocks and their inner units can come, and both do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Linear(1, 6), nn.Linear(6, 1)
        block = resgrow.nn.Residual(nn.Sequential(nn.Linear(6, 2), nn.ReLU(), nn.Linear(2, 6)))
        self.stage = nn.Sequential(block)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.head(self.stage(self.stem(x)))
        return made


def wave(batches: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(batches):
        x = 2 * torch.rand(64, 1, generator=generator) - 1
        found.append((x, torch.sin(6 * x)))
    return found


BUDGET = Budget(loss=1e-5)
OPTIONS = {
    "every": 20,
    "samples": 512,
    "held": wave(4, seed=1),
    "example_inputs": torch.zeros(2, 1),
}


def same_numbers(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def same_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, other: nn.Module, its: torch.optim.Optimizer
) -> bool:
    """Optimizers by name of parameter."""
    pairs = zip(model.named_parameters(), other.named_parameters(), strict=True)
    return all(
        name == named and all(torch.equal(entry, its.state[b][key]) for key, entry in optimizer.state[a].items())
        for (name, a), (named, b) in pairs
    )
