"""The demo's outcome, and its one table: measures, layers and stages of every model, before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

import fairkern as fk

TOLERANCE = 1e-5  # float32


@dataclass(frozen=True)
class Outcome:
    """One model's report and the checks on what was cut."""

    report: fk.Report
    masked_accuracy: float  # of the model with the removed units silenced: what the cut alone is worth
    difference: float  # largest |logit| difference, bare cut against masked, relative to the largest logit
    reload_equal: bool

    @property
    def exact(self) -> bool:
        """Cut and masked agree to rounding, and the cut model came back from disk as it was."""
        return self.difference < TOLERANCE and self.reload_equal


def table(outcomes: Mapping[str, Outcome]) -> Table:
    """One row per measure, group of layers and stage; a section per model. Fits 80 columns."""
    columns = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    columns.add_column("", max_width=40, overflow="fold")
    for name in ("before", "after", "change"):
        columns.add_column(name, justify="right", no_wrap=True)
    for outcome in outcomes.values():
        report = outcome.report
        columns.add_row(Text(report.title, style="bold"))
        _measures(columns, report)
        columns.add_row(Text("units in each group", style="italic"))
        for row in report.groups:
            kept = row["units"] - row["removed"]
            columns.add_row(f"  {row['group']}", f"{row['units']:,}", f"{kept:,}", _signed(f"{0.0 - row['rate']:+.1%}"))
        columns.add_row(Text("time", style="italic"))
        for stage, seconds in report.stages.items():
            columns.add_row(f"  {stage}", "", f"{seconds:.2f} s" if seconds >= 0.1 else f"{1000 * seconds:.1f} ms")
        columns.add_section()
    return columns


def _measures(columns: Table, report: fk.Report) -> None:
    before, after = report.before, report.after
    for label, key in (
        ("test accuracy, one shot", "accuracy"),
        ("test accuracy, bare cut", "accuracy_cut"),
        ("test accuracy, fine-tuned", "accuracy_finetuned"),
    ):
        change = _signed(f"{100 * (after[key] - before['accuracy']):+.1f} points")
        columns.add_row(f"  {label}", f"{before['accuracy']:.2%}", f"{after[key]:.2%}", change)
    for label, key, form in (
        ("parameters", "params", "{:,.0f}"),
        ("FLOPs per image", "flops", "{:,.0f}"),
        ("latency of one image, median", "latency_ms", "{:.3f} ms"),
    ):
        change = _signed(f"{after[key] / before[key] - 1:+.1%}")
        columns.add_row(f"  {label}", form.format(before[key]), form.format(after[key]), change)


def _signed(text: str) -> str:
    return text.replace("-", "−")
