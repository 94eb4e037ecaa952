"""resgrow: networks that find their own size."""

from resgrow import nn, ops
from resgrow.controller import Budget, Controller, Move
from resgrow.curvature import curvature
from resgrow.penalties import GateCoefficients, Gates, GroupPenalty
from resgrow.saliency import Saliency, saliency
from resgrow.surgery import (
    Factorised,
    Masks,
    Merged,
    Swap,
    compact,
    deepen,
    factorise,
    fuse,
    load,
    merge_linear,
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
    "Masks",
    "Merged",
    "Move",
    "Saliency",
    "Swap",
    "compact",
    "curvature",
    "deepen",
    "factorise",
    "fuse",
    "load",
    "merge_linear",
    "nn",
    "ops",
    "prune",
    "saliency",
    "save",
    "settle_gates",
    "swap",
    "swap_activations",
    "unswap",
    "widen",
]
