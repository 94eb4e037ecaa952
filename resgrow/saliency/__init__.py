"""Saliency criteria: a model and data in, one score per parameter element out. Nothing here changes a model."""

from resgrow.saliency.criteria import Saliency, saliency
from resgrow.saliency.damping import mean_curvature, obd

__all__ = ["Saliency", "mean_curvature", "obd", "saliency"]
