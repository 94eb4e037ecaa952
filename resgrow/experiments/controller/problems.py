"""Small tasks on real and on made data, with networks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import resgrow.nn
from resgrow._errors import InputError
from resgrow._modes import eval_mode
from resgrow.data import Table, digits, load, load_table, named
from resgrow.data.tables import RawTable, standardise_table

Batch = tuple[Tensor, Tensor]
# Images of the larger data sets, so that runs take minutes.
IMAGES, TESTED = 10_000, 2_000
WINE = "https://archive.ics.uci.edu/dataset/186/wine+quality"


@dataclass(frozen=True)
class Task:
    """``train`` and ``test`` are pairs of inputs, ``(N, features)`` or images ``(N, C, H, W)``, and labels, or targets
    ``(N, 1)`` of variance 1. ``make``: the network; by default a perceptron of two hidden layers."""

    train: Batch
    test: Batch
    classes: int | None
    make: Callable[[], nn.Module] | None = None

    @property
    def loss_fn(self) -> nn.Module:
        return nn.MSELoss() if self.classes is None else nn.CrossEntropyLoss()

    def network(self, seed: int, width: int = 64) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self._perceptron(width) if self.make is None else self.make()

    def _perceptron(self, width: int) -> nn.Module:
        inputs, outputs = self.train[0].shape[1], self.classes or 1
        return nn.Sequential(
            nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)
        )

    @torch.no_grad()
    def score(self, model: nn.Module) -> tuple[float, float]:
        """Mean loss on test data, in eval mode, and in percent the accuracy, or the share of the variance that is
        explained."""
        with eval_mode(model):
            output = torch.cat([model(x) for x in self.test[0].split(1000)])
        target = self.test[1]
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
        InputError: the two files are not in the directory, nor in ``tabular`` in it.
    """
    files = [f"winequality-{colour}.csv" for colour in ("red", "white")]
    paths = named.find(files, data_dir, ("tabular",), f"get them from {WINE}, or leave wine out with --only")
    return _regression(load_table(paths, "quality"))


@cache
def friedman_task(data_dir: str | None) -> Task:
    """Friedman's first function, noise 1, of which five of ten inputs matter (scikit-learn's ``make_friedman1``)."""
    from sklearn.datasets import make_friedman1

    x, y = make_friedman1(n_samples=4000, n_features=10, noise=1.0, random_state=0)
    names = tuple(f"x{i}" for i in range(10))
    return _regression(standardise_table("friedman", RawTable(x, y, names, "y", None)))


@cache
def mnist_task(data_dir: str | None) -> Task:
    """LeNet-5 on the first training and test images of MNIST. Raises InputError: they are not there."""
    return _images("mnist", data_dir, resgrow.nn.lenet5)


@cache
def cifar10_task(data_dir: str | None) -> Task:
    """ResNet-8 on the first training and test images of CIFAR-10. Raises InputError: they are not there."""
    return _images("cifar10", data_dir, partial(resgrow.nn.resnet, 8))


TASKS: dict[str, Callable[[str | None], Task]] = {
    "digits": digit_task,
    "wine": wine_task,
    "friedman": friedman_task,
    "mnist": mnist_task,
    "cifar10": cifar10_task,
}


def _images(name: str, data_dir: str | None, make: Callable[[], nn.Module]) -> Task:
    try:
        data = load(name, data_dir)
    except InputError as error:
        raise InputError(f"{error}, or leave {name} out with --only") from None
    train = data.train_x[:IMAGES].clone(), data.train_y[:IMAGES].clone()
    test = data.test_x[:TESTED].clone(), data.test_y[:TESTED].clone()
    return Task(train, test, len(data.classes), make)


def _regression(table: Table) -> Task:
    return Task((table.train_x, table.train_y), (table.test_x, table.test_y), None)
