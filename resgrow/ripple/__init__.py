"""The ripple: what small changes of each layer's weights do to the loss and to every layer behind it."""

from resgrow.ripple.measure import ripple
from resgrow.ripple.result import LayerRipple, Ripple

__all__ = ["LayerRipple", "Ripple", "ripple"]
