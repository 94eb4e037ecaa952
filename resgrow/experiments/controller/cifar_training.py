"""Training to a given compute: the recipe of the `cifar` experiment, and what it has spent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from resgrow._stopwatch import fair_clock
from resgrow.data import Dataset
from resgrow.experiments.measure import evaluate
from resgrow.surgery.count import count_macs, count_params

Batch = tuple[Tensor, Tensor]
BATCH = 128
RATE = 0.1
DECAY = 5e-4
WARM_UP = 0.05
PAD = 4
# Training images that no method trains on: what the controller checks its moves on.
HELD = 1024
# A step is a forward pass, and a backward pass of twice its multiply-accumulates.
PASSES = 3
POINTS = 8
# Test images of the points on the way; the last one is of all.
QUICK = 2000


@dataclass
class Compute:
    """Multiply-accumulates spent, of ``limit``.

    Attributes:
        trained: of the steps, by the network as it physically was.
        own: of what was done beside them: its seconds, at what a second of a step came to.
        step_seconds, own_seconds: processor time of both.
    """

    limit: float
    trained: float = 0.0
    step_seconds: float = 0.0
    own_seconds: float = 0.0

    @property
    def own(self) -> float:
        return self.own_seconds * self.trained / self.step_seconds if self.step_seconds else 0.0

    @property
    def share(self) -> float:
        return (self.trained + self.own) / self.limit


class Sizer(Protocol):
    """What makes the network smaller beside its training; all that it does counts."""

    def after_step(self, step: int, batch: Batch) -> bool:
        """Told of every step, the first is 1. Returns whether the network may have another shape now."""


@dataclass
class Training:
    """A network's training until its compute is used up.

    Learning rate: linear to `RATE` over the first `WARM_UP` of the compute, then a cosine to zero, so that a network
    that gets cheaper makes more steps. Batches depend on ``seed`` alone.
    """

    model: nn.Module
    data: Dataset
    compute: Compute
    seed: int
    curve: list[dict[str, float]] = field(default_factory=list)
    steps: int = 0

    def __post_init__(self) -> None:
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = SGD(self.model.parameters(), RATE, momentum=0.9, nesterov=True, weight_decay=DECAY)
        self._clock = fair_clock()

    def timed(self, make: Callable[[], Any]) -> Any:
        """What ``make`` returns; its seconds are the sizer's own."""
        started = self._clock()
        made = make()
        self.compute.own_seconds += self._clock() - started
        return made

    def run(self, sizer: Sizer | None = None) -> None:
        macs = self._macs()
        for batch in batches(self.data, self.seed):
            if self.compute.share >= 1:
                break
            self._step(batch)
            self.steps += 1
            self.compute.trained += PASSES * macs * len(batch[1])
            if sizer is not None and self.timed(partial(sizer.after_step, self.steps, batch)):
                macs = self._macs()
            if self.compute.share * POINTS >= len(self.curve) + 1 and self.compute.share < 1:
                self._point(macs, QUICK)
        self._point(self._macs(), len(self.data.test_y))

    def facts(self) -> dict[str, Any]:
        """Of the end: what was spent, what is left, and on all test images loss and error (%)."""
        last = self.curve[-1]
        return {
            "params": count_params(self.model),
            "macs": last["macs"],
            "loss": last["loss"],
            "error": last["error"],
            "steps": self.steps,
            "limit": self.compute.limit,
            "trained": self.compute.trained,
            "own": self.compute.own,
            "step_seconds": self.compute.step_seconds,
            "own_seconds": self.compute.own_seconds,
            "curve": self.curve,
        }

    def _step(self, batch: Batch) -> None:
        started = self._clock()
        for group in self.optimizer.param_groups:
            group["lr"] = RATE * rate(self.compute.share)
        self.model.train()
        self.optimizer.zero_grad()
        with half_width(batch[0].device):
            output = self.model(batch[0])
        F.cross_entropy(output.float(), batch[1]).backward()
        self.optimizer.step()
        self.compute.step_seconds += self._clock() - started

    def _macs(self) -> int:
        return count_macs(self.model, self.data.train_x[:1])

    def _point(self, macs: int, images: int) -> None:
        loss, accuracy = evaluate(self.model, self.data.test_x[:images], self.data.test_y[:images])
        error = 100 * (1 - accuracy)
        self.curve.append({"share": self.compute.share, "macs": macs, "loss": loss, "error": error})


def rate(share: float) -> float:
    """Of the learning rate, where this share of the compute is spent."""
    if share < WARM_UP:
        return (share + 0.01) / (WARM_UP + 0.01)
    return (1 + math.cos(math.pi * min(1.0, (share - WARM_UP) / (1 - WARM_UP)))) / 2


def half_width(device: torch.device) -> AbstractContextManager[Any]:
    """bfloat16 where that is faster: on the CPU that the recipe was made on, .23 seconds a step instead of .39."""
    return torch.autocast(device.type, torch.bfloat16) if device.type == "cpu" else nullcontext()


def held_out(data: Dataset) -> list[Batch]:
    """The last training images, as they are."""
    x, y = data.train_x[-HELD:], data.train_y[-HELD:]
    return list(zip(x.split(256), y.split(256), strict=True))


def batches(data: Dataset, seed: int) -> Iterator[Batch]:
    """Without end: those images that are not held out, shuffled anew in every epoch, flipped and shifted at random."""
    generator = torch.Generator().manual_seed(seed)
    count = len(data.train_y) - HELD
    while True:
        for part in torch.randperm(count, generator=generator)[: count // BATCH * BATCH].split(BATCH):
            yield augmented(data.train_x[part], generator), data.train_y[part]


def augmented(x: Tensor, generator: torch.Generator) -> Tensor:
    """Images ``(N, C, H, W)``, each shifted by up to `PAD` pixels in both directions (what comes in is 0, the mean) and
    every other one mirrored; channels last."""
    count, _, height, width = x.shape
    top, left = (torch.randint(2 * PAD + 1, (count, 1), generator=generator) for _ in range(2))
    columns = left + torch.arange(width)
    columns = torch.where(torch.rand(count, 1, generator=generator) < 0.5, columns.flip(1), columns)
    rows = top + torch.arange(height)
    images = torch.arange(count)[:, None, None]
    return F.pad(x, (PAD, PAD, PAD, PAD))[images, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
