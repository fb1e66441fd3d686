"""What stays and why, and how the plan came about: everything else that a report holds, in words and lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from fairkern.plans.left_alone import held_kinds
from fairkern.plans.serving import YES
from fairkern.report.html.elements import Html, between, dotted, el, fact, join, listed, section, table
from fairkern.report.html.figures import label, stages
from fairkern.report.wording import cell, empty, through_zero, whole
from fairkern.types import FrozenAxis, Report, Scores

_APART = (
    "left_alone",
    "serves",
    "through_zero",
    "notes",
    "scoring",
    "request",
    "tolerance",
    "not_compensated",
    "config_left",
)
_FROZEN = 40  # groups that are listed; more are counted by reason


def stays(report: Report, scores: Scores | None) -> Html:
    """Groups that no plan may cut, kinds of which none went, what compensation left, each with its reason."""
    choices = report.choices
    parts: list[Html] = []
    alone = choices.get("left_alone", [])
    if alone:
        parts.append(el("ul", [el("li", line) for line in alone], class_="notes"))
    if scores is not None:
        parts += _frozen(scores)
    served = choices.get("serves", {})
    if len(set(served.values())) > 1 or YES in served.values():
        pairs = [(server, answer if answer == YES else f"no: {answer}") for server, answer in served.items()]
        parts.append(join(el("h3", "What is left can be loaded by"), listed(pairs)))
    left = choices.get("not_compensated") or {}
    if left:
        rows = [[dotted(name), why] for name, why in left.items()]
        parts.append(join(el("h3", "Weights that were not compensated"), table(["weight", "because"], rows)))
    if choices.get("through_zero"):
        parts.append(el("p", through_zero(choices["through_zero"])))
    if choices.get("config_left"):
        fields = (el("code", name) for name in choices["config_left"])
        parts.append(el("p", "Fields of the configuration that stay as they were: ", between(fields, ", ")))
    notes = choices.get("notes") or []
    if notes:
        parts.append(join(el("h3", "Notes"), el("ul", [el("li", note) for note in notes], class_="notes")))
    return section("What stays, and why", parts)


def _frozen(scores: Scores) -> list[Html]:
    frozen = [group for group in scores.units.groups if group.frozen is not None]
    parts: list[Html] = []
    if frozen:
        rows = [[_named(g.name, scores), g.kind, whole(g.total), str(g.frozen)] for g in frozen[:_FROZEN]]
        counted = Counter(str(group.frozen) for group in frozen[_FROZEN:])
        rows += [[f"{number:,} further groups", "", "", reason] for reason, number in counted.most_common()]
        parts.append(
            join(el("h3", "Groups that no plan may cut"), table(["group", "kind", "units", "because"], rows, [2]))
        )
    held = held_kinds(scores.units)
    if held:
        parts.append(el("ul", [el("li", f"no {kind} can be cut: {why}") for kind, why in held.items()], class_="notes"))
    if scores.units.frozen:
        counted = Counter(_reason(axis) for axis in scores.units.frozen)
        rows = [[f"{number:,}", reason] for reason, number in counted.most_common()]
        summary = el("summary", f"{len(scores.units.frozen):,} axes of tensors stay, by reason")
        parts.append(el("details", summary, table(["axes", "because it"], rows, [0])))
    return parts


def _named(name: str, scores: Scores) -> Html:
    classes = scores.units.classes
    return join(dotted(name), el("small", f" {classes[name]}") if name in classes else None)


def _reason(axis: FrozenAxis) -> str:
    module = axis.axis.module
    return axis.reason.removesuffix(f" in {module}") if module else axis.reason


def made(report: Report) -> Html:
    """How it was asked for and scored, how long it took, where, with which versions and seeds."""
    choices = report.choices
    own = {name: value for name, value in choices.items() if name not in _APART}
    parts = [
        _facts("Asked for", choices.get("request", {}), "choices", "request"),
        _facts("Chosen and done", own, "choices"),
        _facts("Scoring", choices.get("scoring", {}), "choices", "scoring"),
        stages(report),
        _facts("Environment", report.environment, "environment"),
        _facts("Versions", report.versions, "versions"),
    ]
    return section("How it was made", el("div", [el("div", part) for part in parts if part], class_="pair"))


def _facts(title: str, entries: Mapping[str, Any], *where: str) -> Html:
    pairs = [(label(name), _value(name, value, (*where, name))) for name, value in entries.items() if not empty(value)]
    return join(el("h3", title), listed(pairs)) if pairs else Html()


def _value(name: str, value: Any, at: tuple[str | int, ...]) -> Html:
    """An entry as it is in the report's file, with what it holds in turn; long ones are only counted."""
    if isinstance(value, Mapping):
        if len(value) > 12:
            return join(fact(whole(len(value)), *at, shows="length"), " entries")
        given = ((key, entry) for key, entry in value.items() if not empty(entry))
        return between(
            (join(f"{key.replace('_', ' ')}: ", _value(key, entry, (*at, key))) for key, entry in given), ", "
        )
    if isinstance(value, (list, tuple)):
        if len(value) > 24:
            return join(fact(whole(len(value)), *at, shows="length"), " entries")
        return between((_value(name, entry, (*at, i)) for i, entry in enumerate(value)), ", ")
    text = cell(name, value)
    return fact(text, *at) if isinstance(value, (int, float)) and not isinstance(value, bool) else join(text)
