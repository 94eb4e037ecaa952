"""Diagonal curvature of the mean loss, one number per parameter element."""

from resgrow.curvature.engine import curvature

__all__ = ["curvature"]
