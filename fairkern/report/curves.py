"""What several methods leave of a model at several budgets: a table and a picture of rows (`types.Report.curve`)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from fairkern.errors import InputError
from fairkern.report.pictures import INK, new_figure, save_figure, style
from fairkern.report.tables import titled
from fairkern.report.wording import LABELS, is_share, measure
from fairkern.types import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]
_COLOURS = ("#1f77b4", "#d1495b", "#2a9d8f", "#e09f3e", "#6d597a", "#8c564b", "#118ab2", "#ef476f", "#3a5a40")
_MARKERS = "osD^vPX<>"
_ABREAST = 6  # budgets of a table, so that it is no wider than others
_COSTS = {  # what a budget asks for: which measure, and how a reader calls it
    "keep_params": ("params", "parameters"),
    "keep_flops": ("flops", "FLOPs"),
    "keep_latency": ("latency_ms", "latency"),
    "tod": ("params", "parameters"),
}


def curve_table(rows: Rows, before: Mapping[str, float], measures: Sequence[str], title: str) -> RenderableType:
    """A table for each measure: a row per method, a column per budget; of several seeds mean ± standard deviation."""
    methods, budgets = _each(rows, "method"), sorted({row["budget"] for row in rows}, reverse=True)
    seeds = len(_each(rows, "seed"))
    by = rows[0]["by"] if rows else ""
    parts: list[RenderableType] = []
    for name in measures:
        of = f", mean ± deviation of {seeds} seeds" if seeds > 1 else ""
        heading = f"{LABELS.get(name, name)} by {by}{of}; whole model: {measure(name, before.get(name))}"
        for first in range(0, len(budgets), _ABREAST):
            made = titled(f"{title}\n{heading}")
            made.add_column("method", overflow="fold")
            for budget in budgets[first : first + _ABREAST]:
                made.add_column(f"{budget:g}", justify="right", no_wrap=True)
            for method in methods:
                row = (_values(rows, name, method=method, budget=b) for b in budgets[first : first + _ABREAST])
                made.add_row(Text(method), *(_cell(name, values) for values in row))
            parts.append(made)
    return Group(*parts)


def save_curves(
    rows: Rows, before: Mapping[str, float], measures: Sequence[str], title: str, path: str | os.PathLike[str]
) -> None:
    """`draw_curves` as a file, written atomically. Raises InputError (no matplotlib, an ending), OSError."""
    save_figure(draw_curves(rows, before, measures, title), path)


def draw_curves(rows: Rows, before: Mapping[str, float], measures: Sequence[str], title: str) -> Figure:
    """Each measure over what is left of what the budgets asked for, a line per method, that of the whole model dashed.

    Of several seeds the line is their mean, within the range of all. The legend stands beside the axes.
    Raises InputError where there is nothing to draw, or no matplotlib.
    """
    if not rows or not measures:
        raise InputError("there are no rows with a measure to draw")
    figure: Figure = new_figure((4.6 * len(measures) + 2.4, 4.4))
    axes = figure.subplots(1, len(measures), squeeze=False)[0]
    for place, name in zip(axes, measures, strict=True):
        _draw(place, rows, before, name)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9, labelcolor=INK)
    figure.suptitle(title, fontsize=12, color=INK, x=0.012, ha="left", fontweight="bold")
    return figure


def _draw(axes: Axes, rows: Rows, before: Mapping[str, float], name: str) -> None:
    cost, called = _COSTS[rows[0]["by"]]
    for k, method in enumerate(_each(rows, "method")):
        found = []
        for budget in sorted({row["budget"] for row in rows}):
            x, y = (_values(rows, which, method=method, budget=budget) for which in (cost, name))
            if len(x):
                found.append((100 * x.mean() / before[cost], y.mean(), y.min(), y.max()))
        left, middle, low, high = np.array(sorted(found)).T
        colour, marker = _COLOURS[k % len(_COLOURS)], _MARKERS[k % len(_MARKERS)]
        axes.plot(left, middle, color=colour, marker=marker, markersize=4.5, linewidth=1.4, label=method, zorder=3)
        if (low < high).any():
            axes.fill_between(left, low, high, color=colour, alpha=0.18, linewidth=0, zorder=2)
    axes.axhline(before[name], color="#777777", linewidth=1.0, linestyle=(0, (5, 3)), label="whole model", zorder=1)
    axes.set_xlabel(f"{called} kept, %")
    axes.set_ylabel(LABELS.get(name, name))
    axes.margins(0.06)
    style(axes, LABELS.get(name, name))


def _each(rows: Rows, key: str) -> list[Any]:
    return list(dict.fromkeys(row[key] for row in rows))


def _values(rows: Rows, name: str, **where: Any) -> FloatArray:
    chosen = [row for row in rows if all(row[key] == value for key, value in where.items())]
    return np.array([row[name] for row in chosen if name in row], dtype=np.float64)


def _cell(name: str, values: FloatArray) -> str:
    if not len(values):
        return "–"
    if len(values) == 1:
        return measure(name, float(values[0]))
    mean, deviation = float(values.mean()), float(values.std(ddof=1))
    if is_share(name, mean):
        return f"{100 * mean:.2f} ± {100 * deviation:.2f} %"
    return f"{measure(name, mean)} ± {deviation:.2g}"
