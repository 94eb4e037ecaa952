"""Coupled dimensions of any model that ``torch.export`` can follow: what goes, or comes, together."""

from resgrow.surgery.structure.bypass import bypasses
from resgrow.surgery.structure.constants import constant_inputs
from resgrow.surgery.structure.dead import absorb, dead
from resgrow.surgery.structure.edit import Edit
from resgrow.surgery.structure.groups import Group, Place, Structure, structure, structure_of
from resgrow.surgery.structure.remove import mask, remove
from resgrow.surgery.structure.residuals import ResidualBranch, residuals
from resgrow.surgery.structure.trace import traced

__all__ = [
    "Edit",
    "Group",
    "Place",
    "ResidualBranch",
    "Structure",
    "absorb",
    "bypasses",
    "constant_inputs",
    "dead",
    "mask",
    "remove",
    "residuals",
    "structure",
    "structure_of",
    "traced",
]
