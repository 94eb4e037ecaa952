"""The controller: prices the parts of a model while it trains, removes what can be spared, adds what is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from resgrow.controller.budget import Budget
from resgrow.controller.cost_limit import shrink
from resgrow.controller.course import Course
from resgrow.controller.growing import Growing
from resgrow.controller.history import Move, reversals
from resgrow.controller.logs import Log, rewind
from resgrow.controller.loss_limit import LossLimit
from resgrow.controller.prices import Prices, prices
from resgrow.controller.recent import Recent
from resgrow.controller.running import RunningCurvature
from resgrow.controller.settings import Settings, Unit, check, units_of
from resgrow.controller.state import captured, restore
from resgrow.controller.trust import Trust
from resgrow.controller.workshop import Workshop
from resgrow.curvature.batches import Batch, device_of, take
from resgrow.curvature.heads import LossFn
from resgrow.depth import StochasticDepth
from resgrow.surgery import Masks
from resgrow.surgery.company import Followers, company
from resgrow.surgery.forward import AnyInputs
from resgrow.surgery.wrappers import unwrapped


class Controller:
    """Moves a model towards a budget beside an ordinary training loop, in both directions.

    Every part that is there has a price: its damped OBD saliency, the predicted rise of the loss when it goes, per
    cost. Every part that is not there has one: the predicted fall of the loss when it comes, by a damped Newton step of
    its new weights, per cost. Above a limit of cost the cheapest parts go. Below it, parts come as long as the loss
    falls for it; at the limit, where a part that would come is worth more than ``hysteresis`` times what has to go for
    it, they change places. With a limit of loss, parts come while the loss is above it and training no longer lowers
    it, and go while it stays below.

    Each move is measured on data that the prediction did not see, kept where it is harmless (or worth it), undone to
    the bit where not, and tried again half as large. The ratio of measured to predicted change sets size and damping of
    the next one (see `Trust`). Where channels or residual blocks go, survivors make up for them by least squares over
    their layer's inputs, in the choice of the cheapest as well as in the end. With a limit of loss, training decides
    whether a removal stands: where the loss does not come back in time, everything is as it was before.

    Use::

        ctl = resgrow.Controller(model, optimizer, loss_fn, budget=resgrow.Budget(params=0.1))
        for batch in loader:
            train(batch)        # forward, backward, optimizer.step()
            ctl.step(batch)

    What goes, by ``unit``: single weights and biases of Conv2d and Linear layers, blocks of weights, channels, residual
    blocks. Weights that nothing depends on any more, such as those into removed units, go first.

    What comes: masked weights and blocks regrow; channels, neurons and heads come where the gain per cost
    is largest (`resgrow.growth_gain`; those that masks hold back are woken first, then layers become wider); residual
    blocks are added (`resgrow.deepen`). Removed parts are masked: shapes change by growth only, and by `compact`.

    **Cost.** Curvature is an average over single batches, at most ``share`` of the training work. Held data are looked
    at as often as takes about as much again. Both are counted in samples, so that runs are reproducible, and not in
    seconds. Growth of channels costs more than that: a try takes as long as some 50 training steps.

    Args:
        model: a model that ``resgrow.curvature`` knows; for channels `nn.Sequential`, `resgrow.nn.ResNet`, or any that
            ``torch.export`` can follow on example_inputs.
        optimizer: any ``torch.optim`` optimizer with per-element state that holds the model's parameters, or several.
        loss_fn: as in ``resgrow.curvature``.
        budget: upper limits on cost and loss.
        unit: what comes and goes: "channel" (with everything coupled to it; heads and neurons too), "weight", blocks
            ``(bo, bi)``, "residual" (whole residual blocks), or several of them, such as ``["channel", "residual"]``.
        grow: whether anything may come. Channels and residual blocks need example_inputs for it.
        init: of new channels: "tiny", "gradmax" or "random", see `resgrow.widen`.
        held: batches on which moves are checked; those that a training step was just made on, by default.
        deadline: number of steps by which the budget must be met. Moves then keep at least the pace that needs,
            even where the loss objects, and there are none after it. Without one the loss alone decides how fast.
        every: steps between moves; by default what ``share`` allows.
        samples: newest training samples kept (by reference); half for estimates, half for checks, or all for estimates
            where there are held data.
        curvature: method of ``resgrow.curvature``.
        temperature: of the softmax under which curvature is taken, see ``resgrow.curvature``.
        share: of the training work that curvature may take, and that looks at held data may take.
        confirm: how many of the cheapest channels or residual blocks are removed one by one at each move, to measure on
            128 samples what each is worth; 0 for none.
        cooldown: moves for which a group that has grown does not shrink, and the other way around.
        hysteresis: how many times dearer what comes has to be than what goes for it.
        blockwise: one large move whenever training has settled, rather than small ones all the time.
        trust: initial step size, damping and tolerance of removals; ``growth_trust``: of growth.
        exclude: parameters or modules to leave alone, see ``resgrow.prune``.
        example_inputs: a batch for the model; needed for budgets of ``macs`` and ``latency_ms``, and for channels of
            models other than `nn.Sequential` and `resgrow.nn.ResNet`.
        followers: averaged copies of the model, which change along.
        depth: stochastic depth on the model, see `resgrow.stochastic_depth`: residual blocks are then priced by the
            losses with and without each, as training has seen them. Call its ``observe`` in the loop.
        logs: told of every move when it is complete, and of the model's size whenever moves are due; see
            `resgrow.controller.logs`.
        seed: of the controller's own random numbers.

    Raises:
        ValueError: a budget that cannot be reached, an unknown unit or name in ``exclude``, an optimizer that does
            not hold the parameters, counts that are not positive, no held data, no example_inputs where they are
            needed, or a model whose channels ``torch.export`` cannot follow. Model and optimizer are as they were.
        TypeError: arguments of other types.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        loss_fn: LossFn,
        budget: Budget,
        *,
        unit: Unit = "channel",
        grow: bool = True,
        init: str = "tiny",
        held: Iterable[Any] | Batch | None = None,
        deadline: int | None = None,
        every: int | None = None,
        samples: int = 1024,
        curvature: str = "ggn-mc",
        temperature: float = 1.0,
        share: float = 0.05,
        confirm: int = 4,
        cooldown: int = 4,
        hysteresis: float = 2.0,
        blockwise: bool = False,
        trust: Trust | None = None,
        growth_trust: Trust | None = None,
        exclude: Sequence[str] = (),
        example_inputs: AnyInputs | None = None,
        followers: Followers = None,
        depth: StochasticDepth | None = None,
        logs: Sequence[Log] = (),
        seed: int = 0,
    ) -> None:
        settings = Settings(
            units_of(unit), grow, init, deadline, every, samples, share, confirm, cooldown, hysteresis, blockwise
        )
        check(model, budget, settings, example_inputs is not None)
        self.model = unwrapped("Controller", model)
        self.optimizer, self.loss_fn, self.budget = optimizer, loss_fn, budget
        self.logs = tuple(logs)
        along = company("Controller", self.model, optimizer, followers)
        self.trust = trust or Trust(fraction=0.2 if blockwise else 0.05)
        self._device = device_of(self.model)
        self._active = False
        generator = torch.Generator(self._device).manual_seed(seed)
        shop = Workshop(
            self.model,
            loss_fn,
            along.optimizers,
            along.followers,
            example_inputs,
            settings.units,
            exclude,
            budget.costs(),
            RunningCurvature(self.model, loss_fn, curvature, temperature, share, generator),
            torch.Generator().manual_seed(seed),
            confirm,
            depth,
        )
        given = None if held is None else take("Controller: held", held, self._device, 2**62)
        self._course = Course(shop, settings, budget.targets(shop.cost), Recent(samples), given, every)
        self._growth = Growing(growth_trust or Trust(fraction=0.1))
        self._limit = LossLimit()
        shop.check_reachable(self._course.targets)
        for each in along.optimizers:
            self.masks.attach(each)

    @property
    def history(self) -> list[Move]:
        """Every move tried, in order."""
        return self._course.history

    @property
    def masks(self) -> Masks:
        """What is present."""
        return self._course.shop.masks

    @property
    def growth_trust(self) -> Trust:
        """Size and damping of the next growth."""
        return self._growth.trust

    @property
    def cost(self) -> dict[str, float]:
        """Live parameters; with example inputs multiply-accumulates per sample; with such a budget milliseconds."""
        return self._course.cost

    @property
    def met(self) -> bool:
        """Whether the model is within its budget, its loss as it was measured last."""
        course = self._course
        return course.exceeded(self.cost) is None and (self.budget.loss is None or self._limit.holds(course.losses))

    @property
    def every(self) -> int | None:
        """Steps between moves; None where that depends on the batches and none has been seen yet."""
        return self._course.every

    @property
    def on_probation(self) -> bool:
        """Whether what was removed last may yet come back: with a limit of loss, training has to recover from it."""
        return self._limit.probation is not None

    @property
    def reversals(self) -> int:
        """How often a group that had grown shrank next, or the other way around."""
        return reversals(self.history)

    def step(self, batch: Batch) -> Move | None:
        """Tell the controller that one optimizer step was made on ``batch``, a pair ``(input, target)``.

        Returns:
            The move, if this step made one that was kept (the last, where it made several); otherwise None.

        Raises:
            ValueError: the loss or the model's output is NaN; nothing is changed then.
            TypeError: ``batch`` is not such a pair.
        """
        course = self._course
        taken = take("Controller.step", [batch], self._device, 1)[0]
        course.recent.add(taken)
        course.steps += 1
        if course.over and not self.on_probation:
            return None
        course.shop.estimate.step(taken)
        if not course.due(len(taken[1])):
            return None
        tried = len(self.history)
        self._act()
        self._tell(self.history[tried:])
        return next((move for move in reversed(self.history[tried:]) if move.accepted), None)

    def prices(self, by: str | None = None) -> Prices:
        """What each group's cheapest unit is worth, and the best one that is not there, on the newest batches.

        Args:
            by: the kind of cost; by default that which is nearest to its limit.

        Raises:
            ValueError: no step has been made yet.
        """
        course = self._course
        if not course.recent.batches:
            raise ValueError("Controller.prices: needs batches (got none); call step with one first")
        ground = course.shop.ground(course.scene(), by or course.currency(), 0.0, self.trust.damping)
        return prices(course.shop.families, course.growers(), ground)

    def compact(self) -> None:
        """Take out of the model, physically, what masks hold back: it trains faster then. Parameters stay the objects
        that they are, and optimizers go on; see `resgrow.compact`."""
        if self._course.shop.example_inputs is None:
            raise ValueError("Controller.compact: needs example_inputs (got none); give them to the controller")
        self._course.shop.compact()

    def state_dict(self) -> dict[str, Any]:
        """All that the next move depends on, in plain types and tensors: ``torch.load(weights_only=True)`` reads it.

        The newest batches are in it, and where the model has grown, its structure as data.
        """
        return captured(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`, bit for bit where model and optimizer do.

        Where the model had grown (or was compacted), this one, made by the original constructor, gets that structure,
        and the optimizer its parameters in that order. Call it before the ``load_state_dict`` of both then.

        Raises:
            ValueError: a dictionary of another kind, or a structure that does not fit the model; nothing is changed.
        """
        restore(self, state)
        rewind(self.logs, self._course.steps, self.history)

    def _tell(self, moves: Sequence[Move]) -> None:
        losses = self._course.losses
        for log in self.logs:
            for move in moves:
                log.move(move)
            log.size(self._course.steps, self.cost, losses[-1] if losses else None)

    def _act(self) -> None:
        """A look at the held data, and the move that is called for: above a limit of cost, towards a limit of loss, or
        growth within the budget."""
        course = self._course
        by = course.exceeded(self.cost)
        if by is None and not course.growers() and self.budget.loss is None:
            return
        scene = course.scene()
        settled = course.settled(scene)
        course.look(scene.before)
        # Removal goes on once it has begun, unless it is to be done block by block.
        self._active = not course.settings.blockwise and (self._active or settled)
        if self._limit.limit is None:
            self._limit.limit = self.budget.loss_limit(scene.before)
        if self.on_probation:
            self._limit.judge(course, self.trust, scene)
        elif course.over:
            return
        elif by is not None:
            if settled or self._active or course.hurried:
                shrink(course, self.trust, scene, by)
        elif self.budget.loss is not None:
            self._limit.towards(course, self.trust, self._growth, scene, settled or self._active)
        elif settled:
            self._growth.grow(course, scene)
