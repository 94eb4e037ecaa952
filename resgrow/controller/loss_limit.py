"""A limit of the loss: larger where the loss is above it and training does not help, smaller as long as it holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from resgrow.controller.course import Course
from resgrow.controller.growing import LONGEST_REST, Growing
from resgrow.controller.history import restored
from resgrow.controller.moves import shrink_move
from resgrow.controller.probation import LONGEST, Probation
from resgrow.controller.progress import level, stalled
from resgrow.controller.settings import KINDS
from resgrow.controller.trust import Trust
from resgrow.controller.workshop import Scene, Shrunk

# Below its limit, the loss must have this part of it to spare before anything goes.
MARGIN = 0.05
# Sizes that are tried for one removal: each is half of the one before.
TRIES = 5


@dataclass
class LossLimit:
    """Attributes:
    limit: of the mean loss on held data; None until it has been measured first.
    probation: of what was removed last, while it may yet come back.
    failed: groups of which a single unit was too much; failures: how often all were; rest: looks until the next try.
    hope: multiple of the limit from which training is thought to bring the loss back.
    recoveries: looks that the last removals took that training has made good.
    """

    limit: float | None = None
    probation: Probation | None = None
    failed: list[str] = field(default_factory=list)
    failures: int = 0
    rest: int = 0
    hope: float = 10.0
    recoveries: list[int] = field(default_factory=list)

    def holds(self, losses: Sequence[float]) -> bool:
        """Whether the loss as it was measured last is within its limit."""
        limit = math.inf if self.limit is None else self.limit
        return bool(losses) and losses[-1] <= limit

    def towards(self, course: Course, trust: Trust, growth: Growing, scene: Scene, settled: bool) -> None:
        """One move, if one is called for.

        Args:
            settled: whether removals may begin, or go on.
        """
        assert self.limit is not None
        if len(course.losses) < 2:
            return
        now = level(course.losses)
        if now > self.limit:
            if course.settings.grow and stalled(course.losses, self.limit):
                growth.grow(course, scene, called_for=True)
        elif self.rest > 0:
            self.rest -= 1
        elif now <= (1 - MARGIN) * self.limit and settled:
            self._shrink(course, trust, scene)

    def judge(self, course: Course, trust: Trust, scene: Scene) -> None:
        """Whether what is on probation stays removed, comes back, or has to be looked at again."""
        assert self.probation is not None
        verdict = self.probation.verdict(course.losses)
        if verdict is None:
            return
        probation, self.probation = self.probation, None
        removal = next(move for move in reversed(course.history) if move.kind == "shrink")
        asked = removal.loss_after / probation.limit
        if verdict:
            self.recoveries = [*self.recoveries, probation.looks][-5:]
            self.hope = max(self.hope, 1.5 * asked)
            self._passed(trust)
            return
        if removal.count == 1:
            self.failed += removal.where
        self.hope = max(1.0, min(self.hope, asked / 2))
        course.shop.put_back(probation.snapshot)
        course.changed(course.shop.loss(scene.check))
        trust.refused()
        course.tried([restored(removal, course.steps, scene.before, course.losses[0], course.cost)])

    def _shrink(self, course: Course, trust: Trust, scene: Scene) -> None:
        """Remove what is cheapest; training decides whether it stays removed."""
        assert self.limit is not None
        by = course.currency()
        scene = replace(scene, shrink_resting=frozenset(scene.shrink_resting) | set(self.failed))
        shrunk = self._bearable(course, trust, scene, by)
        if shrunk is None:
            if self.failed:  # each group has been tried: all of them again, after a while that doubles every time
                self.failed, self.failures = [], self.failures + 1
                self.rest = min(2**self.failures, LONGEST_REST)
            return
        if shrunk.after > self.limit:
            self.probation = Probation(course.shop.snapshot(), self.limit, self._patience())
        course.tried([shrink_move(course.steps, scene, shrunk, by, True, trust, scene.before)])
        course.shop.keep_shrunk(shrunk)
        course.changed(shrunk.after)
        if self.probation is None:
            self._passed(trust)

    def _bearable(self, course: Course, trust: Trust, scene: Scene, by: str) -> Shrunk | None:
        """The largest removal of which training may be thought to recover, or the smallest one that was tried."""
        assert self.limit is not None
        best: Shrunk | None = None
        for _ in range(TRIES):
            shrunk = course.shop.try_shrink(scene, by, trust.fraction * scene.cost[by], trust.damping, KINDS)
            if shrunk is None or (best is not None and shrunk.removal.where == best.removal.where):
                break
            best = shrunk
            if best.after <= self.hope * self.limit:
                break
            trust.halve()
        return best

    def _patience(self) -> int:
        """Looks that a removal gets: twice what others have taken."""
        if not self.recoveries:
            return LONGEST
        return min(LONGEST, max(6, 2 * max(self.recoveries) + 2))

    def _passed(self, trust: Trust) -> None:
        self.failed, self.failures = [], 0
        trust.passed()
