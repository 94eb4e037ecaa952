"""What makes a network smaller while it learns: penalties beside the loss."""

from resgrow.penalties.gates import GateCoefficients, Gates
from resgrow.penalties.groups import GroupPenalty

__all__ = ["GateCoefficients", "Gates", "GroupPenalty"]
