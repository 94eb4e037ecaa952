"""The training loop, the same for the dense network and for its self-sizing twin."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resgrow._errors import RunError
from resgrow.data import Dataset
from resgrow.experiments.config import MOMENTUM, FitConfig
from resgrow.experiments.measure import evaluate
from resgrow.experiments.models import as_input

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Epoch:
    """One finished epoch. Losses are means over images; ``loss`` and ``train_accuracy`` are taken while training.

    ``params``: parameters left. ``seconds``: training so far, evaluation left out.
    """

    role: str
    epoch: int
    step: int
    loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    params: int
    seconds: float


def make_optimizer(parameters: Iterable[Any], config: FitConfig) -> torch.optim.Optimizer:
    """The optimizer that ``config`` names, over parameters or groups of them with options of their own."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, config.lr, momentum=MOMENTUM, weight_decay=config.weight_decay, nesterov=True
        )
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    return kind(parameters, config.lr, weight_decay=config.weight_decay)


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Whole batches only (one smaller batch if there are too few images for a whole one)."""
    return max(1, images // batch_size)


def total_steps(config: FitConfig, data: Dataset) -> int:
    return config.epochs * steps_per_epoch(len(data.train_y), config.batch_size)


def cosine(step: int, steps: int) -> float:
    """Factor on the learning rate: from 1 at step 0 to nearly 0 at the last, steps - 1 (SGDR, eq. 5)."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))


def batches(data: Dataset, config: FitConfig) -> Iterator[tuple[int, Batch]]:
    """(epoch from 1, (images, labels)); the order depends on ``config.seed`` alone, so twins see the same."""
    generator = torch.Generator().manual_seed(config.seed)
    per_epoch = steps_per_epoch(len(data.train_y), config.batch_size)
    for epoch in range(1, config.epochs + 1):
        order = torch.randperm(len(data.train_y), generator=generator)
        for part in order[: per_epoch * config.batch_size].split(config.batch_size):
            chosen = part.to(data.train_y.device)
            yield epoch, (as_input(data.train_x[chosen]), data.train_y[chosen])


def _update(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, penalty: Tensor | None, where: str
) -> tuple[float, int]:
    """One optimizer step. Returns the batch's mean loss, without the penalty, and its number of right answers."""
    x, y = batch
    logits = model(x)
    loss = F.cross_entropy(logits, y)
    value = loss.item()
    if not math.isfinite(value):
        raise RunError(
            f"fit: the loss must stay finite (got {value} at {where}); "
            "lower --lr, and check the data for images that are not finite"
        )
    optimizer.zero_grad()
    (loss if penalty is None else loss + penalty).backward()
    optimizer.step()
    return value, int((logits.detach().argmax(1) == y).sum())


class _Tally:
    """Running loss and accuracy of one epoch."""

    def __init__(self) -> None:
        self.loss = 0.0
        self.right = 0
        self.seen = 0

    def add(self, loss: float, right: int, count: int) -> None:
        self.loss += loss * count
        self.right += right
        self.seen += count


class Training:
    """Trains one network and keeps time.

    ``penalty``: makes what is added to the loss of each step. ``after_step``: called with (step from 0, batch) after
    every optimizer step: the place of what makes the network smaller. ``on_step``: called with (step, epoch, loss).
    ``on_epoch``: called with every ``Epoch``.
    ``params``: tells how many parameters are left.
    """

    def __init__(self, role: str, model: nn.Module, optimizer: torch.optim.Optimizer, data: Dataset, config: FitConfig):
        self.role = role
        self.model = model
        self.optimizer = optimizer
        self.data = data
        self.config = config
        self.seconds = 0.0
        self.epochs: list[Epoch] = []

    def run(
        self,
        *,
        params: Callable[[], int],
        on_step: Callable[[int, int, float], None],
        on_epoch: Callable[[Epoch], None],
        penalty: Callable[[], Tensor | None] = lambda: None,
        after_step: Callable[[int, Batch], None] = lambda step, batch: None,
    ) -> None:
        """Trains to the end. Raises RunError when the loss is no longer finite."""
        steps = total_steps(self.config, self.data)
        per_epoch = steps // self.config.epochs
        tally = _Tally()
        self.model.train()
        rates = [group["lr"] for group in self.optimizer.param_groups]
        started = time.perf_counter()
        for step, (epoch, batch) in enumerate(batches(self.data, self.config)):
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * cosine(step, steps)
            where = f"epoch {epoch}, step {step} of the {self.role} network"
            loss, right = _update(self.model, self.optimizer, batch, penalty(), where)
            after_step(step, batch)
            tally.add(loss, right, len(batch[1]))
            on_step(step + 1, epoch, loss)
            if (step + 1) % per_epoch == 0:
                self.seconds += time.perf_counter() - started
                on_epoch(self._finish(epoch, step + 1, tally, params()))
                tally = _Tally()
                started = time.perf_counter()

    def _finish(self, epoch: int, step: int, tally: _Tally, params: int) -> Epoch:
        test_loss, test_accuracy = evaluate(self.model, self.data.test_x, self.data.test_y)
        record = Epoch(
            role=self.role,
            epoch=epoch,
            step=step,
            loss=tally.loss / tally.seen,
            train_accuracy=tally.right / tally.seen,
            test_loss=test_loss,
            test_accuracy=test_accuracy,
            params=params,
            seconds=self.seconds,
        )
        self.epochs.append(record)
        return record
