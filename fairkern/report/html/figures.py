"""What was there before and what is left: the headline figures, the widths, and what budgets that were tried gave."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from fairkern.plans.serving import plural
from fairkern.report.html.charts import Scale, dots, key, linear, path, plot, stroke
from fairkern.report.html.elements import Html, between, dotted, el, fact, join, listed, section, table
from fairkern.report.wording import LABELS, cell, changed, measure, shown, span, times, unsteady, unsteady_said, whole
from fairkern.types import Report

_MANY = 16  # groups that are listed in one column
_MARKS = ("", "kb", "kc", "kd", "ke", "kf")
_OWN = ("method", "seed", "budget", "by", "params", "flops", "latency_ms", "seconds")  # keys of rows of a curve


def label(name: str) -> str:
    return LABELS.get(name, name.replace("_", " "))


def headline(report: Report) -> Html:
    """A card for every measure: what is left, large, what there was, how far that is apart."""
    names = dict.fromkeys(name for taken in (report.before, report.after, report.healed) for name in taken)
    warned = el("p", "⚠ ", unsteady_said(report.timing), class_="warn", role="note") if unsteady(report.timing) else ""
    return join(warned, el("div", [_card(report, name) for name in names], class_="cards"))


def _card(report: Report, name: str) -> Html:
    ranges = name == "latency_ms" and unsteady(report.timing)

    def taken(when: str) -> Html:
        at = ("timing", when) if ranges and when in report.timing else (when, name)
        return fact(shown(report, name, when), *at, shows="span" if at[0] == "timing" else "")

    left = taken("after") if name in report.after else Html("–")
    lines = [el("div", left, class_="after")]
    if name in report.before:
        far = changed(report, name, "after")
        at = ("timing", "speedup") if ranges else ("after", name)
        change = join(" · ", fact(far, *at, shows="times" if ranges else "change")) if far else None
        lines.append(el("p", "before: " if name in report.after else "", taken("before"), change))
    if name in report.healed:
        far = changed(report, name, "healed")
        change = join(" · ", fact(far, "healed", name, shows="change")) if far else None
        lines.append(el("p", "healed: ", taken("healed"), change))
    if name == "latency_ms" and report.timing:
        lines += _timing(report.timing, ranges)
    return el("article", el("h3", label(name)), lines, class_="card")


def _timing(timing: Mapping[str, Any], ranges: bool) -> list[Html]:
    spans = [
        join(fact(span(timing[when]), "timing", when, shows="span"), f" {when}")
        for when in ("before", "after")
        if when in timing
    ]
    lines = [] if ranges else [el("p", "20th to 80th percentile: ", between(spans, ", "))]
    if "speedup" in timing and not ranges:
        faster = fact(times(timing["speedup"]), "timing", "speedup", shows="times")
        lines.append(el("p", faster, " as fast, pass by pass"))
    how: list[Html] = []
    if timing.get("passes"):
        turns = " passes in turn" if "speedup" in timing else " passes, one model after the other"
        how.append(join(fact(whole(timing["passes"]), "timing", "passes"), turns))
    if timing.get("threads"):
        threads = " thread" if timing["threads"] == 1 else " threads"
        how.append(join(fact(whole(timing["threads"]), "timing", "threads"), threads))
    how += [fact(said, "timing", "inputs", i) for i, said in enumerate(timing.get("inputs", []))]
    if timing.get("device"):
        how.append(join(timing["device"]["device"]))
    return [*lines, el("p", el("small", between(how, " · ")))] if how else lines


def widths(report: Report) -> Html:
    """A bar per group: the units there were, and those that are left. A scale for every kind."""
    kinds: dict[str, list[tuple[int, Mapping[str, Any]]]] = defaultdict(list)
    for i, row in enumerate(report.groups):
        if {"group", "kind", "units", "removed"} <= row.keys():
            kinds[row["kind"]].append((i, row))
    parts = []
    for kind, rows in kinds.items():
        most, widest = max(((row["units"], i) for i, row in rows), key=lambda pair: (pair[0], -pair[1]))
        said = join("the longest bar is ", fact(whole(most), "groups", widest, "units"), f" {plural(kind)}")
        title = el("h3", plural(kind).capitalize(), " ", el("small", said))
        bars = el("ul", [_bar(i, row, most) for i, row in rows], class_="bars many" if len(rows) > _MANY else "bars")
        parts.append(el("div", title, bars, class_="kind"))
    all_numbers = el("details", el("summary", "All numbers, group by group"), _rows(report.groups, "groups"))
    return section("Widths", parts, all_numbers if parts else None, says="Grey: before. Blue: what is left.")


def _bar(i: int, row: Mapping[str, Any], most: int) -> Html:
    before, left = row["units"], row["units"] - row["removed"]
    track = el(
        "span",
        el("i", style=f"width:{100 * left / before:.2f}%"),
        class_="track",
        style=f"width:{100 * before / most:.2f}%",
    )
    counts = join(fact(whole(before), "groups", i, "units"), " → ", fact(whole(left), "groups", i, shows="left"))
    return el(
        "li",
        el("span", named(row), class_="name"),
        el("span", track, class_="bar"),
        el("span", counts, class_="count"),
    )


def named(row: Mapping[str, Any]) -> Html:
    """A group's name, and the class of its module where the name is a number."""
    return join(dotted(row["group"]), el("small", f" {row['module']}") if row.get("module") else None)


