"""Growth: what a layer's absent units could do for the loss, and the best of them."""

from resgrow.curvature.growth.moments import Moments, moments
from resgrow.curvature.growth.result import Growth, growth, random_growth
from resgrow.curvature.growth.site import Reader, Site, Step
from resgrow.curvature.growth.watch import rereadable, weight_gradients

__all__ = [
    "Growth",
    "Moments",
    "Reader",
    "Site",
    "Step",
    "growth",
    "moments",
    "random_growth",
    "rereadable",
    "weight_gradients",
]
