"""What the callbacks of all trainers do alike: make a controller, collect the batches of a step, hand them over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from resgrow.controller import Budget, Controller, Move
from resgrow.controller.logs import scalars
from resgrow.controller.state import arrange, covers, take_structure
from resgrow.curvature.batches import Batch
from resgrow.curvature.heads import LossFn

Make = Callable[[nn.Module, torch.optim.Optimizer], Controller]
PREFIX = "resgrow/"


class Beside:
    """A controller beside a trainer that calls back.

    Args:
        op: name of the callback, for messages.
        budget, loss_fn, options: of the `Controller` that is made when the trainer has its optimizer; or
        controller: one that exists, or a function of model and optimizer that makes one.
        as_pair: from what the trainer calls a batch to ``(input, target)``.

    Raises:
        ValueError: both budget and controller or neither, or options for a controller that exists.
        TypeError: ``controller`` is something else.
    """

    def __init__(
        self,
        op: str,
        budget: Budget | None,
        loss_fn: LossFn | None,
        controller: Controller | Make | None,
        as_pair: Callable[[Any], Batch],
        options: Mapping[str, Any],
    ) -> None:
        if (budget is None) == (controller is None):
            raise ValueError(
                f"{op}: either budget or controller must be given (got {'neither' if budget is None else 'both'})"
            )
        if controller is not None and (options or loss_fn is not None):
            names = ", ".join([*(["loss_fn"] if loss_fn is not None else []), *options])
            raise ValueError(f"{op}: options are for controllers made here (got {names}); give them to yours")
        if controller is not None and not isinstance(controller, Controller) and not callable(controller):
            raise TypeError(
                f"{op}: controller must be a resgrow.Controller or a function of model and optimizer that makes one "
                f"(got {type(controller).__name__})"
            )
        self.op, self.as_pair = op, as_pair
        self.controller: Controller | None = controller if isinstance(controller, Controller) else None
        self._make = None if isinstance(controller, Controller) else controller
        self._budget, self._loss_fn, self._options = budget, loss_fn or nn.CrossEntropyLoss(), dict(options)
        self._pending: dict[str, Any] | None = None
        self._seen: list[Batch] = []

    def shape(
        self,
        model: Callable[[], nn.Module],
        state: Mapping[str, Any] | None,
        optimizers: Sequence[torch.optim.Optimizer],
    ) -> None:
        """Weights that belong to a controller's ``state`` are about to be loaded: ``model()``, or what a given
        controller works on, gets the shapes that they have. Optimizers that there are already go along."""
        if state is None or state.get("structure") is None:
            return
        given = None if self._made_here else self.controller
        chosen = model() if given is None else given.model
        take_structure(chosen, state["structure"], optimizers)
        for optimizer in optimizers:
            if covers(chosen, optimizer, state["groups"][0]):
                arrange(chosen, optimizer, state["groups"][0])

    def begin(
        self,
        model: Callable[[], nn.Module],
        optimizer: torch.optim.Optimizer,
        defaults: Mapping[str, Any],
        loaded: bool = False,
    ) -> None:
        """The trainer has its optimizer. A controller of this optimizer goes on; otherwise one is made of ``model()``,
        and takes over the state that was loaded earlier.

        Args:
            loaded: whether the optimizer has its own state of then.
        """
        self._seen = []
        if self.controller is None or (self._made_here and self.controller.optimizer is not optimizer):
            self.controller = self._new(model(), optimizer, defaults)
        if self.controller.optimizer is not optimizer:
            raise ValueError(
                f"{self.op}: the controller must be made for the trainer's optimizer (got one for another); give a "
                "function of model and optimizer as controller="
            )
        if self._pending is not None:
            if loaded and self._pending.get("structure") is not None:
                arrange(self.controller.model, optimizer, self._pending["groups"][0], loaded=True)
            self.controller.load_state_dict(self._pending)
            self._pending = None

    @property
    def _made_here(self) -> bool:
        return self._budget is not None or self._make is not None

    def _new(self, model: nn.Module, optimizer: torch.optim.Optimizer, defaults: Mapping[str, Any]) -> Controller:
        if self._make is not None:
            return self._make(model, optimizer)
        assert self._budget is not None
        return Controller(model, optimizer, self._loss_fn, self._budget, **{**defaults, **self._options})

    def see(self, batch: Any) -> None:
        """A batch whose gradients the next step of the optimizer takes."""
        self._seen.append(self.as_pair(batch))

    def step(self) -> list[Move]:
        """The optimizer made a step with what was seen since the last; returns the moves that were tried."""
        assert self.controller is not None
        if not self._seen:
            raise RuntimeError(f"{self.op}: a step of the optimizer must follow a batch (got a step without one)")
        batch, self._seen = joined(self._seen), []
        tried = len(self.controller.history)
        self.controller.step(batch)
        return self.controller.history[tried:]

    def state_dict(self) -> dict[str, Any]:
        """The controller's, or what is to become it."""
        if self.controller is None or self._pending is not None:
            return self._pending or {}
        return self.controller.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Kept until the trainer has its optimizer."""
        self._pending = state or None

    def size(self) -> dict[str, float]:
        """What the model costs, by the name that trainers log it under."""
        assert self.controller is not None
        return {f"{PREFIX}{name}": float(value) for name, value in self.controller.cost.items()}


def numbers(move: Move) -> dict[str, float]:
    """A move's numbers, by the name that trainers log them under."""
    return {f"{PREFIX}{tag}": value for tag, value in scalars(move).items()}


def joined(batches: list[Batch]) -> Batch:
    """One batch of all samples. Where shapes differ by more than the number of samples (texts of other lengths), the
    last batch alone, which is as good a sample of the data."""
    if len(batches) == 1:
        return batches[0]
    try:
        inputs, targets = zip(*batches, strict=True)
        return _joined(list(inputs)), torch.cat(targets)
    except (RuntimeError, TypeError, KeyError, ValueError):
        return batches[-1]


def _joined(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(values)
    if isinstance(first, Mapping):
        return {name: _joined([value[name] for value in values]) for name in first}
    if isinstance(first, (tuple, list)):
        return type(first)(_joined(list(entries)) for entries in zip(*values, strict=True))
    if any(value != first for value in values):
        raise ValueError("different values")
    return first


class LogitsOf(nn.Module):
    """A model of which one entry of the output counts, such as those of transformers: returns ``output.logits``.

    Parameters are the model's own, under ``model.`` and their names.

    Args:
        model: any whose output has the entry, as an attribute, a key, or for a number at that place.
        output: the entry's name or number.
    """

    def __init__(self, model: nn.Module, output: str | int = "logits") -> None:
        super().__init__()
        self.model, self.output = model, output

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The entry, of shape (samples, ...)."""
        made = self.model(*args, **kwargs)
        if isinstance(self.output, str) and hasattr(made, self.output):
            made = getattr(made, self.output)
        else:
            made = made[self.output]
        if not isinstance(made, Tensor):
            raise TypeError(f"LogitsOf: {self.output!r} must be one tensor (got {type(made).__name__}); choose output=")
        return made
