"""Where a run stands: steps, size and loss as they were measured, and what a move looks at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from resgrow.controller.grow import Deepener, Grower, Regrower, Widener
from resgrow.controller.history import Move
from resgrow.controller.progress import SETTLED, SMOOTH
from resgrow.controller.recent import Recent
from resgrow.controller.settings import Settings
from resgrow.controller.workshop import CONFIRMING, Scene, Workshop
from resgrow.curvature.batches import Batch

# Units that are measured one by one, and that rest after a move.
GROUPS = ("channel", "residual")
# What a move takes, in forward passes over the held data: one before, and one or two for a try.
LOOKS = 3.0
# What that takes of a training step on as many samples: the pass alone between .28 (ResNet-20) and .46 (LeNet-5).
FORWARD = 0.6
# A look at one unit, with the survivors' equations, in forward passes.
SOLVING = 1.25
# Part of what has been learned, as a fall of the loss, that losses below it are taken for.
KNOWLEDGE = 0.1


@dataclass
class Course:
    """Attributes:
    targets: absolute limits of cost. recent: newest training batches. held: those to check on, if any were given.
    every: steps between moves, once that is known. steps: seen so far.
    losses: newest looks at the held data, since the last change. history: every move tried.
    uninformed: loss of a model that gives every sample the same output, once it was needed.
    """

    shop: Workshop
    settings: Settings
    targets: dict[str, float]
    recent: Recent
    held: list[Batch] | None
    every: int | None
    steps: int = 0
    losses: list[float] = field(default_factory=list)
    uninformed: float | None = None
    history: list[Move] = field(default_factory=list)
    deepener: Deepener = field(default_factory=Deepener)

    @property
    def cost(self) -> dict[str, float]:
        return self.shop.cost

    @property
    def over(self) -> bool:
        """The deadline is past."""
        return self.settings.deadline is not None and self.steps > self.settings.deadline

    @property
    def hurried(self) -> bool:
        """Half of the time to the deadline is gone."""
        return self.settings.deadline is not None and 2 * self.steps >= self.settings.deadline

    @property
    def moves_left(self) -> int | None:
        """Until the deadline; None where there is none."""
        deadline = self.settings.deadline
        return None if deadline is None else math.ceil((deadline - self.steps) / (self.every or 1)) + 1

    def due(self, batch_size: int) -> bool:
        """Whether moves are due after this step, made on a batch of that size."""
        if self.every is None:
            held = self.recent.samples / 2 if self.held is None else sum(len(target) for _, target in self.held)
            samples = LOOKS * held
            if any(family.unit in GROUPS for family in self.shop.families):
                # How inputs go together, and what each of the cheapest units is worth.
                samples += CONFIRMING * (1 + SOLVING * (self.settings.confirm + 1))
            self.every = max(1, math.ceil(FORWARD * samples / (batch_size * self.settings.share)))
        return self.steps % self.every == 0 or self.steps == self.settings.deadline

    def exceeded(self, cost: Mapping[str, float]) -> str | None:
        """The kind of cost that exceeds its limit most, as a ratio; None where none does."""
        if not self.targets:
            return None
        ratios = {by: cost[by] / target for by, target in self.targets.items()}
        worst = max(ratios, key=lambda by: ratios[by])
        return worst if ratios[worst] > 1 else None

    def currency(self) -> str:
        """The kind of cost that prices are in: that which is nearest to its limit."""
        cost = self.cost
        return max(self.targets, key=lambda by: cost[by] / self.targets[by], default="params")

    def growers(self, init: str | None = None) -> list[Grower]:
        """What can come; ``init``: of new channels, where it is to be another one than was asked for."""
        if not self.settings.grow:
            return []
        growers: list[Grower] = []
        init = init or self.settings.init
        for family in self.shop.families:
            if family.unit in ("weight", "block"):
                growers.append(Regrower(family))
            elif self.shop.example_inputs is not None:
                growers.append(
                    self.deepener if family.unit == "residual" else Widener(family, init or self.settings.init)
                )
        return growers

    def scene(self) -> Scene:
        """A look at the held data, or at the newest batches."""
        if self.held is None:
            estimation, check = self.recent.split()
        else:
            estimation, check = self.recent.batches, self.held
        h = self.shop.estimate.value(estimation)
        before = self.shop.loss(check)
        recent = [move for move in self.history if move.accepted and move.unit in GROUPS and self._rests(move)]
        return Scene(
            estimation,
            check,
            h,
            before,
            self.cost,
            frozenset(name for move in recent if move.grows for name in move.where),
            frozenset(name for move in recent if not move.grows for name in move.where),
        )

    def stakes(self, scene: Scene) -> float:
        """What a rise of the loss is compared with: the loss itself, or a tenth of what the model has learned, where
        that is more. A loss that is next to nothing has no say in how much of it may be lost."""
        if self.uninformed is None:
            self.uninformed = self.shop.uninformed_loss(scene.check)
        if not math.isfinite(self.uninformed):  # of losses that have no such thing
            return scene.before
        return max(scene.before, KNOWLEDGE * (self.uninformed - scene.before))

    def settled(self, scene: Scene) -> bool:
        """Whether training has slowed down since the last look: the loss falls by little of what is at stake."""
        if not self.losses:
            return False
        return self.losses[-1] - scene.before <= SETTLED * max(abs(self.losses[-1]), self.stakes(scene))

    def look(self, loss: float) -> None:
        self.losses = [*self.losses, loss][-2 * SMOOTH :]

    def changed(self, loss: float) -> None:
        """Of a model that has just become another one, whose loss this is: what it was before no longer tells."""
        self.losses = [loss]

    def tried(self, moves: Sequence[Move]) -> None:
        self.history.extend(moves)

    def _rests(self, move: Move) -> bool:
        return (self.steps - move.step) // (self.every or 1) <= self.settings.cooldown
