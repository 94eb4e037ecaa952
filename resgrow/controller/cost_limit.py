"""Above a limit of cost: the cheapest parts go, as far and as fast as the loss allows or the deadline demands."""

from __future__ import annotations

from resgrow.controller.course import GROUPS, Course
from resgrow.controller.moves import shrink_move
from resgrow.controller.trust import Trust, pace
from resgrow.controller.workshop import Scene

# Tries per move: each halves the step, so the last is an eighth of the first.
TRIES = 4


def shrink(course: Course, trust: Trust, scene: Scene, by: str) -> None:
    """Try removals of falling size, down to the limit of ``by``, until one is kept."""
    shop, cost, target = course.shop, scene.cost[by], course.targets[by]
    left = course.moves_left
    needed = 0.0 if left is None else pace(cost, target, left)
    stakes, last = course.stakes(scene), None
    for _ in range(TRIES):
        fraction = max(needed, min(trust.fraction, 1 - target / cost))
        shrunk = shop.try_shrink(scene, by, min(fraction * cost, cost - target), trust.damping, GROUPS)
        if shrunk is None:
            return
        if last is not None and shrunk.removal.where == last:
            break  # one unit is the least that can go
        last = shrunk.removal.where
        actual = shrunk.after - scene.before
        kept = fraction <= needed or trust.accepts(actual, stakes)
        course.tried([shrink_move(course.steps, scene, shrunk, by, kept, trust, scene.before)])
        if kept:
            shop.keep_shrunk(shrunk)
            trust.kept(shrunk.removal.predicted, actual, stakes)
            return
        trust.refused()
    trust.stuck()
