"""Two ways for the twin to find its size, behind one face: the controller, and gates that learn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from resgrow._errors import InputError
from resgrow.controller import Budget, Controller, Move
from resgrow.data import Dataset
from resgrow.experiments.config import DEADLINE_SHARE, GATE_TRAVEL, MOVES, START_SHARE, FitConfig
from resgrow.experiments.training import Batch, make_optimizer, steps_per_epoch, total_steps
from resgrow.penalties import Gates
from resgrow.surgery import compact, merge_linear, settle_gates, swap_activations
from resgrow.surgery.count import count_params

Event = Mapping[str, Any]


class Sizing(Protocol):
    """What the twin's training asks of whatever makes it smaller.

    Attributes:
        model, optimizer: of the twin.
        moves: what the controller tried, as plain dictionaries; none by gates.
        met: whether the budget is met; None where there is none.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    moves: list[Event]

    @property
    def met(self) -> bool | None: ...
    def params(self) -> int:
        """Parameters left."""

    def penalty(self) -> Tensor | None:
        """What is added to the loss of a step."""

    def after_step(self, step: int, batch: Batch) -> Sequence[Event]:
        """Called after every step of the optimizer; returns what the history should tell."""

    def small(self, example: Tensor) -> nn.Module:
        """The physically smaller network, in the end."""


class ControlledSizing:
    """`resgrow.Controller` towards a budget."""

    def __init__(self, model: nn.Module, data: Dataset, config: FitConfig) -> None:
        self.model, self.optimizer = model, make_optimizer(model.parameters(), config)
        self.moves: list[Event] = []
        self._rest = round(START_SHARE * total_steps(config, data))
        steps = max(1, round((DEADLINE_SHARE - START_SHARE) * total_steps(config, data)))
        try:
            self._controller = Controller(
                model,
                self.optimizer,
                nn.CrossEntropyLoss(),
                Budget(**config.budget),
                unit=config.unit.split("+"),
                grow=config.grow,
                deadline=steps,
                every=max(1, steps // MOVES),
                example_inputs=data.train_x[:1],
            )
        except ValueError as error:
            raise InputError(str(error)) from error

    @property
    def met(self) -> bool | None:
        return self._controller.met

    def params(self) -> int:
        return self._controller.masks.live_parameters()

    def penalty(self) -> Tensor | None:
        return None

    def after_step(self, step: int, batch: Batch) -> list[Event]:
        if step < self._rest:
            return []
        tried = len(self._controller.history)
        self._controller.step(batch)
        # The controller counts its own steps; the history counts training steps.
        made: list[Event] = [_event(move, step + 1) for move in self._controller.history[tried:]]
        self.moves += made
        return made

    def small(self, example: Tensor) -> nn.Module:
        return compact(self.model, example)


def _event(move: Move, step: int) -> dict[str, Any]:
    """A move as the history tells it, at a step of the training."""
    return {"event": "move", **asdict(move), "step": step}


class GatedSizing:
    """Tri-state ReLUs whose gates learn with the weights: no budget, one coefficient."""

    met: bool | None = None

    def __init__(self, model: nn.Module, data: Dataset, config: FitConfig) -> None:
        assert config.gates is not None
        self._example = data.train_x[:1]
        try:
            self.model = swap_activations(model, self._example)
        except ValueError as error:
            raise InputError(f"fit: {error}") from error
        self._gates, self._coefficient = Gates(self.model), config.gates
        # Weight decay would pull gates to zero whatever the loss says.
        self.optimizer = make_optimizer(self._gates.param_groups(2 * GATE_TRAVEL / total_steps(config, data)), config)
        self._gates.attach(self.optimizer)
        self.moves: list[Event] = []
        self._every = max(1, steps_per_epoch(len(data.train_y), config.batch_size) // 4)

    def params(self) -> int:
        return count_params(self.small(self._example))

    def penalty(self) -> Tensor | None:
        return self._gates.penalty(self._coefficient)

    def after_step(self, step: int, batch: Batch) -> list[Event]:
        if (step + 1) % self._every:
            return []
        return [{"kind": "gates", "step": step + 1, "widths": self._gates.widths(), "linear": self._gates.linear()}]

    def small(self, example: Tensor) -> nn.Module:
        """Closed channels removed, open depth gates merged away where that saves, the gates themselves gone."""
        return settle_gates(merge_linear(compact(self.model, example), example).model)


_METHODS: dict[str, Callable[[nn.Module, Dataset, FitConfig], Sizing]] = {
    "controller": ControlledSizing,
    "tristate": GatedSizing,
}


def make_sizing(model: nn.Module, data: Dataset, config: FitConfig) -> Sizing:
    """The method of ``config`` for a twin that is ``model``, or a copy of it.

    Raises InputError where it does not fit the network or the budget cannot be met.
    """
    return _METHODS[config.method](model, data, config)
