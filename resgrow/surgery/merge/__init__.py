"""Linear layers in a row become one."""

from resgrow.surgery.merge.model import Merged, MergeRow, merge_linear

__all__ = ["MergeRow", "Merged", "merge_linear"]
