"""One picture of a plan: how much goes from each group, the curves of what decided, and which units go."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fairkern.artefacts import replacing
from fairkern.errors import InputError
from fairkern.report.deciding import SYMBOLS, Decided, by_median, decided, signal_name, signal_of, tolerances
from fairkern.report.wording import numbered
from fairkern.types import FloatArray, Plan, PlanGroup, Scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, _FAINT, _KEPT, _REMOVED = "#222222", "#dddddd", "#8aa4bd", "#d1495b"
_FORMATS = ("png", "svg", "pdf")
_MOST_LABELS = 100
_FLOOR = 1e-3  # of the group's median: where the log axes of the scatter end


def draw(scores: Scores, plan: Plan) -> Figure:
    """The rates of all groups, curves of what decided with the threshold and the chosen counts (of plain scores ToD),
    and the signal that orders units against the one that is protected (U against R), with the removed units.

    `plan` was made from `scores`. A figure of its own: matplotlib's backend and pyplot are not touched.
    Raises InputError when matplotlib is missing, or when the scores do not belong to the plan.
    """
    _, colormap, normalise, mappable = _matplotlib()
    removal, protect = (signal_of(scores, plan, signal_name(plan, role), role) for role in ("removal", "protect"))
    found = decided(scores, plan)
    if found is None or not any(len(curve) for curve in found.curves):  # of what decided there is nothing to see
        found = tolerances(scores, plan)
    rows = len(plan.groups)
    height = float(np.clip(0.24 * rows + 1.8, 6.8, 14.0))
    figure = new_figure((13.0, height))
    grid = figure.add_gridspec(2, 2, width_ratios=(1.0, 1.45))
    left, upper, lower = (figure.add_subplot(grid[place]) for place in (np.s_[:, 0], np.s_[0, 1], np.s_[1, 1]))
    shade = colormap("viridis")
    colours = [shade(0.92 * i / max(1, rows - 1)) for i in range(rows)]
    _rates(left, plan.groups, numbered(scores.units.classes))
    _curves(upper, plan, found, colours)
    if rows > 1:
        bar = figure.colorbar(mappable(norm=normalise(0, 1 / 0.92), cmap=shade), ax=upper, pad=0.015, aspect=30)
        bar.ax.set_ylim(0, 1)
        bar.set_ticks([0, 1], labels=["first", "last"])
        bar.set_label("group", labelpad=-14, color=INK, fontsize=9)
        bar.ax.tick_params(length=0, labelsize=9, labelcolor=INK)
        bar.outline.set_visible(False)
    _scatter(lower, plan, removal, protect)
    figure.suptitle(_title(plan), fontsize=12, color=INK, x=0.012, ha="left", fontweight="bold")
    return figure


def save_picture(scores: Scores, plan: Plan, path: str | os.PathLike[str]) -> None:
    """`draw` as a file, written atomically; the ending of `path` chooses the format (png, svg, pdf).

    Raises InputError (matplotlib is missing, an ending that it cannot write), OSError.
    """
    save_figure(draw(scores, plan), path)


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """In the format that the ending of `path` says (png, svg, pdf), written atomically. Raises as `save_picture`."""
    kind = os.path.splitext(path)[1].lstrip(".").lower() or "png"
    if kind not in _FORMATS:
        raise InputError(f"{path} ends in .{kind}; expected one of {', '.join(_FORMATS)}")
    with replacing(path) as temporary:
        figure.savefig(temporary, format=kind)


def new_figure(size: tuple[float, float]) -> Any:
    """A figure of its own, of so many inches. Raises InputError where matplotlib is missing."""
    figure = _matplotlib()[0](figsize=size, dpi=130, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.06)
    return figure


def _matplotlib() -> Any:
    try:
        from matplotlib import colormaps
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            f"a picture needs matplotlib, which cannot be imported ({error}): pip install 'fairkern[demo]'"
        ) from error
    return Figure, colormaps.get_cmap, Normalize, ScalarMappable


def _symbols(plan: Plan) -> tuple[str, str]:
    """What the signals of removal and protection are called; a word where the paper has no letter for it."""
    names = (signal_name(plan, role) for role in ("removal", "protect"))
    removal, protect = (SYMBOLS.get(name, name) for name in names)
    return removal, protect


def _title(plan: Plan) -> str:
    targets = ("tod", "keep_params", "keep_flops", "keep_latency")
    target = next((f"{key}={plan.request[key]:g}" for key in targets if key in plan.request), "")
    shares = []
    for key, label in (("params", "parameters"), ("flops", "FLOPs")):
        before, after = plan.result.get(f"{key}_before"), plan.result.get(f"{key}_after")
        if before and after is not None:
            shares.append(f"{100 * after / before:.1f} % of {label}")
    kept = f"keeps {' and '.join(shares)}" if shares else ""
    return "  ·  ".join(part for part in (plan.model, target, kept) if part)


def _rates(axes: Axes, groups: Sequence[PlanGroup], classes: Mapping[str, str]) -> None:
    rates = [100 * group.rate for group in groups]
    places = np.arange(len(groups))
    axes.barh(places, 100, height=0.72, color="#f1f3f5")
    axes.barh(places, rates, height=0.72, color=_REMOVED)
    step = -(-len(groups) // _MOST_LABELS)
    size = 8.5 if len(groups) <= 40 else 7.0 if len(groups) <= 70 else 5.8
    short = _shortened([group.name for group in groups])
    names = [f"{name} {classes[g.name]}" if g.name in classes else name for name, g in zip(short, groups, strict=True)]
    axes.set_yticks(places[::step], labels=names[::step], fontsize=size)
    if step == 1:
        for place, group in enumerate(groups):
            label = f"{group.removed.size} of {group.total}"
            axes.text(
                101,  # beside the bars, which it would be half on
                place,
                label,
                va="center",
                ha="left",
                fontsize=size - 1,
                color=INK,
            )
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.set_xlabel("units removed, %")
    style(axes, "What goes from each group", grid="none")
    axes.tick_params(axis="y", length=0)


def _curves(axes: Axes, plan: Plan, found: Decided, colours: Sequence[Any]) -> None:
    many = len(plan.groups) > 30
    for group, curve, colour in zip(plan.groups, found.curves, colours, strict=True):
        if not len(curve):
            continue
        share = 100 * np.arange(1, group.units + 1) / group.units
        axes.plot(share, curve, color=colour, linewidth=0.7 if many else 1.3, alpha=0.6 if many else 0.9)
        count = group.removed.shape[-1]
        if count:
            axes.plot(
                share[count - 1],
                curve[count - 1],
                "o",
                color=colour,
                markersize=4 if many else 6.5,
                markeredgecolor="white",
                markeredgewidth=0.8,
                zorder=3,
            )
    dashes = ""
    if found.threshold is not None:
        axes.axhline(found.threshold, color=_REMOVED, linewidth=1.0, linestyle=(0, (5, 3)), zorder=2)
        dashes = f"; dashes: {'tolerance' if found.tolerance else 'threshold'} {found.threshold:.3g}"
    axes.set_xlim(0, 100)
    if found.tolerance:
        axes.set_ylim(-0.02, 1.02)
    else:
        _logarithmic(axes, "y", np.concatenate([curve[curve > 0] for curve in found.curves]))
    axes.set_xlabel("units removed, %")
    axes.set_ylabel("ToD (share)" if found.tolerance else found.unit)
    axes.tick_params(axis="y", labelsize=9)
    style(axes, f"{found.what[0].upper()}{found.what[1:]}\ndots: what goes{dashes}")


def _scatter(axes: Axes, plan: Plan, removal: Sequence[FloatArray], protect: Sequence[FloatArray]) -> None:
    shown = [(g, u, r) for g, u, r in zip(plan.groups, removal, protect, strict=True) if len(u) and len(r)]
    sets = [(g, row) for g, _, _ in shown for row in g.removed.reshape(g.sets, -1)]
    gone = np.concatenate([np.isin(np.arange(g.units), row) for g, row in sets]) if sets else np.zeros(0, bool)
    both = ([u for _, u, _ in shown], [r for _, _, r in shown])
    x, y = (np.concatenate([by_median(v, _FLOOR) for v in values] or [np.zeros(0)]) for values in both)
    size = float(np.clip(9000 / max(1, len(x)), 3.0, 18.0))
    for which, colour, label, alpha in ((~gone, _KEPT, "stays", 0.6), (gone, _REMOVED, "removed", 0.75)):
        text = f"{label} ({int(which.sum()):,})"
        axes.scatter(
            x[which],
            y[which],
            s=size,
            color=colour,
            alpha=alpha,
            linewidths=0,
            label=text,
            rasterized=len(x) > 2000,
        )
    _logarithmic(axes, "x", x)
    _logarithmic(axes, "y", y)
    axes.tick_params(axis="y", labelsize=9)
    first, second = _symbols(plan)
    for values, name, write in ((x, first, axes.set_xlabel), (y, second, axes.set_ylabel)):
        least = f" (0 at {_FLOOR:g})" if (values <= _FLOOR).any() else ""
        write(f"{name}, in medians of the group{least}")
    stays = " (high stays)" if plan.request.get("allocation", "tod") == "tod" else ""
    style(axes, f"Every unit: {first} (low goes first) against {second}{stays}")
    scale = (30 / size) ** 0.5
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.legend(loc="outside lower right", ncols=2, frameon=False, fontsize=9, markerscale=scale)  # beside the points


def _logarithmic(axes: Axes, which: str, values: FloatArray) -> None:
    """Ticks as plain numbers: 1, 2, 5 per decade where there are few decades, else one."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    few = len(values) == 0 or values.max() < 300 * values.min()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def style(axes: Axes, title: str, grid: str = "both") -> None:
    axes.set_title(title, loc="left", fontsize=10.5, color=INK, pad=6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#999999")
    if grid != "none":
        axes.grid(True, axis="both", color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, width=0.6)
    axes.tick_params(axis="x", labelsize=9)
    axes.xaxis.label.set(color=INK, fontsize=9.5)
    axes.yaxis.label.set(color=INK, fontsize=9.5)


def _shortened(names: Sequence[str], longest: int = 34) -> list[str]:
    """Names without the path that all of them share, and no longer than this."""
    split = [name.split(".") for name in names]
    levels = itertools.takewhile(
        lambda level: len(set(level)) == 1, zip(*(parts[:-1] for parts in split), strict=False)
    )
    shared = len(list(levels)) if len(split) > 1 else 0
    short = [".".join(parts[shared:]) for parts in split]
    return [name if len(name) <= longest else f"…{name[1 - longest :]}" for name in short]
