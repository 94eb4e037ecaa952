"""Diagonal curvature of the mean loss, one number per parameter element."""

from resgrow.curvature.engine import curvature
from resgrow.curvature.result import Curvature

__all__ = ["Curvature", "curvature"]
