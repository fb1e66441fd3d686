"""What decided how much goes of each group, and every unit by the signals that were measured of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fairkern.plans.serving import plural
from fairkern.report.deciding import (
    NAMES,
    SYMBOLS,
    Decided,
    allocation,
    by_median,
    decided,
    signal_name,
    signal_of,
    thinned,
)
from fairkern.report.html.charts import Scale, dots, key, linear, logarithmic, path, plot, stroke
from fairkern.report.html.elements import Html, between, el, fact, join, section
from fairkern.report.wording import cell
from fairkern.types import FloatArray, Plan, Report, Scores

_MOST_POINTS, _MOST_UNITS, _MANY = 80, 2500, 20  # of a curve; of all groups; curves that are drawn thin
_DECADES = 5  # that the axes of units have at most
_MARKS = ("", "kb", "kc", "kd", "ke", "kf")


def deciding(report: Report, plan: Plan | None, scores: Scores | None, classes: Mapping[str, str]) -> Html:
    """Curves of the signal that decided, the threshold, and how far each group went."""
    request = report.choices.get("request", {})
    tolerance = report.choices.get("tolerance")
    how = [
        join(el("b", name), f": {request[name]}")
        for name in ("allocation", "removal", "protect")
        if request.get(name) is not None and (name != "protect" or request.get("allocation", "tod") == "tod")
    ]
    if tolerance is not None:
        how.append(join(el("b", "threshold"), ": ", fact(cell("tolerance", tolerance), "choices", "tolerance")))
    said = el("p", between(how, " · ")) if how else Html()
    if plan is None or scores is None:
        return section("What decided", said, _left_out(plan, scores)) if said else Html()
    found = decided(scores, plan)
    if found is None:
        no_signal = "No signal decided how much goes of each group: shares or numbers of units were given."
        return section("What decided", said, el("p", no_signal))
    return section("What decided", said, _curves(plan, found, classes))


def _left_out(plan: Plan | None, scores: Scores | None) -> Html:
    missing = " and ".join(what for what, given in (("plan", plan), ("scores", scores)) if given is None)
    return el(
        "p",
        f"Curves and units are left out: this page was made without the {missing}. ",
        el("code", "fairkern report … --scores FILE --html PAGE"),
        " draws them, and in Python ",
        el("code", "report.save_html(path, scores=scores)"),
        " or ",
        el("code", "prune(…, keep_scores=True)"),
        ".",
        class_="says",
    )


def _curves(plan: Plan, found: Decided, classes: Mapping[str, str]) -> Html:
    drawn = [(group, curve) for group, curve in zip(plan.groups, found.curves, strict=True) if len(curve)]
    notes = [f"Not drawn for all groups: {found.missing}."] if found.missing else []
    if plan.request.get("serve") is not None:
        notes.append(
            "Groups that are served as layers of one size go together, by the mean of what each needs: a dot may lie "
            "beside the threshold."
        )
    note = el("p", " ".join(notes), class_="says") if notes else None
    if not drawn:
        return join(note)
    x = linear(0, 100, "units removed, % of the group")
    if found.tolerance:
        y = linear(0, 1, f"{found.what} ({found.unit})")
    else:
        shown = [float(curve[k]) for _, curve in drawn for k in thinned(curve, _MOST_POINTS)]
        threshold = [found.threshold] if found.threshold is not None else []
        y = logarithmic([*shown, *threshold], f"{found.what[0].upper()}{found.what[1:]}: {found.unit}")
    kinds = list(dict.fromkeys(group.kind for group, _ in drawn))
    marks = {kind: _MARKS[i % len(_MARKS)] for i, kind in enumerate(kinds)}
    lines: list[Html] = []
    for group, curve in drawn:
        share = 100 * np.arange(1, len(curve) + 1) / len(curve)
        count = group.removed.shape[-1]
        title = el(
            "title", f"{_called(group.name, classes)}: {group.removed.size} of {group.total} {plural(group.kind)} go"
        )
        points = [(float(share[k]), float(curve[k])) for k in thinned(curve, _MOST_POINTS)]
        marked = [stroke(path(points, x, y), class_="curve")]
        if count:
            marked.append(stroke(dots([(float(share[count - 1]), float(curve[count - 1]))], x, y), class_="reach"))
        shade = None
        if len(kinds) == 1 and len(drawn) > 1:
            shade = f"--of:color-mix(in oklab,var(--b) {100 * len(lines) / (len(drawn) - 1):.0f}%,var(--a))"
        lines.append(el("g", title, marked, class_=marks[group.kind] or None, style=shade, tabindex=0))
    entries: list[tuple[str, str | Html]] = [(marks[kind], f"a group of {plural(kind)}") for kind in kinds]
    if len(kinds) == 1 and len(drawn) > 1:
        entries = [("", f"the first group of {plural(kinds[0])}"), ("kb", "the last, with those between in between")]
    entries.append(("dot", "how far it went"))
    if found.threshold is not None:
        at = 100 - y(found.threshold)
        lines.append(stroke(f"M0 {at:.2f}H100", el("title", "threshold"), class_="threshold"))
        entries.append(
            ("threshold", join("threshold ", fact(cell("tolerance", found.threshold), "choices", "tolerance")))
        )
    chart = plot(x, y, el("g", lines, class_="many-curves" if len(drawn) > _MANY else None), name=found.what)
    return join(key(entries), chart, note)


def units(plan: Plan | None, scores: Scores | None, classes: Mapping[str, str]) -> Html:
    """Every unit: U against R where both were measured, else what removes against what protects."""
    if plan is None or scores is None:
        return Html()
    first, second = ("wasserstein", "taylor")
    if first not in scores.signals:
        first, second = signal_name(plan, "removal"), signal_name(plan, "protect")
    if not {first, second} <= scores.signals.keys() or first == second:
        return Html()
    values = [signal_of(scores, plan, name) for name in (first, second)]
    shown = [i for i in range(len(plan.groups)) if len(values[0][i]) and len(values[1][i])]
    count = sum(plan.groups[i].total for i in shown)
    if not count:
        return Html()
    every = -(-count // _MOST_UNITS)
    symbols = [SYMBOLS.get(name, name) for name in (first, second)]
    parts = [[by_median(v[i], 0.0) for i in shown] for v in values]
    x, y = (
        logarithmic(np.concatenate(part).tolist(), f"{symbol}, in medians of the group", _DECADES)
        for part, symbol in zip(parts, symbols, strict=True)
    )
    drawn = [
        _group(plan, i, u, r, (values[0][i], values[1][i]), symbols, every, x, y, classes)
        for i, u, r in zip(shown, *parts, strict=True)
    ]
    gone = sum(plan.groups[i].removed.size for i in shown)
    said = (
        _read(plan, symbols) + " A dot is a unit; it tells its name and values where a pointer rests or a finger taps."
    )
    if every > 1:
        said += f" Of so many units one in {every} is drawn, in the same places of every group."
    entries = [("stays", f"stays ({count - gone:,})"), ("goes", f"goes ({gone:,})")]
    title = f"Every unit: {symbols[0]} against {symbols[1]}"
    return section(title, key(entries), plot(x, y, el("g", drawn, class_="units"), name=title), says=said)


def _read(plan: Plan, symbols: Sequence[str]) -> str:
    """What the signals are, and whether it was by them that units went."""
    if allocation(plan) == "tod":
        return f"Low {symbols[0]} is a candidate, high {symbols[1]} is protected."
    by = signal_name(plan, "removal")
    by = NAMES.get(by, by)
    known = {
        "U": "U: how differently a unit behaves between classes.",
        "R": "R: how far the loss moves without it, to first order.",
    }
    return " ".join([*(known[symbol] for symbol in symbols if symbol in known), f"What goes was decided by the {by}."])


def _group(
    plan: Plan,
    index: int,
    u: FloatArray,
    r: FloatArray,
    values: tuple[FloatArray, FloatArray],
    symbols: Sequence[str],
    every: int,
    x: Scale,
    y: Scale,
    classes: Mapping[str, str],
) -> Html:
    group = plan.groups[index]
    gone = np.zeros(group.total, dtype=bool)
    gone[(np.atleast_2d(group.removed) + group.units * np.arange(group.sets)[:, None]).reshape(-1)] = True
    called = _called(group.name, classes)
    marks = []
    for k in sorted(range(0, group.total, every), key=lambda k: not gone[k]):  # what stays lies on top
        own = f"{k // group.units}, unit {k % group.units}" if group.sets > 1 else f"{k}"
        where = f"{called}, set {own}" if group.sets > 1 else f"{called}, {group.kind} {own}"
        told = ", ".join(f"{s} {v[k]:.3g}" for s, v in zip(symbols, values, strict=True))
        title = el("title", f"{where}: {told}; {'goes' if gone[k] else 'stays'}")
        marks.append(stroke(dots([(float(u[k]), float(r[k]))], x, y), title, class_="goes" if gone[k] else "stays"))
    return el("g", marks, tabindex=0, aria_label=called)


def _called(name: str, classes: Mapping[str, str]) -> str:
    return f"{name} {classes[name]}" if name in classes else name
