"""What a run did and what can be cut: tables for a terminal, JSON, a page, a picture, measured latency."""

from fairkern.report.files import load_report, save_report
from fairkern.report.html import save_html
from fairkern.report.latency import FEW, compared, device, latencies_ms, latency_ms, one_after_the_other, timed
from fairkern.report.machine import environment
from fairkern.report.modules import UNDISTURBED, Layers, layers_ms
from fairkern.report.pictures import draw, save_picture
from fairkern.report.progress_bar import OnBatch, Shown, progress, shown
from fairkern.report.rows import group_rows, summary, versions
from fairkern.report.tables import explain_table, render, report_table

__all__ = [
    "FEW",
    "UNDISTURBED",
    "Layers",
    "OnBatch",
    "Shown",
    "compared",
    "device",
    "draw",
    "environment",
    "explain_table",
    "group_rows",
    "latencies_ms",
    "latency_ms",
    "layers_ms",
    "load_report",
    "one_after_the_other",
    "progress",
    "render",
    "report_table",
    "save_html",
    "save_picture",
    "save_report",
    "shown",
    "summary",
    "timed",
    "versions",
]
