"""Parts come where the loss falls enough for it; at a limit of cost, they change places with others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from resgrow.controller.course import GROUPS, Course
from resgrow.controller.moves import grow_move, shrink_move
from resgrow.controller.trust import Trust
from resgrow.controller.workshop import Grown, Scene, Shrunk

# Growth must bring this part of what was predicted.
WORTH = 0.1
# Looks at held data without a try, at most, after tries that have failed; it doubles with each.
LONGEST_REST = 64


# After so many tries in a row that were not worth it, growth that is called for comes without a gain to show for it, as
# long as it does no harm: at a stationary point no direction that the data tell of lowers the loss, and only training
# finds out what new units are good for.
ENOUGH = 3
HARMLESS = 0.01


@dataclass
class Growing:
    """Attributes:
    failures: tries in a row that were not worth it; rest: looks until the next try.
    refused: groups of the last tries; others have their turn first.
    """

    trust: Trust
    failures: int = 0
    rest: int = 0
    refused: list[str] = field(default_factory=list)

    def grow(self, course: Course, scene: Scene, called_for: bool = False) -> None:
        """Try growth, and where it exceeds the budget, what has to go for it.

        Args:
            called_for: the loss is above its limit, and training does not help.
        """
        if self.rest > 0:
            self.rest -= 1
            return
        forced = called_for and self.failures >= ENOUGH
        scene = replace(scene, grow_resting=frozenset(scene.grow_resting) | set(self.refused))
        shop, by = course.shop, course.currency()
        growers = course.growers("random" if forced else None)
        grown = shop.try_grow(scene, growers, by, self.trust.fraction * scene.cost[by], self.trust.damping)
        if grown is None:
            self._wait([])
            return
        fall = scene.before - grown.after
        kept, shrunk = fall >= (-HARMLESS * abs(scene.before) if forced else WORTH * grown.step.fall), None
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
            self._wait(grown.sprout.where)

    def _keep(self, course: Course, grown: Grown, shrunk: Shrunk | None, fall: float) -> None:
        self.failures, self.refused = 0, []
        if shrunk is not None:
            course.shop.keep_shrunk(shrunk, grown)
        course.shop.keep(grown)
        course.changed(grown.after if shrunk is None else shrunk.after)
        self.trust.grew(grown.step.fall, fall)

    def _wait(self, refused: Iterable[str]) -> None:
        """Nothing was worth it: trying is dear, and what is there has to change first."""
        self.failures += 1
        self.refused = [*self.refused, *refused] if refused else []
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
