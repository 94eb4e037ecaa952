"""Results for people: the table, the self-contained HTML report, drawings."""

from resgrow.report.progress import progress_png
from resgrow.report.render import render, render_progress
from resgrow.report.ripples import draw_ripple
from resgrow.report.rows import result_rows
from resgrow.report.widths import draw_widths

__all__ = ["draw_ripple", "draw_widths", "progress_png", "render", "render_progress", "result_rows"]
