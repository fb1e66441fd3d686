"""One picture: quality over kept parameters, a panel a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.quality.rows import Row
from bench.quality.summary import Recipe, Summary, quality

LINES: tuple[tuple[Recipe, str, str], ...] = (
    (("default", "joint"), "fairkern default, joint", "#17202a"),
    (("default", "sequential"), "fairkern default, sequential", "#7b241c"),
    (("default", "least_squares"), "fairkern default, least squares", "#e74c3c"),
    (("FAIR ToD, consumer taps", "sequential"), "FAIR ToD, sequential", "#1f618d"),
    (("FAIR ToD, consumer taps", "least_squares"), "FAIR ToD, least squares", "#5dade2"),
    (("FAIR ToD, paper recipe", "none"), "FAIR paper, bare", "#a569bd"),
    (("random, uniform", "least_squares"), "random, least squares", "#999999"),
    (("torch-pruning, GroupTaylor", "none"), "torch-pruning, Taylor", "#117a65"),
    (("network-pruner", "none"), "network-pruner", "#d4ac0d"),
)
COLUMNS = 4


def write(summary: Summary, path: Path) -> None:
    """A PNG; only lines for which there are rows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(summary.models)
    lines = -(-count // COLUMNS)
    figure = Figure(figsize=(3 * COLUMNS, 2.3 * lines + 0.6), dpi=75, layout="constrained")
    FigureCanvasAgg(figure)
    panels = np.atleast_1d(figure.subplots(lines, COLUMNS, squeeze=False)).ravel()
    handles = {}
    for panel, model in zip(panels, summary.models, strict=False):
        for recipe, label, colour in LINES:
            rows = [r for r in summary.rows if r.model == model and (r.method, r.compensation) == recipe]
            if rows:
                x, y = _means(rows)
                handles[label] = panel.plot(x, y, color=colour, marker=".", markersize=4, linewidth=1.2)[0]
        panel.set_title(model, fontsize=9)
        panel.set_ylim(0, 1.05)
        panel.invert_xaxis()
        panel.tick_params(labelsize=7)
        panel.grid(alpha=0.3)
    for panel in panels[count:]:
        panel.set_axis_off()
    figure.supxlabel("share kept of the parameters that can be cut", fontsize=9)
    figure.supylabel("quality left", fontsize=9)
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def _means(rows: list[Row]) -> tuple[list[float], list[float]]:
    keeps = sorted({row.keep for row in rows}, reverse=True)
    by_keep = [[row for row in rows if row.keep == keep] for keep in keeps]
    x = [float(np.mean([r.kept_of_cuttable for r in found])) for found in by_keep]
    return [1.0, *x], [1.0, *(float(np.mean([quality(r) for r in found])) for found in by_keep)]
