"""Small tasks on real and on made data, with networks for them."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resgrow.data import digits

Batch = tuple[Tensor, Tensor]
TEST_SHARE = 0.2


@dataclass(frozen=True)
class Task:
    """``train`` and ``test`` are pairs of ``(N, features)`` and labels, or targets ``(N, 1)`` of variance 1."""

    train: Batch
    test: Batch
    classes: int | None

    @property
    def loss_fn(self) -> nn.Module:
        return nn.MSELoss() if self.classes is None else nn.CrossEntropyLoss()

    def network(self, seed: int, width: int = 64) -> nn.Sequential:
        inputs, outputs = self.train[0].shape[1], self.classes or 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Sequential(
                nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)
            )

    @torch.no_grad()
    def score(self, model: nn.Module) -> tuple[float, float]:
        """Mean loss on test data, and in percent the accuracy, or the share of the variance that is explained."""
        output, target = model(self.test[0]), self.test[1]
        if self.classes is None:
            loss = float(F.mse_loss(output, target))
            return loss, 100 * (1 - loss / float(target.var(correction=0)))
        return float(F.cross_entropy(output, target)), 100 * float((output.argmax(1) == target).float().mean())


def batches(task: Task, seed: int, size: int, steps: int) -> Iterator[Batch]:
    """Shuffled anew in every epoch; the order depends on ``seed`` alone."""
    generator = torch.Generator().manual_seed(seed)
    x, y = task.train
    made = 0
    while True:
        for part in torch.randperm(len(x), generator=generator)[: len(x) // size * size].split(size):
            if made == steps:
                return
            made += 1
            yield x[part], y[part]


def optimizers() -> dict[str, Callable[[nn.Module], torch.optim.Optimizer]]:
    """Made for a model; one learning rate for every task."""
    return {
        "SGD": lambda model: torch.optim.SGD(model.parameters(), 0.03, momentum=0.9),
        "Adam": lambda model: torch.optim.Adam(model.parameters(), 2e-3),
        "AdamW": lambda model: torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.01),
        "RMSprop": lambda model: torch.optim.RMSprop(model.parameters(), 1e-3),
    }


@cache
def digit_task(data_dir: str | None) -> Task:
    """scikit-learn's digits, as vectors."""
    raw = digits.read()

    def part(images: np.ndarray, labels: np.ndarray) -> Batch:
        return torch.from_numpy(images).flatten(1).float() / 16, torch.from_numpy(labels)

    return Task(part(raw.train_images, raw.train_labels), part(raw.test_images, raw.test_labels), len(raw.classes))


@cache
def wine_task(data_dir: str | None) -> Task:
    """UCI wine quality, white and red together: the mark from eleven measurements.

    Raises:
        SystemExit: the two files are not in the directory, nor in ``tabular`` in it.
    """
    directory = Path(data_dir or os.environ.get("RESGROW_DATA_DIR", "."))
    rows: list[list[float]] = []
    for colour in ("red", "white"):
        name = f"winequality-{colour}.csv"
        found = next((path for path in (directory / name, directory / "tabular" / name) if path.exists()), None)
        if found is None:
            raise SystemExit(f"wine: needs {name} (not in {directory}); give --data-dir, or leave wine out with --only")
        with found.open(newline="") as file:
            lines = csv.reader(file, delimiter=";")
            next(lines)
            rows += [[float(cell) for cell in line] for line in lines]
    values = np.array(rows, dtype=np.float32)
    return _regression(values[:, :-1], values[:, -1:])


@cache
def friedman_task(data_dir: str | None) -> Task:
    """Friedman's first function, noise 1, of which five of ten inputs matter (scikit-learn's ``make_friedman1``)."""
    from sklearn.datasets import make_friedman1

    x, y = make_friedman1(n_samples=4000, n_features=10, noise=1.0, random_state=0)
    return _regression(x.astype(np.float32), y[:, None].astype(np.float32))


TASKS: dict[str, Callable[[str | None], Task]] = {"digits": digit_task, "wine": wine_task, "friedman": friedman_task}


def _regression(x: np.ndarray, y: np.ndarray) -> Task:
    """A fixed split; all columns get mean 0 and variance 1 on training data."""
    order = np.random.default_rng(0).permutation(len(x))
    cut = int(len(x) * (1 - TEST_SHARE))
    train, test = order[:cut], order[cut:]

    def part(values: np.ndarray, rows: np.ndarray) -> Tensor:
        known = values[train]
        return torch.from_numpy((values[rows] - known.mean(0)) / known.std(0))

    return Task((part(x, train), part(y, train)), (part(x, test), part(y, test)), None)
