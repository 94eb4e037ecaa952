"""Where moves are tried: everything is measured, and whatever is not kept is undone to the bit."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from resgrow.controller.grow import Ground, Grower, Sprout
from resgrow.controller.meter import Meter
from resgrow.controller.newton import Step, newton_step
from resgrow.controller.probation import put_back, taken
from resgrow.controller.running import RunningCurvature
from resgrow.controller.settings import label
from resgrow.controller.shrink import Family, Removal, Scores, calibrated, cheapest, confirmed, together
from resgrow.curvature.batches import Batch, fewer
from resgrow.curvature.evaluate import mean_loss, uninformed_loss
from resgrow.curvature.heads import LossFn
from resgrow.depth import StochasticDepth
from resgrow.saliency import obd
from resgrow.saliency.obs import layer_surgeon
from resgrow.saliency.quadratic import Surgeon
from resgrow.saliency.request import Request
from resgrow.surgery import Masks, compact, make_units
from resgrow.surgery.forward import AnyInputs, Example

# Samples on which single units are removed for a look at what they are worth.
CONFIRMING = 128
# Output positions of a layer that tell how its inputs go together: of 3x3 convolutions those of four CIFAR images.
ENOUGH = 4096
# Multiply-accumulates for one parameter's survivors, at most. Rows that lack different weights need a factor each.
DEAR = 2e10


@dataclass
class Scene:
    """What one move looks at.

    Attributes:
        estimation, check: batches to predict on, and to measure on.
        h: curvature of all parameters.
        before: mean loss on ``check``.
        cost: of the model as it is.
        shrink_resting, grow_resting: groups that have just moved the other way, and do not shrink or grow now.
        confirmed: scores by family, of which some are measured; for all tries of one move.
        surgeon: what the survivors of a removal can be made to make up for it with, once it was needed.
    """

    estimation: list[Batch]
    check: list[Batch]
    h: dict[str, Tensor]
    before: float
    cost: dict[str, float]
    shrink_resting: Collection[str] = frozenset()
    grow_resting: Collection[str] = frozenset()
    confirmed: dict[str, Scores] = field(default_factory=dict)
    surgeon: Surgeon | None = None


@dataclass(frozen=True)
class Shrunk:
    """A removal, its loss measured; nothing has been changed. ``cost`` is that of the model after it.

    Attributes:
        values: of parameters whose survivors make up for what goes.
    """

    removal: Removal
    after: float
    cost: dict[str, float]
    values: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Grown:
    """Growth that is there.

    Attributes:
        after: mean loss on the scene's check with the step made.
        cost: of the model with it. added: what it adds, of the kind it was made for.
        h: curvature of all parameters of the model with it.
    """

    sprout: Sprout
    step: Step
    after: float
    cost: dict[str, float]
    added: float
    h: dict[str, Tensor]
    _families: list[Family]
    _meter: Meter


@dataclass
class Workshop:
    """A model and all that goes with it.

    Attributes:
        units, exclude: what may come and go, as `resgrow.surgery.make_units` takes them.
        confirm: how many of the cheapest units of a family are removed one by one, to measure what each is worth.
        depth: tells from training what residual branches are worth.
        structural: whether shapes have changed.
    """

    model: nn.Module
    loss_fn: LossFn
    optimizers: Sequence[Optimizer]
    followers: Sequence[nn.Module]
    example_inputs: AnyInputs | None
    units: Sequence[str | tuple[int, int]]
    exclude: Sequence[str]
    wanted: Sequence[str]
    estimate: RunningCurvature
    generator: torch.Generator
    confirm: int = 0
    depth: StochasticDepth | None = None
    structural: bool = False

    def __post_init__(self) -> None:
        self._look_again()
        self.masks = Masks(self.model, {})
        self._mask_all()

    @property
    def cost(self) -> dict[str, float]:
        return self.meter.cost(self.masks)

    def loss(self, batches: Sequence[Batch], weights: Mapping[str, Tensor] | None = None) -> float:
        return mean_loss("Controller", self.model, self.loss_fn, batches, weights)

    def uninformed_loss(self, batches: Sequence[Batch]) -> float:
        """That of constant outputs; infinite where the loss is not defined for them, as one of directions."""
        try:
            return uninformed_loss("Controller", self.model, self.loss_fn, batches)
        except ValueError:
            return math.inf

    def try_shrink(
        self, scene: Scene, by: str, save: float, damping: float, refit: Collection[str] = ()
    ) -> Shrunk | None:
        """The cheapest way to save ``save``, or as much as there is; None where nothing can go.

        Args:
            refit: kinds of units for which survivors make up, in the choice and in the result, see `refitted`.
        """
        saliency = self._saliency(scene, damping)

        def score(family: Family) -> Scores:
            scores = self._survived(family, family.units.scores(saliency))
            if not self.confirm or family.unit in ("weight", "block"):
                return scores
            if family.unit not in scene.confirmed:
                scene.confirmed[family.unit] = self._confirmed(scene, family, scores, by, family.unit in refit)
            return scene.confirmed[family.unit]

        removal = cheapest(self.families, score, save, self.masks, by, scene.shrink_resting)
        if removal is None:
            return None
        after = self.loss(scene.check, self._masked(removal.masks))
        shrunk = Shrunk(removal, after, self.meter.cost({**self.masks, **removal.masks}))
        return self.refitted(scene, shrunk) if removal.unit in refit else shrunk

    def refitted(self, scene: Scene, shrunk: Shrunk) -> Shrunk:
        """The removal with survivors that keep each layer's output, least squares over its inputs (Optimal Brain
        Compression, Frantar & Alistarh 2022); as it was where that does not lower the loss."""
        try:
            values = self._made_good(scene, shrunk.removal.masks)
            after = self.loss(scene.check, values)
        except ValueError:  # inputs that no matrix can be made of or factorised, or a loss that is not finite
            return shrunk
        return replace(shrunk, after=after, values=values) if after < shrunk.after else shrunk

    def _saliency(self, scene: Scene, damping: float) -> dict[str, Tensor]:
        """Damped, but for weights that nothing depends on, as many passes have said: those into removed units, or out
        of them. They are worth nothing, however large they are."""
        scores = obd(self.model, scene.h, damping)
        if any(bool(h.any()) for h in scene.h.values()):  # a loss without curvature says nothing of this
            for name, score in scores.items():
                unseen = self.estimate.unseen(name)
                if unseen is not None and unseen.shape == score.shape:
                    score.masked_fill_(unseen, 0)
        return scores

    def _confirmed(self, scene: Scene, family: Family, scores: Scores, by: str, refit: bool) -> Scores:
        """Scores of which those of the cheapest units are what removing each costs, as measured."""
        few = fewer(scene.estimation, CONFIRMING)
        base = self.loss(few)

        def rise(masks: Mapping[str, Tensor]) -> float:
            if refit:
                try:
                    return self.loss(few, self._made_good(scene, masks)) - base
                except ValueError:  # as in `refitted`
                    pass
            return self.loss(few, self._masked(masks)) - base

        found = confirmed(family, scores, self.masks, by, self.confirm, rise)
        return calibrated(scores, found) if refit else found

    def _made_good(self, scene: Scene, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values of the parameters that lose something by ``masks``. Raises ValueError as `Surgeon.update`."""
        if scene.surgeon is None:
            few = fewer(scene.estimation, CONFIRMING)
            scene.surgeon = layer_surgeon(Request(self.model, self.loss_fn, few, "refit", {}), ENOUGH)
        values = {}
        for name, mask in masks.items():
            if not torch.equal(mask, self.masks[name]):
                weight, model = self.model.get_parameter(name).detach(), scene.surgeon.quadratics.get(name)
                dear = model is None or model.work(weight, mask) > DEAR
                values[name] = weight * mask if dear else scene.surgeon.update(name, weight, mask)
        return values

    def keep_shrunk(self, shrunk: Shrunk, grown: Grown | None = None) -> None:
        """Put it into force; with ``grown``, in such a way that undoing that takes it back, too."""
        if grown is None:
            self.masks.update(shrunk.removal.masks)
        else:
            grown.sprout.edit.apply_masks(self.masks, shrunk.removal.masks)
        with torch.no_grad():
            for name, values in shrunk.values.items():
                self.model.get_parameter(name).copy_(values)

    def try_grow(self, scene: Scene, growers: Sequence[Grower], by: str, size: float, damping: float) -> Grown | None:
        """The growth of the largest predicted fall per cost, which is there then; None where nothing can grow or no
        step of what is new lowers the loss."""
        ground = self.ground(scene, by, size, damping)
        best: tuple[float, Grower, Sprout, Tensor] | None = None
        single = len(growers) == 1
        for grower in growers:
            state = self.generator.get_state()
            for sprout in grower.sprouts(ground):
                grown = self._grown(scene, sprout, by, damping)
                if single and grown is not None and sprout.kind != "deepen":
                    return grown
                if grown is not None:
                    price = grown.step.fall / max(grown.added, 1e-12)
                    self.undo(grown)
                    if best is None or price > best[0]:
                        best = price, grower, sprout, state
                state = self.generator.get_state()
        if best is None:
            return None
        _, grower, sprout, state = best
        self.generator.set_state(state)
        ground.only = sprout.where.keys()
        again = next(iter(grower.sprouts(ground)), None)
        return None if again is None else self._grown(scene, again, by, damping)

    def keep(self, grown: Grown) -> None:
        self.estimate.adopt({name: grown.h[name] for name in grown.sprout.changed})
        self.structural |= grown.sprout.kind != "regrow"
        if grown.sprout.kind == "deepen":
            self._look_for_branches()

    def undo(self, grown: Grown) -> None:
        self._take_out(grown.sprout, grown._families, grown._meter)

    def snapshot(self) -> dict[str, Any]:
        """All numbers as they are."""
        return taken(self.model, self.optimizers, self.masks)

    def put_back(self, snapshot: dict[str, Any]) -> None:
        """All numbers as they were; shapes have not changed since."""
        put_back(snapshot, self.model, self.optimizers, self.masks)

    def rebuilt(self) -> None:
        """The model's shapes are others now."""
        self._look_again()
        self._mask_all()

    def compact(self) -> None:
        """What masks hold back is taken out of the model."""
        assert self.example_inputs is not None
        compact(
            self.model,
            self.example_inputs,
            inplace=True,
            optimizer=self.optimizers,
            followers=self.followers,
            masks=self.masks,
        )
        self.structural = True
        self.rebuilt()
        self._look_for_branches()

    def check_reachable(self, targets: Mapping[str, float]) -> None:
        """Raises ValueError where removing all that can go leaves more than ``targets``."""
        for by, target in targets.items():
            least: dict[str, Tensor] = {}
            for family in self.families:
                free = [torch.zeros(live.shape, device=live.device) for live in family.units.live()]
                most = family.units.savable(free, None, by)
                least |= together(least, family.units.to_masks(family.units.select(free, most, None, by)))
            cost = self.meter.cost(least)[by]
            if target < cost:
                raise ValueError(
                    f"Controller: the budget must be reachable (got {by}={target:,g} of {self.cost[by]:,g}; "
                    f"removing all that unit={tuple(self.units)} can remove leaves {cost:,g}); raise it, exclude "
                    "less, or use a finer unit"
                )

    def _survived(self, family: Family, scores: Scores) -> Scores:
        """Scores of residual branches as stochastic depth has measured them, where it has seen enough."""
        if family.unit != "residual" or self.depth is None:
            return scores
        known = {path: value for path, (value, error) in self.depth.importance().items() if math.isfinite(error)}
        return [
            torch.full_like(score, max(0.0, known[name])) if name in known else score
            for name, score in zip(family.units.groups, scores, strict=True)
        ]

    def _grown(self, scene: Scene, sprout: Sprout, by: str, damping: float) -> Grown | None:
        """A step of what is new, its loss measured; None, with the sprout taken out, where none lowers the loss."""
        families, meter = self.families, self.meter
        try:
            h = scene.h
            if sprout.changed:
                h = self.estimate.once(scene.estimation)
                self.rebuilt()
            step = newton_step(self.model, self.loss_fn, scene.estimation, sprout.entries, h, damping)
            if step is not None:
                for name, values in step.values.items():
                    sprout.edit.set_values(self.model.get_parameter(name), values)
                cost = self.cost
                after = self.loss(scene.check)
                return Grown(sprout, step, after, cost, cost[by] - scene.cost[by], h, families, meter)
        except BaseException:
            self._take_out(sprout, families, meter)
            raise
        self._take_out(sprout, families, meter)
        return None

    def _take_out(self, sprout: Sprout, families: list[Family], meter: Meter) -> None:
        sprout.edit.undo()
        self.families, self.meter = families, meter

    def ground(self, scene: Scene, by: str, size: float, damping: float) -> Ground:
        return Ground(
            self.model,
            self.loss_fn,
            self.optimizers,
            self.followers,
            self.masks,
            scene.estimation,
            scene.h,
            damping,
            size,
            by,
            self.generator,
            None if self.example_inputs is None else Example.of(self.example_inputs, "Controller"),
            scene.grow_resting,
        )

    def _look_for_branches(self) -> None:
        if self.depth is not None:
            self.depth.refresh()

    def _masked(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self.model.get_parameter(name).detach() * mask for name, mask in masks.items()}

    def _look_again(self) -> None:
        made = [
            # A bias is a weight as any other, and one of a unit that nothing reads any more should not be paid for.
            make_units(self.model, unit, self.exclude, self.example_inputs, biases=unit == (1, 1))
            for unit in self.units
        ]
        self.families = [Family(label(unit), units) for unit, units in zip(self.units, made, strict=True)]
        self.meter = Meter(self.model, [family.units for family in self.families], self.example_inputs, self.wanted)

    def _covered(self) -> list[str]:
        return list(dict.fromkeys(name for family in self.families for name in family.units.parameters))

    def _mask_all(self) -> None:
        """New parameters that units cover are masked, too, with everything present."""
        new = [name for name in self._covered() if name not in self.masks]
        if new:
            present = {name: torch.ones_like(self.model.get_parameter(name), dtype=torch.bool) for name in new}
            self.masks.exchange({**self.masks, **present})
