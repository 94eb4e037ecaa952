"""How well predictions order and scale what was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from scipy.stats import pearsonr, spearmanr

Pairs = Sequence[Sequence[float]]


def rank(pairs: Pairs) -> float:
    """Spearman's correlation of predicted and measured, ties averaged; nan where all of one are equal."""
    predicted, measured = zip(*pairs, strict=True)
    if len(set(predicted)) < 2 or len(set(measured)) < 2:
        return math.nan
    return float(spearmanr(predicted, measured).statistic)


def log_pearson(pairs: Pairs) -> float:
    """Pearson's correlation of the logarithms, where both are positive; nan for fewer than three of these."""
    both = _positive(pairs)
    if len(both) < 3:
        return math.nan
    x, y = ([math.log(value) for value in values] for values in zip(*both, strict=True))
    return float(pearsonr(x, y).statistic) if len(set(x)) > 1 and len(set(y)) > 1 else math.nan


def ratio(pairs: Pairs) -> float:
    """The median of measured over predicted, where both are positive; nan where none are."""
    both = _positive(pairs)
    return median(measured / predicted for predicted, measured in both) if both else math.nan


def _positive(pairs: Pairs) -> list[tuple[float, float]]:
    return [(predicted, measured) for predicted, measured in pairs if predicted > 0 and measured > 0]
