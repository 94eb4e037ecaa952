"""resgrow: networks that find their own size."""

from resgrow import nn, ops
from resgrow.controller import Budget, Controller, Move
from resgrow.curvature import Growth, curvature
from resgrow.depth import StochasticDepth, stochastic_depth
from resgrow.penalties import GateCoefficients, Gates, GroupPenalty
from resgrow.saliency import Saliency, saliency
from resgrow.surgery import (
    Factorised,
    Masks,
    Merged,
    Profile,
    Swap,
    compact,
    deepen,
    factorise,
    fuse,
    growth_gain,
    load,
    merge_linear,
    profile,
    prune,
    save,
    settle_gates,
    swap,
    swap_activations,
    unswap,
    widen,
)

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "Controller",
    "Factorised",
    "GateCoefficients",
    "Gates",
    "GroupPenalty",
    "Growth",
    "Masks",
    "Merged",
    "Move",
    "Profile",
    "Saliency",
    "StochasticDepth",
    "Swap",
    "compact",
    "curvature",
    "deepen",
    "factorise",
    "fuse",
    "growth_gain",
    "load",
    "merge_linear",
    "nn",
    "ops",
    "profile",
    "prune",
    "saliency",
    "save",
    "settle_gates",
    "stochastic_depth",
    "swap",
    "swap_activations",
    "unswap",
    "widen",
]
