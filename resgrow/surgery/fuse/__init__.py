"""Copies of a model for inference in which neighbouring steps are one."""

from resgrow.surgery.fuse.model import fuse

__all__ = ["fuse"]
