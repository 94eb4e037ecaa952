"""Diagonal curvature of the mean loss, one number per parameter element; and what absent units would bring."""

from resgrow.curvature.engine import curvature
from resgrow.curvature.growth import Growth
from resgrow.curvature.result import Curvature

__all__ = ["Curvature", "Growth", "curvature"]
