"""How often a rule names the right layer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from statistics import fmean

import numpy as np
from scipy.stats import spearmanr

# Of a mean loss of one thousand images in float32.
_ROUNDING = 1e-6

Case = tuple[Sequence[float], Sequence[float]]  # what a rule says of each layer, and what is true of it


def hit(rule: Sequence[float], truth: Sequence[float]) -> float:
    """Whether the largest of ``rule`` is the largest of ``truth``; where ``rule`` has equals, their chance of it.

    Several layers are the best where they differ by rounding alone, as where the units that go are dead.
    """
    named = [i for i, value in enumerate(rule) if value == max(rule)]
    return fmean(truth[i] >= max(truth) - _ROUNDING for i in named)


def guessed(cases: Sequence[Case]) -> list[Case]:
    """What a rule would say that knows nothing."""
    return [([0.0] * len(truth), truth) for _, truth in cases]


def always(layer: int, cases: Sequence[Case]) -> list[Case]:
    """What a rule would say that names the same layer in every network."""
    return [([float(i == layer) for i in range(len(truth))], truth) for _, truth in cases]


def by_best(cases: Sequence[Case]) -> str:
    """Right answers for the networks whose best layer is the first, the second, ... one: "60 of 70, 3 of 7"."""
    best = [int(np.argmax(truth)) for _, truth in cases]
    groups = [[case for case, at in zip(cases, best, strict=True) if at == layer] for layer in range(len(cases[0][1]))]
    return ", ".join(f"{sum(hit(*case) for case in group):.3g} of {len(group)}" for group in groups)


def hits(cases: Sequence[Case]) -> float:
    """The share of right answers."""
    return fmean(hit(*case) for case in cases)


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Interval of a probability of which ``share`` was seen in ``count`` tries; 95 % by default.

    Wilson, "Probable inference, the law of succession, and statistical inference" (1927).
    """
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def rank_correlation(cases: Sequence[Case]) -> float:
    """Spearman's within a network, its mean over networks. A rule that says the same of all layers of one counts 0."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constant input is what nan_to_num is for
        return fmean(float(np.nan_to_num(spearmanr(*case).statistic)) for case in cases)


def row(cases: Sequence[Case]) -> tuple[str, str, str]:
    """Right answers, their interval, rank correlation."""
    share = hits(cases)
    low, high = wilson(share, len(cases))
    return f"{100 * share:.0f}", f"{100 * low:.0f} to {100 * high:.0f}", f"{rank_correlation(cases):.2f}"
