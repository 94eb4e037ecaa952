"""Parts come where the loss falls enough for it; at a limit of cost, they change places with others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from resgrow.controller.course import GROUPS, Course
from resgrow.controller.grow import Grower
from resgrow.controller.moves import grow_move, shrink_move
from resgrow.controller.trust import Trust
from resgrow.controller.workshop import Grown, Scene, Shrunk

# Growth must bring this part of what was predicted.
WORTH = 0.1
# Looks at held data without a try, at most, after tries that have failed; it doubles with each.
LONGEST_REST = 64


@dataclass
class Growth:
    """Attributes:
    failures: tries in a row that were not worth it; rest: looks until the next try.
    """

    trust: Trust
    failures: int = 0
    rest: int = 0

    def grow(self, course: Course, scene: Scene, growers: Sequence[Grower]) -> None:
        """Try growth, and where it exceeds the budget, what has to go for it."""
        if self.rest > 0:
            self.rest -= 1
            return
        shop, by = course.shop, course.currency()
        grown = shop.try_grow(scene, growers, by, self.trust.fraction * scene.cost[by], self.trust.damping)
        if grown is None:
            self._wait()
            return
        fall = scene.before - grown.after
        kept, shrunk = fall >= WORTH * grown.step.fall, None
        if kept and course.exceeded(grown.cost) is not None:
            shrunk = self._payment(course, scene, grown)
            kept = shrunk is not None and _worth(course, scene, grown, shrunk)
        course.tried([grow_move(course.steps, scene, grown, by, kept, self.trust)])
        if shrunk is not None:
            course.tried([shrink_move(course.steps, scene, shrunk, by, kept, self.trust, grown.after)])
        if kept:
            self._keep(course, grown, shrunk, fall)
        else:
            shop.undo(grown)
            self.trust.refused()
            self._wait()

    def _keep(self, course: Course, grown: Grown, shrunk: Shrunk | None, fall: float) -> None:
        self.failures = 0
        if shrunk is not None:
            course.shop.keep_shrunk(shrunk, grown)
        course.shop.keep(grown)
        course.changed(grown.after if shrunk is None else shrunk.after)
        self.trust.grew(grown.step.fall, fall)

    def _wait(self) -> None:
        """Nothing was worth it: trying is dear, and what is there has to change first."""
        self.failures += 1
        self.rest = min(2**self.failures, LONGEST_REST)

    def _payment(self, course: Course, scene: Scene, grown: Grown) -> Shrunk | None:
        """What goes for growth that is there, so that the budget holds."""
        by = course.exceeded(grown.cost)
        assert by is not None
        new = grown.sprout.where.keys() if grown.sprout.unit in GROUPS else set()
        resting = frozenset(scene.shrink_resting) | new
        now = replace(scene, h=grown.h, cost=grown.cost, shrink_resting=resting, confirmed={})
        return course.shop.try_shrink(now, by, grown.cost[by] - course.targets[by], self.trust.damping)


def _worth(course: Course, scene: Scene, grown: Grown, shrunk: Shrunk) -> bool:
    """Whether what comes is worth more than what goes for it, as predicted and as measured."""
    if course.exceeded(shrunk.cost) is not None or shrunk.after >= scene.before:
        return False
    return grown.step.fall > course.settings.hysteresis * shrunk.removal.predicted
