"""Results for people: the table, the self-contained HTML report, drawings."""

from resgrow.report.render import render
from resgrow.report.ripples import draw_ripple
from resgrow.report.rows import result_rows
from resgrow.report.widths import draw_widths

__all__ = ["draw_ripple", "draw_widths", "render", "result_rows"]
