"""How long a model would take with fewer channels or blocks, from its layers' times measured on this machine."""

from resgrow.surgery.latency.model import ModelLatency

__all__ = ["ModelLatency"]
