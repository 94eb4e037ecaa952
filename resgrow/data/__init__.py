"""Data sets in memory, read from the standard layouts that users already have on disk."""

from resgrow.data.dataset import Dataset
from resgrow.data.loading import load

__all__ = ["Dataset", "load"]