def _rows(rows: tuple[Mapping[str, Any], ...], where: str) -> Html:
    """All rows with all their keys."""
    keys = list(dict.fromkeys(name for row in rows for name in row))

    def shown_cell(i: int, row: Mapping[str, Any], name: str) -> Html:
        value = row.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return join(cell(name, value))
        return fact(measure(name, value), where, i, name)

    numbers = [k for k, name in enumerate(keys) if not any(isinstance(row.get(name), str) for row in rows)]
    cells = ([shown_cell(i, row, name) for name in keys] for i, row in enumerate(rows))
    return table([label(name) for name in keys], cells, numbers)


def curve(report: Report) -> Html:
    """What was measured at every budget that was tried: a chart per measure, a line per method, a dot per seed."""
    rows = report.curve
    if not rows:
        return Html()
    keys = dict.fromkeys(name for row in rows for name in row if name not in _OWN)
    names = [name for name in keys if any(isinstance(row.get(name), (int, float)) for row in rows)]
    methods = list(dict.fromkeys(str(row.get("method", "")) for row in rows))
    marks = {method: _MARKS[i % len(_MARKS)] for i, method in enumerate(methods)}
    charts = [join(el("h3", label(name)), _measured(report, name, marks)) for name in names]
    says = "Each budget was planned from the same scores, cut and measured."
    all_rows = el("details", el("summary", "All budgets in numbers"), _rows(rows, "curve"))
    return section("Over the budget", charts, all_rows, says=says)


def _measured(report: Report, name: str, marks: Mapping[str, str]) -> Html:
    rows = [row for row in report.curve if isinstance(row.get(name), (int, float)) and "budget" in row]
    by = {str(row.get("by", "")) for row in rows}
    of = {"keep_params": "parameters", "keep_flops": "FLOPs", "keep_latency": "latency"}
    costs = " or ".join(of.get(b, b) for b in sorted(by)) or "the model"
    x = linear(0, 100, "tolerance (ToD), %" if by == {"tod"} else f"budget: share of {costs} that is kept, %")
    whole_model = report.before.get(name)
    values = [float(row[name]) for row in rows] + ([] if whole_model is None else [float(whole_model)])
    y = linear(min(values), max(values), unit(name), lambda value: measure(name, value))
    lines, entries = [], []
    if whole_model is not None:
        lines.append(stroke(f"M0 {100 - y(whole_model):.2f}H100", el("title", "the whole model"), class_="whole"))
    for method, mark in marks.items():
        own = [row for row in rows if str(row.get("method", "")) == method]
        lines.append(el("g", _line(own, name, method, x, y), class_=mark or None))
        entries.append((mark, method or "this run"))
    if whole_model is not None:
        entries.append(("whole", join("the whole model, ", fact(measure(name, whole_model), "before", name))))
    return join(key(entries), plot(x, y, lines, name=f"{label(name)} over the budget"))


def _line(rows: list[Mapping[str, Any]], name: str, method: str, x: Scale, y: Scale) -> list[Html]:
    """The means over seeds as a line, and a dot for every row."""
    seeds: dict[float, list[float]] = defaultdict(list)
    for row in rows:
        seeds[100 * row["budget"]].append(float(row[name]))
    means = sorted((budget, sum(found) / len(found)) for budget, found in seeds.items())
    drawn = [stroke(path(means, x, y), class_="curve")] if len(means) > 1 else []
    for row in rows:
        seed = f", seed {row['seed']}" if "seed" in row else ""
        kept = "tolerated" if row.get("by") == "tod" else "kept"
        said = f"{method + ', ' if method else ''}{100 * row['budget']:g} % {kept}{seed}: {measure(name, row[name])}"
        drawn.append(stroke(dots([(100 * row["budget"], row[name])], x, y), el("title", said), class_="reach"))
    return drawn


def unit(name: str) -> str:
    """A measure's name with its unit, for an axis."""
    if "accuracy" in name:
        return f"{label(name)}, %"
    return f"{label(name)}, ms" if name.endswith("_ms") else f"{label(name)} (as measured)"


def stages(report: Report) -> Html:
    pairs = [(name, fact(seconds_said(value), "stages", name)) for name, value in report.stages.items()]
    return join(el("h3", "Time"), listed(pairs)) if pairs else Html()


def seconds_said(value: float) -> str:
    return f"{value:.3f} s" if value < 10 else f"{value:.1f} s"
