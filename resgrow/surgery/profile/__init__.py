"""What a model costs, layer by layer: parameters, multiply-accumulates, memory, time."""

from resgrow.surgery.profile.comparison import Comparison
from resgrow.surgery.profile.model import profile
from resgrow.surgery.profile.result import LayerProfile, Profile

__all__ = ["Comparison", "LayerProfile", "Profile", "profile"]
