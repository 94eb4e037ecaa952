"""What makes the network smaller in the `cifar` experiment: the controller, and magnitude with a cubic schedule."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from resgrow.controller import Budget, Controller
from resgrow.experiments.config import DEADLINE_SHARE, START_SHARE
from resgrow.experiments.controller.cifar_training import Batch, Training, held_out
from resgrow.surgery import Masks, compact, make_units
from resgrow.surgery.count import count_macs

# Of the multiply-accumulates.
BUDGET = 0.5
# Moves between start and end; the network is compacted at every fourth one, and at the last.
MOVES = 8
COMPACT = 4


class Followed(nn.Module):
    """A residual network as any module: its operations are followed, which finds the channels of the streams, too."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """``(N, 3, 32, 32)`` to logits."""
        logits: Tensor = self.net(x)
        return logits


class Schedule:
    """When the network gets smaller, in steps of a dense training of ``steps``: the same for both methods."""

    def __init__(self, steps: int) -> None:
        self.start, self.end = round(START_SHARE * steps), round(DEADLINE_SHARE * steps)
        self.length = max(1, self.end - self.start)
        self.every = max(1, self.length // MOVES)

    def due(self, step: int) -> bool:
        """Whether there is a move now."""
        return self.start < step <= self.end and ((step - self.start) % self.every == 0 or step == self.end)

    def compacts(self, step: int) -> bool:
        return self.due(step) and ((step - self.start) % (COMPACT * self.every) == 0 or step == self.end)


class Controlled:
    """`resgrow.Controller`, which only removes, in as many moves as the schedule has."""

    def __init__(self, training: Training, schedule: Schedule) -> None:
        held = held_out(training.data)
        self._schedule = schedule
        self.controller = Controller(
            training.model,
            training.optimizer,
            nn.CrossEntropyLoss(),
            Budget(macs=BUDGET),
            grow=False,
            held=held,
            deadline=schedule.length,
            every=schedule.every,
            example_inputs=training.data.train_x[:1],
            seed=training.seed,
        )

    def after_step(self, step: int, batch: Batch) -> bool:
        if step <= self._schedule.start:
            return False
        moved = self.controller.step(batch) is not None
        if self._schedule.compacts(step):
            self.controller.compact()
            return True
        return moved

    def facts(self) -> dict[str, Any]:
        history = self.controller.history
        return {
            "met": self.controller.met,
            "moves": dict(Counter(move.kind for move in history if move.accepted)),
            "undone": sum(not move.accepted for move in history),
            "reversals": self.controller.reversals,
        }


class Magnitude:
    """The channels of least magnitude go, to a share of the multiply-accumulates that falls by a cubic.

    ``1 - s_t`` of them are left, ``s_t = s (1 - (1 - t)^3)`` (Zhu & Gupta 2017, eq. 1, from nothing), t from 0 to 1
    between the schedule's start and end. Units are the controller's: channels with all that is coupled to them, those
    of residual streams too. Magnitude is the Euclidean norm of a unit's weights relative to the mean one of its group:
    plain norms, or norms by cost, would empty the layers that have small weights, or many positions.
    """

    def __init__(self, training: Training, schedule: Schedule) -> None:
        self._training, self._schedule = training, schedule
        self._model, self._example = training.model, training.data.train_x[:1]
        self._whole = count_macs(self._model, self._example)
        self._units = make_units(self._model, "channel", (), self._example)
        self._masks = Masks(self._model, self._units.to_masks(self._units.live())).attach(training.optimizer)

    def after_step(self, step: int, batch: Batch) -> bool:
        if self._schedule.due(step):
            done = (step - self._schedule.start) / self._schedule.length
            self._shrink_to((1 - sparsity(done)) * self._whole)
        if self._schedule.compacts(step):
            self._compact()
            return True
        return False

    def facts(self) -> dict[str, Any]:
        return {"met": count_macs(self._model, self._example) <= BUDGET * self._whole}

    def _shrink_to(self, macs: float) -> None:
        units, masks = self._units, self._masks
        save = count_macs(self._model, self._example, masks) - macs
        # Units are ranked by score per cost, which the costs undo.
        scores = [size * cost for size, cost in zip(self.sizes(), units.costs(masks, "macs"), strict=True)]
        self._masks.update(units.to_masks(units.select(scores, save, masks, "macs")))

    @torch.no_grad()
    def sizes(self) -> list[Tensor]:
        """Of each unit, relative to its group's mean of those that live."""
        squares = {name: self._model.get_parameter(name).square() for name in self._units.required}
        norms = [summed.double().sqrt() for summed in self._units.scores(squares)]
        lives = self._units.live(self._masks)
        return [norm / norm[live].mean().clamp_min(1e-12) for norm, live in zip(norms, lives, strict=True)]

    def _compact(self) -> None:
        compact(self._model, self._example, inplace=True, optimizer=self._training.optimizer, masks=self._masks)
        self._units = make_units(self._model, "channel", (), self._example)


def sparsity(done: float) -> float:
    """Of the multiply-accumulates, where this much of the schedule is done."""
    return (1 - BUDGET) * (1 - (1 - min(1.0, done)) ** 3)
