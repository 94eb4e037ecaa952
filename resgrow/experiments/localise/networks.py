"""Small perceptrons of random widths on scikit-learn's digits, and their training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resgrow.data import digits
from resgrow.ripple import Ripple

LOSS = nn.CrossEntropyLoss()
# The hidden layers of a network, and the layers that read them.
HIDDEN = ("0", "2", "4")
READERS = ("2", "4", "6")
TRAINING_IMAGES = 1_000
BATCH = 64


@dataclass(frozen=True)
class Problem:
    """A network and its images: ``train`` and ``test`` are pairs of ``(N, 64)`` in [0, 1] and labels."""

    widths: list[int]
    model: nn.Sequential
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def problem(seed: int, number: int, choices: Sequence[int]) -> Problem:
    """The images in two parts, and a new network with three hidden layers, each of one of these widths."""
    generator = torch.Generator().manual_seed(1000 * seed + number)
    x, y = _images()
    order = torch.randperm(len(x), generator=generator)
    train, test = order[:TRAINING_IMAGES], order[TRAINING_IMAGES:]
    widths = [choices[i] for i in torch.randint(len(choices), (len(HIDDEN),), generator=generator)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        layers = [layer for a, b in pairwise([64, *widths, 10]) for layer in (nn.Linear(a, b), nn.ReLU())]
    return Problem(widths, nn.Sequential(*layers[:-1]), (x[train], y[train]), (x[test], y[test]))


@cache
def _images() -> tuple[Tensor, Tensor]:
    raw = digits.read()
    x = torch.cat([torch.from_numpy(part) for part in (raw.train_images, raw.test_images)])
    y = torch.cat([torch.from_numpy(part) for part in (raw.train_labels, raw.test_labels)])
    return x.flatten(1).float() / 16, y


def train(model: nn.Module, data: tuple[Tensor, Tensor], epochs: int, rate: float, seed: int) -> None:
    """Adam, from its start; the order of images depends on ``seed`` alone."""
    optimizer = torch.optim.Adam(model.parameters(), rate)
    generator = torch.Generator().manual_seed(seed)
    x, y = data
    for _ in range(epochs):
        for part in torch.randperm(len(x), generator=generator).split(BATCH):
            optimizer.zero_grad()
            LOSS(model(x[part]), y[part]).backward()
            optimizer.step()


@torch.no_grad()
def loss(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    return float(F.cross_entropy(model(data[0]), data[1]))


def around(found: Ripple) -> dict[str, list[float]]:
    """Ripples of the weights that make a hidden layer's units and of those that read them, together.

    Expected and measured rises of the loss add up; of the output's relative change it is the squares.
    """
    pairs = [(found[maker], found[reader]) for maker, reader in zip(HIDDEN, READERS, strict=True)]
    return {
        "analytic": [sum(each.analytic for each in pair) for pair in pairs],
        "measured": [sum(each.measured or 0.0 for each in pair) for pair in pairs],
        "reach": [sum((each.reach or 0.0) ** 2 for each in pair) ** 0.5 for pair in pairs],
        "per weight": [sum(each.analytic for each in pair) / sum(each.params for each in pair) for pair in pairs],
    }
