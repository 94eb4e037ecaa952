"""The controller: prices the parts of a model while it trains, removes what can be spared, adds what is asked for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from resgrow.controller.budget import Budget
from resgrow.controller.grow import Deepener, Grower, Regrower, Widener
from resgrow.controller.history import Move, restored, reversals
from resgrow.controller.logs import Log, rewind
from resgrow.controller.moves import grow_move, shrink_move
from resgrow.controller.prices import Prices, prices
from resgrow.controller.probation import Probation
from resgrow.controller.progress import SETTLED, SMOOTH, level, stalled
from resgrow.controller.recent import Recent
from resgrow.controller.running import RunningCurvature
from resgrow.controller.settings import Settings, Unit, check, units_of
from resgrow.controller.shrink import together
from resgrow.controller.state import captured, restore
from resgrow.controller.trust import Trust, pace
from resgrow.controller.workshop import CONFIRMING, Grown, Scene, Shrunk, Workshop
from resgrow.curvature.batches import Batch, device_of, take
from resgrow.curvature.heads import LossFn
from resgrow.depth import StochasticDepth
from resgrow.surgery import Masks, compact
from resgrow.surgery.company import Followers, company
from resgrow.surgery.forward import AnyInputs
from resgrow.surgery.wrappers import unwrapped

# Tries per move: each halves the step, so the last is an eighth of the first.
TRIES = 4
# Growth must bring this part of what was predicted.
WORTH = 0.1
# Below a limit of the loss, the model shrinks only when it has this part to spare.
MARGIN = 0.05
# Looks at held data without a try, at most, after tries that have failed; it doubles with each.
LONGEST_REST = 64
# What a move takes, in forward passes over the held data: one before, one or two tries, and the choice of what moves.
LOOKS = 3.0
# What a forward pass takes of a training step: measured between .28 (ResNet-20) and .46 (LeNet-5).
FORWARD = 0.4


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
    the next one (see `Trust`).

    Use::

        ctl = resgrow.Controller(model, optimizer, loss_fn, budget=resgrow.Budget(params=0.1))
        for batch in loader:
            train(batch)        # forward, backward, optimizer.step()
            ctl.step(batch)

    What comes, by ``unit``: masked weights and blocks regrow; channels, neurons and heads come where the gain per cost
    is largest (`resgrow.growth_gain`; those that masks hold back are woken first, then layers become wider); residual
    blocks are added (`resgrow.deepen`). Removed parts are masked: shapes change by growth only, and by `compact`.

    **Cost.** Curvature is an average over single batches, at most ``share`` of the training work. Held data are looked
    at as often as takes about as much again. Both are counted in samples, so that runs are reproducible, and not in
    seconds. Growth of channels costs more than that where layers are wide (an eigenvalue problem for each layer).

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
            256 samples what each is worth; 0 for none.
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

    Attributes:
        history: every move tried, in order.
        masks: what is present.

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
        self.optimizer, self.loss_fn, self.budget, self.settings = optimizer, loss_fn, budget, settings
        self.logs = tuple(logs)
        along = company("Controller", self.model, optimizer, followers)
        self.trust = trust or Trust(fraction=0.2 if blockwise else 0.05)
        self.growth_trust = growth_trust or Trust(fraction=0.1)
        self.history: list[Move] = []
        self._device = device_of(self.model)
        self._held = None if held is None else take("Controller: held", held, self._device, 2**62)
        self._recent = Recent(samples)
        self._steps, self._every, self._active = 0, every, False
        self._losses: list[float] = []
        self._probation: Probation | None = None
        # Of removals on probation: groups of which one unit was too much; how often all were; looks until the next.
        self._failed: list[str] = []
        self._failures, self._rest = 0, 0
        self._growth_failures, self._growth_rest = 0, 0  # the same of growth
        self._loss_limit: float | None = None
        generator = torch.Generator(self._device).manual_seed(seed)
        self._shop = Workshop(
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
        self._deepener = Deepener()
        self._targets = budget.targets(self._shop.cost)
        self._check_reachable()
        for each in along.optimizers:
            self.masks.attach(each)

    @property
    def masks(self) -> Masks:
        return self._shop.masks

    @property
    def cost(self) -> dict[str, float]:
        """Live parameters; with example inputs multiply-accumulates per sample; with such a budget milliseconds."""
        return self._shop.cost

    @property
    def met(self) -> bool:
        """Whether the model is within its budget, its loss as it was measured last."""
        limit = math.inf if self._loss_limit is None else self._loss_limit
        return self._excess() is None and (
            self.budget.loss is None or (bool(self._losses) and self._losses[-1] <= limit)
        )

    @property
    def every(self) -> int | None:
        """Steps between moves; None where that depends on the batches and none has been seen yet."""
        return self._every

    @property
    def on_probation(self) -> bool:
        """Whether what was removed last may yet come back: with a limit of loss, training has to recover from it."""
        return self._probation is not None

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
        taken = take("Controller.step", [batch], self._device, 1)[0]
        self._recent.add(taken)
        self._steps += 1
        if self._over and self._probation is None:
            return None
        self._shop.estimate.step(taken)
        if not self._due(len(taken[1])):
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
        if not self._recent.batches:
            raise ValueError("Controller.prices: needs batches (got none); call step with one first")
        scene = self._scene()
        ground = self._shop.ground(scene, by or self._currency(), 0.0, self.trust.damping)
        return prices(self._shop.families, self._growers(), ground)

    def compact(self) -> None:
        """Take out of the model, physically, what masks hold back: it trains faster then. Parameters stay the objects
        that they are, and optimizers go on; see `resgrow.compact`."""
        shop = self._shop
        if shop.example_inputs is None:
            raise ValueError("Controller.compact: needs example_inputs (got none); give them to the controller")
        compact(
            self.model,
            shop.example_inputs,
            inplace=True,
            optimizer=shop.optimizers,
            followers=shop.followers,
            masks=self.masks,
        )
        shop.structural = True
        shop.rebuilt()
        self._look_for_branches()

    def _look_for_branches(self) -> None:
        if self._shop.depth is not None:
            self._shop.depth.refresh()

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
        rewind(self.logs, self._steps, self.history)

    def _tell(self, moves: Sequence[Move]) -> None:
        for log in self.logs:
            for move in moves:
                log.move(move)
            log.size(self._steps, self.cost, self._losses[-1] if self._losses else None)

    @property
    def _over(self) -> bool:
        return self.settings.deadline is not None and self._steps > self.settings.deadline

    def _due(self, batch_size: int) -> bool:
        if self._every is None:
            held = self._recent.samples / 2 if self._held is None else sum(len(target) for _, target in self._held)
            single = any(family.unit in _GROUPS for family in self._shop.families) and self.settings.confirm > 0
            samples = LOOKS * held + (CONFIRMING * (self.settings.confirm + 1) if single else 0)
            self._every = max(1, math.ceil(FORWARD * samples / (batch_size * self.settings.share)))
        return self._steps % self._every == 0 or self._steps == self.settings.deadline

    def _act(self) -> None:
        by = self._excess()
        growers = self._growers()
        if by is None and not growers and self.budget.loss is None:
            return
        scene = self._scene()
        settled = self._settled(scene)
        self._losses = [*self._losses, scene.before][-2 * SMOOTH :]
        # Removal goes on once it has begun, unless it is to be done block by block.
        self._active = not self.settings.blockwise and (self._active or settled)
        if self._loss_limit is None:
            self._loss_limit = self.budget.loss_limit(scene.before)
        if self._probation is not None:
            self._judge(scene)
        elif self._over:
            return
        elif by is not None:
            if settled or self._active or self._hurried():
                self._shrink(scene, by, self._targets[by])
        elif self.budget.loss is not None:
            self._towards(self._loss_limit, scene, growers, settled)
        elif settled:
            self._grow(scene, growers)

    def _towards(self, limit: float, scene: Scene, growers: Sequence[Grower], settled: bool) -> None:
        """Larger where the loss is above its limit, smaller where it is below."""
        if len(self._losses) < 2:
            return
        if level(self._losses) > limit:
            if growers and stalled(self._losses, limit):
                self._grow(scene, growers)
        elif self._rest > 0:
            self._rest -= 1
        elif level(self._losses) <= (1 - MARGIN) * limit and (settled or self._active):
            self._shrink_on_probation(scene, limit)

    def _shrink_on_probation(self, scene: Scene, limit: float) -> None:
        """Remove what is cheapest; training decides whether it stays removed."""
        by = self._currency()
        scene = replace(scene, shrink_resting=frozenset(scene.shrink_resting) | set(self._failed))
        shrunk = self._shop.try_shrink(scene, by, self.trust.fraction * scene.cost[by], self.trust.damping)
        if shrunk is None:
            if self._failed:  # each group has been tried: all of them again, after a while that doubles every time
                self._failed, self._failures = [], self._failures + 1
                self._rest = min(2**self._failures, LONGEST_REST)
            return
        shrunk = self._shop.refitted(scene, shrunk)
        if shrunk.after > limit:
            self._probation = Probation(self._shop.snapshot(), limit)
        self.history.append(shrink_move(self._steps, scene, shrunk, by, True, self.trust, scene.before))
        self._shop.keep_shrunk(shrunk)
        self._losses = [shrunk.after]
        if self._probation is None:
            self._passed()

    def _judge(self, scene: Scene) -> None:
        assert self._probation is not None
        verdict = self._probation.verdict(self._losses)
        if verdict is None:
            return
        snapshot, self._probation = self._probation.snapshot, None
        if verdict:
            self._passed()
            return
        removal = next(move for move in reversed(self.history) if move.kind == "shrink")
        if removal.count == 1:
            self._failed += removal.where
        self._shop.put_back(snapshot)
        self._losses = [self._shop.loss(scene.check)]
        self.trust.refused()
        self.history.append(restored(removal, self._steps, scene.before, self._losses[0], self.cost))

    def _passed(self) -> None:
        self._failed, self._failures = [], 0
        self.trust.passed()

    def _settled(self, scene: Scene) -> bool:
        """Whether training has slowed down since the last look: the loss no longer falls by much."""
        if not self._losses:
            return False
        return self._losses[-1] - scene.before <= SETTLED * abs(self._losses[-1])

    def _hurried(self) -> bool:
        """Half of the time to the deadline is gone."""
        return self.settings.deadline is not None and 2 * self._steps >= self.settings.deadline

    def _scene(self) -> Scene:
        if self._held is None:
            estimation, check_ = self._recent.split()
        else:
            estimation, check_ = self._recent.batches, self._held
        h = self._shop.estimate.value(estimation)
        before = self._shop.loss(check_)
        recent = [move for move in self.history if move.accepted and self._age(move) <= self.settings.cooldown]
        return Scene(
            estimation,
            check_,
            h,
            before,
            self.cost,
            frozenset(name for move in recent if move.grows and move.unit in _GROUPS for name in move.where),
            frozenset(name for move in recent if not move.grows and move.unit in _GROUPS for name in move.where),
        )

    def _age(self, move: Move) -> int:
        """Of a move, in times between moves."""
        return (self._steps - move.step) // (self._every or 1)

    def _excess(self) -> str | None:
        return self._exceeded(self.cost) if self._targets else None

    def _exceeded(self, cost: Mapping[str, float]) -> str | None:
        """The kind of cost that exceeds its limit most, as a ratio; None where none does."""
        if not self._targets:
            return None
        ratios = {by: cost[by] / target for by, target in self._targets.items()}
        worst = max(ratios, key=lambda by: ratios[by])
        return worst if ratios[worst] > 1 else None

    def _currency(self) -> str:
        """The kind of cost that prices are in: that which is nearest to its limit."""
        cost = self.cost
        return max(self._targets, key=lambda by: cost[by] / self._targets[by], default="params")

    def _check_reachable(self) -> None:
        shop = self._shop
        for by, target in self._targets.items():
            least: dict[str, torch.Tensor] = {}
            for family in shop.families:
                free = [torch.zeros(live.shape, device=live.device) for live in family.units.live()]
                most = family.units.savable(free, None, by)
                least |= together(least, family.units.to_masks(family.units.select(free, most, None, by)))
            cost = shop.meter.cost(least)[by]
            if target < cost:
                raise ValueError(
                    f"Controller: the budget must be reachable (got {by}={target:,g} of {shop.cost[by]:,g}; "
                    f"removing all that unit={self.settings.units} can remove leaves {cost:,g}); raise it, exclude "
                    "less, or use a finer unit"
                )

    def _growers(self) -> list[Grower]:
        if not self.settings.grow:
            return []
        growers: list[Grower] = []
        for family in self._shop.families:
            if family.unit in ("weight", "block"):
                growers.append(Regrower(family))
            elif self._shop.example_inputs is not None:
                growers.append(self._deepener if family.unit == "residual" else Widener(family, self.settings.init))
        return growers

    def _shrink(self, scene: Scene, by: str, target: float) -> None:
        """Try removals of falling size, down to ``target``, until one is kept."""
        cost = scene.cost[by]
        needed, last = self._pace(cost, target), None
        for _ in range(TRIES):
            fraction = max(needed, min(self.trust.fraction, 1 - target / cost))
            shrunk = self._shop.try_shrink(scene, by, min(fraction * cost, cost - target), self.trust.damping)
            if shrunk is None:
                return
            if last is not None and shrunk.removal.where == last:
                break  # one unit is the least that can go
            last = shrunk.removal.where
            actual = shrunk.after - scene.before
            kept = fraction <= needed or self.trust.accepts(actual, scene.before)
            self.history.append(shrink_move(self._steps, scene, shrunk, by, kept, self.trust, scene.before))
            if kept:
                self._shop.keep_shrunk(shrunk)
                self.trust.kept(shrunk.removal.predicted, actual, scene.before)
                return
            self.trust.refused()
        self.trust.stuck()

    def _grow(self, scene: Scene, growers: Sequence[Grower]) -> None:
        """Try growth, and where it exceeds the budget, what has to go for it."""
        if self._growth_rest > 0:
            self._growth_rest -= 1
            return
        by = self._currency()
        size = self.growth_trust.fraction * scene.cost[by]
        grown = self._shop.try_grow(scene, growers, by, size, self.growth_trust.damping)
        if grown is None:
            self._wait_to_grow()
            return
        fall = scene.before - grown.after
        kept, shrunk = fall >= WORTH * grown.step.fall, None
        if kept and self._exceeded(grown.cost) is not None:
            shrunk = self._payment(scene, grown)
            kept = shrunk is not None and self._worth(scene, grown, shrunk)
        self.history.append(grow_move(self._steps, scene, grown, by, kept, self.growth_trust))
        if shrunk is not None:
            self.history.append(shrink_move(self._steps, scene, shrunk, by, kept, self.growth_trust, grown.after))
        if not kept:
            self._shop.undo(grown)
            self.growth_trust.refused()
            self._wait_to_grow()
            return
        self._growth_failures = 0
        if shrunk is not None:
            self._shop.keep_shrunk(shrunk, grown)
        self._shop.keep(grown)
        if grown.sprout.kind == "deepen":
            self._look_for_branches()
        self._losses = [grown.after if shrunk is None else shrunk.after]
        self.growth_trust.grew(grown.step.fall, fall)

    def _wait_to_grow(self) -> None:
        """Nothing was worth it: trying is dear, and what is there has to change first."""
        self._growth_failures += 1
        self._growth_rest = min(2**self._growth_failures, LONGEST_REST)

    def _payment(self, scene: Scene, grown: Grown) -> Shrunk | None:
        """What goes for growth that is there, so that the budget holds."""
        by = self._exceeded(grown.cost)
        assert by is not None
        resting = frozenset(scene.shrink_resting) | (
            grown.sprout.where.keys() if grown.sprout.unit in _GROUPS else set()
        )
        now = replace(scene, h=grown.h, cost=grown.cost, shrink_resting=resting, confirmed={})
        return self._shop.try_shrink(now, by, grown.cost[by] - self._targets[by], self.growth_trust.damping)

    def _worth(self, scene: Scene, grown: Grown, shrunk: Shrunk) -> bool:
        """Whether what comes is worth more than what goes for it, as predicted and as measured."""
        if self._exceeded(shrunk.cost) is not None or shrunk.after >= scene.before:
            return False
        return grown.step.fall > self.settings.hysteresis * shrunk.removal.predicted

    def _pace(self, cost: float, target: float) -> float:
        if self.settings.deadline is None:
            return 0.0
        return pace(cost, target, math.ceil((self.settings.deadline - self._steps) / (self._every or 1)) + 1)


_GROUPS = ("channel", "residual")
