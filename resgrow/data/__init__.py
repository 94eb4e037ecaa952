"""Data sets in memory: read from the standard layouts that users already have on disk, or made."""

from resgrow.data.dataset import Dataset
from resgrow.data.loading import load
from resgrow.data.series import Series, mackey_glass, waveforms
from resgrow.data.tables import Table, load_table

__all__ = ["Dataset", "Series", "Table", "load", "load_table", "mackey_glass", "waveforms"]
