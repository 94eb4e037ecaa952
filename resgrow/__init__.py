"""resgrow: networks that find their own size."""

from resgrow import nn, ops
from resgrow.controller import Budget, Controller, Move, Trust
from resgrow.curvature import Growth, curvature
from resgrow.depth import StochasticDepth, stochastic_depth
from resgrow.penalties import GateCoefficients, Gates, GroupPenalty
from resgrow.ripple import LayerRipple, Ripple, ripple
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
    "LayerRipple",
    "Masks",
    "Merged",
    "Move",
    "Profile",
    "Ripple",
    "Saliency",
    "StochasticDepth",
    "Swap",
    "Trust",
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
    "ripple",
    "saliency",
    "save",
    "settle_gates",
    "stochastic_depth",
    "swap",
    "swap_activations",
    "unswap",
    "widen",
]
