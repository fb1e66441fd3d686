"""What a run did and what can be cut: tables for a terminal, JSON, a picture, measured latency."""

from fairkern.report.files import load_report, report_content, save_report
from fairkern.report.latency import FEW, device, latencies_ms, latency_ms
from fairkern.report.modules import UNDISTURBED, Layers, layers_ms
from fairkern.report.pictures import draw, save_picture
from fairkern.report.progress_bar import progress
from fairkern.report.rows import group_rows, summary, versions
from fairkern.report.tables import explain_table, render, report_table

__all__ = [
    "FEW",
    "UNDISTURBED",
    "Layers",
    "device",
    "draw",
    "explain_table",
    "group_rows",
    "latencies_ms",
    "latency_ms",
    "layers_ms",
    "load_report",
    "progress",
    "render",
    "report_content",
    "report_table",
    "save_picture",
    "save_report",
    "summary",
    "versions",
]
