"""What a run did and what can be cut: tables for a terminal, JSON, a page, a picture, measured latency."""

from fairkern.report.curves import curve_table, draw_curves, save_curves
from fairkern.report.files import load_report, report_content, save_report
from fairkern.report.frames import as_columns, frame, plan_columns, save_csv, unit_columns
from fairkern.report.html import save_html
from fairkern.report.latency import FEW, compared, device, latencies_ms, latency_ms, one_after_the_other, timed
from fairkern.report.machine import environment
from fairkern.report.modules import UNDISTURBED, Layers, layers_ms
from fairkern.report.pictures import draw, save_picture
from fairkern.report.progress_bar import Shown, progress, shown
from fairkern.report.rows import group_rows, summary, versions
from fairkern.report.tables import explain_table, render, report_table

__all__ = [
    "FEW",
    "UNDISTURBED",
    "Layers",
    "Shown",
    "as_columns",
    "compared",
    "curve_table",
    "device",
    "draw",
    "draw_curves",
    "environment",
    "explain_table",
    "frame",
    "group_rows",
    "latencies_ms",
    "latency_ms",
    "layers_ms",
    "load_report",
    "one_after_the_other",
    "plan_columns",
    "progress",
    "render",
    "report_content",
    "report_table",
    "save_csv",
    "save_curves",
    "save_html",
    "save_picture",
    "save_report",
    "shown",
    "summary",
    "timed",
    "unit_columns",
    "versions",
]
