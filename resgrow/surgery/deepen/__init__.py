"""More layers and blocks for a live model."""

from resgrow.surgery.deepen.model import deepen

__all__ = ["deepen"]
