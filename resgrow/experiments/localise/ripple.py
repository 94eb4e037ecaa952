"""Does a layer's ripple tell where capacity is missing? The naive rule, others, and rho+, against trying them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from resgrow.experiments.frame.chapters import of_chapters
from resgrow.experiments.frame.runs import Result
from resgrow.experiments.localise import grow, shrink
from resgrow.experiments.localise.networks import HIDDEN
from resgrow.experiments.localise.verdicts import hits, wilson

NAIVE = "ripple, measured"
# With fewer networks the interval of a share is wider than what is asked.
ENOUGH = 20


def answer(results: Mapping[str, Sequence[Result]]) -> str:
    return f"{_growth(results.get('grow', ()))} {_shrinking(results.get('shrink', ()))}"


def _growth(runs: Sequence[Result]) -> str:
    if len(runs) < ENOUGH:
        return f"Not known yet where to grow, as {len(runs)} networks are too few to tell."
    naive, best = (hits(grow.cases(runs, rule)) for rule in (NAIVE, grow.BEST))
    low, high = wilson(naive, len(runs))
    chance = 1 / len(HIDDEN)
    word = "Yes" if low > chance else "No"
    against = "more" if low > chance else "less" if high < chance else "no more"
    return (
        f"{word}: the largest ripple names the layer that is best widened in {_percent(naive)} of {len(runs)} networks "
        f"({100 * low:.0f} to {_percent(high)}), {against} than chance ({_percent(chance)}), and rho+ does so in "
        f"{_percent(best)}."
    )


def _shrinking(runs: Sequence[Result]) -> str:
    if len(runs) < ENOUGH:
        return f"Nor is it known which to shrink, of {len(runs)} networks."
    ripple, best = (hits(shrink.cases(runs, rule)) for rule in (NAIVE, shrink.BEST))
    return (
        f"The layer that shrinks for the least loss is named by the least ripple in {_percent(ripple)}, and by the OBD "
        f"saliencies of the units that would go in {_percent(best)}."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


EXPERIMENT = of_chapters(
    {"grow": grow.EXPERIMENT, "shrink": shrink.EXPERIMENT},
    title="Ripple",
    question="Does a layer's ripple tell where capacity is missing, or which layer can shrink?",
    control="Every layer is changed and trained on, which tells the right one; chance, always the same layer, and "
    "rules that look at sizes alone stand beside the ripple and rho+.",
    answer=answer,
)
