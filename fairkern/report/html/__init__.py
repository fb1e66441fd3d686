"""A report as one page: no network, no script that it could not do without, for any screen, by day and by night."""

from __future__ import annotations

import os

from fairkern.artefacts import replacing
from fairkern.artefacts.files import plain
from fairkern.errors import InputError
from fairkern.report.files import report_content
from fairkern.report.html.elements import Html, between, el, fact, join
from fairkern.report.html.figures import curve, headline, widths
from fairkern.report.html.signals import deciding, units
from fairkern.report.html.style import CSS, SCRIPT
from fairkern.report.html.told import made, stays
from fairkern.report.wording import cell, numbered
from fairkern.types import Plan, Report, Scores


def page(report: Report, plan: Plan | None = None, scores: Scores | None = None) -> str:
    """The whole page. `plan`, and the `scores` that it was made from, are drawn where they are given.

    Every number of the report stands in a `data` element that names its place in the report's file.
    Raises InputError where the plan is not the report's, or the scores do not belong to it.
    """
    if plan is not None:
        _check_plan(report, plan)
    classes = {row["group"]: row["module"] for row in report.groups if row.get("module")}
    if scores is not None:
        classes = {**numbered(scores.units.classes), **classes}
    body = el(
        "main",
        el("header", el("h1", report.title), _asked(report)),
        headline(report),
        widths(report),
        deciding(report, plan, scores, classes),
        units(plan, scores, classes),
        curve(report),
        stays(report, scores),
        made(report),
    )
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("title", report.title),
        el("style", Html(CSS)),
    )
    return "<!doctype html>\n" + el("html", join(head, el("body", body, el("script", Html(SCRIPT)))), lang="en") + "\n"


def _check_plan(report: Report, plan: Plan) -> None:
    """Raises InputError for a plan of another model, or of other units."""
    mine = {row["group"]: (row["units"], row["removed"]) for row in report.groups}
    its = {group.name: (group.total, group.removed.size) for group in plan.groups}
    for name in {**mine, **its}:
        if mine.get(name) != its.get(name):
            raise InputError(
                f"the plan is not the one that this report is of: of group {name!r} (units, removed) the report says "
                f"{mine.get(name)}, the plan {its.get(name)}; give the plan that was saved beside the report"
            )


def _asked(report: Report) -> Html | None:
    """The budget and what was folded in."""
    request = report.choices.get("request", {})
    said = [
        join(f"{name}=", fact(cell(name, request[name]), "choices", "request", name))
        for name in ("tod", "keep_params", "keep_flops", "keep_latency")
        if request.get(name) is not None
    ]
    if report.choices.get("compensation"):
        said.append(join(f"compensation: {report.choices['compensation']}"))
    return el("p", between(said, " · "), class_="asked") if said else None


def save_html(
    report: Report, path: str | os.PathLike[str], plan: Plan | None = None, scores: Scores | None = None
) -> None:
    """`page` as a file, written atomically. Raises OSError, and InputError, of what its file could not say (NaN)."""
    plain(report_content(report), "report")
    text = page(report, plan, scores)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
