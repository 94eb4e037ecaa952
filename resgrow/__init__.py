"""resgrow: networks that find their own size."""

from resgrow import nn, ops
from resgrow.controller import Budget, Controller, Move
from resgrow.curvature import curvature
from resgrow.saliency import Saliency, saliency
from resgrow.surgery import Masks, Swap, compact, fuse, load, prune, save, swap, unswap

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "Controller",
    "Masks",
    "Move",
    "Saliency",
    "Swap",
    "compact",
    "curvature",
    "fuse",
    "load",
    "nn",
    "ops",
    "prune",
    "saliency",
    "save",
    "swap",
    "unswap",
]
