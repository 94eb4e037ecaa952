"""Saliency criteria: a model and data in, one score per parameter element out. Nothing here changes a model."""

from resgrow.saliency.criteria import METHODS, saliency
from resgrow.saliency.damping import obd
from resgrow.saliency.result import LOSS, Saliency

__all__ = ["LOSS", "METHODS", "Saliency", "obd", "saliency"]
