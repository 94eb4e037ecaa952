"""The controller: prices the parts of a model while it trains and removes those the loss can spare."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from resgrow.controller.budget import Budget
from resgrow.controller.history import Move
from resgrow.controller.meter import Meter
from resgrow.controller.recent import Recent
from resgrow.controller.trust import Trust, pace
from resgrow.curvature import curvature
from resgrow.curvature.batches import Batch, device_of, take
from resgrow.curvature.evaluate import mean_loss
from resgrow.curvature.heads import LossFn
from resgrow.saliency import obd
from resgrow.surgery import Masks, make_units

UNITS: dict[str, Any] = {"channel": "channel", "weight": (1, 1)}
# Tries per move: each halves the step, so the last is an eighth of the first.
TRIES = 4


class Controller:
    """Moves a model towards a budget beside an ordinary training loop.

    Every ``every`` steps it takes the damped OBD saliency of what is left (curvature of the last batches), proposes
    to remove the units with the least saliency per cost, and compares the predicted with the measured rise of the
    loss on batches the scores did not see. A move that raises the loss by more than the tolerance is undone and halved;
    the ratio of measured to predicted rise sets size and damping of the next (see ``Trust``). Removed weights and
    their optimizer state stay zero.

    Use::

        ctl = resgrow.Controller(model, optimizer, loss_fn, budget=resgrow.Budget(params=0.1))
        for batch in loader:
            train(batch)        # forward, backward, optimizer.step()
            ctl.step(batch)

    Args:
        model: a model that ``resgrow.curvature`` knows; for channels `nn.Sequential`, `resgrow.nn.ResNet`, or any that
            ``torch.export`` can follow on example_inputs.
        optimizer: any ``torch.optim`` optimizer with per-element state that holds the model's parameters.
        loss_fn: ``CrossEntropyLoss`` or ``MSELoss``.
        budget: upper limits on parameters and multiply-accumulates.
        unit: what is removed: "channel" (with everything coupled to it; heads and neurons too, see
            ``resgrow.surgery.make_units``) or single "weight".
        deadline: number of steps by which the budget must be met. Moves then keep at least the pace that needs,
            even where the loss objects. Without one the loss alone decides how fast.
        every: steps between moves.
        samples: newest training samples kept (by reference); half for curvature, half for checking.
        curvature: method of ``resgrow.curvature``.
        temperature: of the softmax under which curvature is taken, see ``resgrow.curvature``.
        trust: initial step size, damping and tolerance.
        exclude: parameters or modules to leave alone, see ``resgrow.prune``.
        example_inputs: a batch for the model; needed for a budget of ``macs``, and for channels of models other than
            `nn.Sequential` and `resgrow.nn.ResNet`.

    Attributes:
        history: every move tried, in order.
        masks: what is present.

    Raises:
        ValueError: a budget that cannot be reached, an unknown unit or name in ``exclude``, an optimizer that does
            not hold the parameters, counts that are not positive, no example_inputs where they are needed, or a model
            whose channels ``torch.export`` cannot follow. Model and optimizer are as they were.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_fn: LossFn,
        budget: Budget,
        *,
        unit: str = "channel",
        deadline: int | None = None,
        every: int = 50,
        samples: int = 2048,
        curvature: str = "ggn-mc",
        temperature: float = 1.0,
        trust: Trust | None = None,
        exclude: Sequence[str] = (),
        example_inputs: Tensor | tuple[Tensor, ...] | None = None,
    ) -> None:
        _check_arguments(model, budget, unit, deadline, every, samples, example_inputs)
        self.model, self.optimizer, self.loss_fn, self.budget = model, optimizer, loss_fn, budget
        self.unit, self.deadline, self.every = unit, deadline, every
        self.method, self.temperature = curvature, temperature
        self.trust = trust or Trust()
        self.history: list[Move] = []
        self._steps = 0
        self._recent = Recent(samples)
        self._device = device_of(model)
        self._units = make_units(model, UNITS[unit], exclude, example_inputs)
        self._meter = Meter(model, self._units, example_inputs)
        self._targets = budget.targets(self._meter.dense)
        self._check_reachable()
        self.masks = Masks(model, self._units.to_masks(self._units.live())).attach(optimizer)

    @property
    def cost(self) -> dict[str, float]:
        """Live parameters and, with example inputs, multiply-accumulates per sample."""
        return self._meter.cost(self.masks)

    @property
    def met(self) -> bool:
        """Whether the model is within its budget."""
        return self._excess() is None

    def step(self, batch: Batch) -> Move | None:
        """Tell the controller that one optimizer step was made on ``batch``, a pair ``(input, target)``.

        Returns:
            The move, if this step made one that was kept; otherwise None.

        Raises:
            ValueError: the loss or the model's output is NaN; nothing is changed then.
            TypeError: ``batch`` is not such a pair.
        """
        self._recent.add(take("Controller.step", [batch], self._device, 1)[0])
        self._steps += 1
        due = self._steps % self.every == 0 or (self.deadline is not None and self._steps == self.deadline)
        if not due or self.met:
            return None
        return self._move()

    def state_dict(self) -> dict[str, Any]:
        """Everything but the recent batches, in plain types and tensors."""
        return {
            "steps": self._steps,
            "trust": asdict(self.trust),
            "masks": self.masks.state_dict(),
            "history": [asdict(move) for move in self.history],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a ``state_dict``; masks are applied to the model and the optimizer's state."""
        trust, history = Trust(**state["trust"]), [Move(**move) for move in state["history"]]
        self.masks.load_state_dict(state["masks"])
        self.trust, self.history, self._steps = trust, history, int(state["steps"])

    def _excess(self) -> str | None:
        """The budget's kind that is exceeded most, as a ratio."""
        cost = self.cost
        ratios = {by: cost[by] / target for by, target in self._targets.items()}
        worst = max(ratios, key=lambda by: ratios[by])
        return worst if ratios[worst] > 1 else None

    def _check_reachable(self) -> None:
        free = [torch.zeros(live.shape, device=live.device) for live in self._units.live()]
        for by, target in self._targets.items():
            least = self._meter.dense[by] - self._units.savable(free, None, by)
            if target < least:
                raise ValueError(
                    f"Controller: the budget must be reachable (got {by}={target:,} of {self._meter.dense[by]:,.0f}; "
                    f"removing all that unit='{self.unit}' can remove leaves {least:,.0f}); raise it, exclude less, "
                    "or use a finer unit"
                )

    def _move(self) -> Move | None:
        """Try moves of falling size until one is kept."""
        by = self._excess()
        assert by is not None
        estimation, check = self._recent.split()
        h = curvature(self.model, self.loss_fn, estimation, self.method, temperature=self.temperature)
        before = mean_loss("Controller", self.model, self.loss_fn, check)
        cost, target = self.cost[by], self._targets[by]
        needed = self._pace(cost, target)
        for _ in range(TRIES):
            fraction = max(needed, min(self.trust.fraction, 1 - target / cost))
            trial = self._try(h, by, cost, target, fraction, check, before)
            kept = fraction <= needed or self.trust.accepts(trial.actual, before)
            self.history.append(trial.move(self, before, kept))
            if kept:
                self.masks.update(trial.masks)
                self.trust.kept(trial.predicted, trial.actual, before)
                return self.history[-1]
            self.trust.refused()
        self.trust.stuck()
        return None

    def _pace(self, cost: float, target: float) -> float:
        if self.deadline is None:
            return 0.0
        return pace(cost, target, math.ceil((self.deadline - self._steps) / self.every) + 1)

    def _try(
        self,
        h: dict[str, Tensor],
        by: str,
        cost: float,
        target: float,
        fraction: float,
        check: list[Batch],
        before: float,
    ) -> _Trial:
        """What removing ``fraction`` of the cost would do, measured in copies of the weights."""
        scores = self._units.scores(obd(self.model, h, self.trust.damping))
        live = self._units.live(self.masks)
        save = min(fraction * cost, cost - target)
        keep = self._units.select(scores, save, self.masks, by)
        gone = [there & ~kept for there, kept in zip(live, keep, strict=True)]
        prices = [
            (score / price)[out]
            for score, price, out in zip(scores, self._units.costs(self.masks, by), gone, strict=True)
        ]
        masks = self._units.to_masks(keep)
        parameters = dict(self.model.named_parameters())
        weights = {name: parameters[name] * mask for name, mask in masks.items()}
        after = mean_loss("Controller", self.model, self.loss_fn, check, weights)
        return _Trial(
            masks=masks,
            cost=self._meter.cost(masks),
            removed=sum(int(out.sum()) for out in gone),
            predicted=sum(float(score[out].sum()) for score, out in zip(scores, gone, strict=True)),
            actual=after - before,
            fraction=save / cost,
            price=max(float(price.max()) for price in prices if price.numel()),
        )


@dataclass(frozen=True)
class _Trial:
    masks: dict[str, Tensor]
    cost: dict[str, float]
    removed: int
    predicted: float
    actual: float
    fraction: float
    price: float

    def move(self, ctl: Controller, before: float, accepted: bool) -> Move:
        return Move(
            step=ctl._steps,
            unit=ctl.unit,
            removed=self.removed,
            predicted=self.predicted,
            actual=self.actual,
            ratio=self.actual / max(self.predicted, 1e-12),
            fraction=self.fraction,
            damping=ctl.trust.damping,
            price=self.price,
            accepted=accepted,
            params=round(self.cost["params"]),
            macs=round(self.cost["macs"]) if "macs" in self.cost else None,
            loss_before=before,
            loss_after=before + self.actual,
        )


def _check_arguments(
    model: nn.Module,
    budget: Budget,
    unit: str,
    deadline: int | None,
    every: int,
    samples: int,
    example_inputs: Any,
) -> None:
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise ValueError(
            "Controller: DistributedDataParallel is not supported: ranks would choose different units; "
            "train in one process"
        )
    if not isinstance(budget, Budget):
        raise TypeError(f"Controller: budget must be a resgrow.Budget (got {type(budget).__name__})")
    if unit not in UNITS:
        raise ValueError(f"Controller: unit must be one of {', '.join(UNITS)} (got {unit!r})")
    for name, value in (("deadline", deadline), ("every", every), ("samples", samples)):
        if value is not None and value < 1:
            raise ValueError(f"Controller: {name} must be at least 1 (got {value})")
    if budget.macs is not None and example_inputs is None:
        raise ValueError("Controller: a budget of macs needs example_inputs (got none); pass one batch of inputs")
