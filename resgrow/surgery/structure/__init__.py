"""Coupled dimensions of any model that ``torch.export`` can follow: what goes, or comes, together."""

from resgrow.surgery.structure.dead import unread
from resgrow.surgery.structure.edit import Edit
from resgrow.surgery.structure.groups import Group, Place, Structure, structure
from resgrow.surgery.structure.remove import mask, remove

__all__ = ["Edit", "Group", "Place", "Structure", "mask", "remove", "structure", "unread"]
