"""Results for people: the table and the self-contained HTML report."""

from resgrow.report.render import render
from resgrow.report.rows import result_rows

__all__ = ["render", "result_rows"]
