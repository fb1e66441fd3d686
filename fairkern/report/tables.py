"""Tables for people: what can be cut and what a run did. Readable at 100 columns and without a terminal."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from fairkern.plans.left_alone import held_kinds, unscored
from fairkern.plans.serving import YES
from fairkern.report.wording import (
    LABELS,
    cell,
    changed,
    empty,
    groups_said,
    measure,
    plain,
    quantity,
    shown,
    through_zero,
    timing_lines,
    whole,
)
from fairkern.types import Axis, AxisGroup, FrozenAxis, Report, UnitMap

_SHOWN_REASONS = 12
_WIDTH = 100
_NAME = 34  # as long a group's name may be and is not folded, since `ignore=` takes it


def render(table: RenderableType, width: int = _WIDTH) -> str:
    """Plain text of a table or several, without colours or control codes; no line is longer than `width`."""
    # in a notebook rich would show an empty cell beside, whatever file it is given
    console = Console(
        file=io.StringIO(), width=width, color_system=None, force_terminal=False, force_jupyter=False, highlight=False
    )
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def explain_table(units: UnitMap, per_unit_params: Sequence[float], per_unit_flops: Sequence[float]) -> RenderableType:
    """What can be cut from a model and what stays, and why.

    `per_unit_params[g]` and `per_unit_flops[g]` are what removing one unit of group `g` (of each of its sets) saves,
    an entry per group of the map. First the groups that can be cut: units, axes, consumers, costs; then those that are
    frozen, each with its reason; then the frozen axes, counted by reason.
    """
    parts: list[RenderableType] = []
    prunable = units.prunable
    total = sum(units.groups[g].total for g in prunable)
    can = titled(f"{units.model}: {groups_said(len(prunable))}, {whole(total)} units that can be cut")
    longest = max((len(units.groups[g].name) for g in prunable), default=0)
    can.add_column("group", overflow="fold", no_wrap=longest <= _NAME)
    can.add_column("kind", overflow="fold")
    for name in ("units", "axes"):
        can.add_column(name, justify="right", no_wrap=True)
    can.add_column("consumers", overflow="fold")
    for name in ("params/unit", "FLOPs/unit"):
        can.add_column(name, justify="right", no_wrap=True)
    for g in prunable:
        group = units.groups[g]
        consumers = list(dict.fromkeys(_holder(axis.axis) for axis in group.axes if axis.consumer))
        shown = _relative(consumers[0], group.name) if consumers else "–"
        more = f" +{len(consumers) - 1}" if len(consumers) > 1 else ""
        can.add_row(
            Text(group.name),
            Text(group.kind),
            _counted(group),
            str(len(group.axes)),
            Text(shown + more),
            quantity(per_unit_params[g] / group.sets),
            quantity(per_unit_flops[g] / group.sets),
        )
    parts.append(can if prunable else Text(f"{units.model}: no group can be cut\n", style="bold"))
    frozen = [group for group in units.groups if group.frozen is not None]
    if frozen:
        stays = titled(f"{groups_said(len(frozen))} frozen")
        for name in ("group", "kind"):
            stays.add_column(name, overflow="fold")
        stays.add_column("units", justify="right", no_wrap=True)
        stays.add_column("because", overflow="fold")
        for group in frozen:
            stays.add_row(Text(group.name), Text(group.kind), _counted(group), Text(str(group.frozen)))
        parts.append(stays)
    if units.frozen:
        parts.append(_axes_table(units.frozen))
    proven = "proven: pruned equals masked" if units.proven else "not proven"
    if units.sibling:
        smaller = ", ".join(f"{c.name} {c.before} → {c.after}" for c in units.sibling)
        proven += f", on a smaller model of the same class that the configuration builds ({smaller})"
    held = [f"no {kind} can be cut: {why}" for kind, why in held_kinds(units).items()]
    parts.append(Text("\n".join([proven, *held, *unscored(units), *_adapted(units), *units.notes]), style="dim"))
    return Group(*parts)


def _adapted(units: UnitMap) -> list[str]:
    """What runs differently in the pruned model so that its sizes are right."""
    lines = []
    if units.sites:
        modules = list(dict.fromkeys(s.module for s in units.sites))
        lines.append(
            f"{len(units.sites)} sizes in the code of {len(modules)} modules, first {modules[0] or 'the model'}, "
            "are substituted as they run; such models are copied, saved, compiled and exported like others"
        )
    if units.replacements:
        names = sorted({r.name for r in units.replacements})
        lines.append(f"{len(units.replacements)} modules run as fairkern's {', '.join(names)} once they are cut")
    if units.config:
        lines.append(f"config follows where layers agree: {', '.join(f.name for f in units.config)}")
    return lines


def report_table(report: Report) -> RenderableType:
    """A report: measures before, after and healed, a row per group, kinds of units of which none went, who can load
    what is left, seconds per stage, and what was asked for and chosen automatically."""
    parts: list[RenderableType] = []
    measures = titled(report.title)
    measures.add_column("", no_wrap=True)
    later = {"one shot": "after", "healed": "healed"} if report.healed else {"after": "after"}
    for name in ("before", *(column for when in later for column in (when, "change"))):
        measures.add_column(name, justify="right", no_wrap=True)
    for name in dict.fromkeys(name for taken in (report.before, report.after, report.healed) for name in taken):
        cells = [told for when in later.values() for told in (shown(report, name, when), changed(report, name, when))]
        measures.add_row(Text(LABELS.get(name, name)), shown(report, name, "before"), *cells)
    parts.append(measures)
    if report.timing:
        parts.append(Text("\n".join(timing_lines(report.timing)) + "\n"))
    if report.curve:
        parts.append(_rows_table(report.curve, "budgets that were tried"))
    if report.groups:
        parts.append(_rows_table(report.groups, groups_said(len(report.groups))))
    alone = report.choices.get("left_alone", [])
    if alone:
        parts.append(Text("\n".join(alone) + "\n"))
    serves = report.choices.get("serves", {})
    if len(set(serves.values())) > 1 or YES in serves.values():  # else it is a model that nobody serves from a folder
        parts.append(_serves_table(serves))
    biasless = report.choices.get("through_zero")
    if biasless:
        parts.append(Text(through_zero(biasless) + "\n"))
    apart = ("left_alone", "serves", "through_zero")
    choices = {name: value for name, value in report.choices.items() if name not in apart}
    if report.stages:
        stages = titled("time")
        stages.add_column("stage", no_wrap=True)
        stages.add_column("seconds", justify="right", no_wrap=True)
        for name, seconds in report.stages.items():
            stages.add_row(Text(name), f"{seconds:.3f}" if seconds < 10 else f"{seconds:.1f}")
        parts.append(stages)
    for title, entries in (
        ("asked for and chosen", choices),
        ("environment", report.environment),
        ("versions", report.versions),
    ):
        if entries:
            listed = titled(title, header=False)
            listed.add_column("", no_wrap=True)
            listed.add_column("", overflow="fold")
            for name, value in entries.items():
                if not empty(value):
                    listed.add_row(Text(LABELS.get(name, name.replace("_", " "))), Text(cell(name, value)))
            parts.append(listed)
    return Group(*parts)


def _rows_table(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    """Columns in the order of the rows' keys; what is neither a number nor a word (curves) is left out."""
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if plain(row.get(key) for row in rows)]
    table = titled(title)
    for key in keys:
        words = any(isinstance(row.get(key), str) for row in rows)
        table.add_column(
            LABELS.get(key, key.replace("_", " ")),
            justify="left" if words else "right",
            overflow="fold",
            no_wrap=not words,
        )
    for row in rows:
        told = ((key, row.get(key)) for key in keys)
        table.add_row(*(Text(measure(key, value) if key.endswith("_ms") else cell(key, value)) for key, value in told))
    return table


def _serves_table(serves: Mapping[str, str]) -> Table:
    """Servers, those together that are told the same."""
    told: dict[str, list[str]] = {}
    for server, answer in serves.items():
        told.setdefault(answer, []).append(server)
    table = titled("what is left can be loaded by", header=False)
    table.add_column("", no_wrap=True)
    table.add_column("", overflow="fold")
    for answer, servers in told.items():
        table.add_row(Text(", ".join(servers)), Text(answer if answer == YES else f"no: {answer}"))
    return table


def _axes_table(frozen: Sequence[FrozenAxis]) -> Table:
    """Axes counted by reason, most frequent first. A reason that names its own module is counted without it."""
    count: Counter[str] = Counter()
    example: dict[str, FrozenAxis] = {}
    for item in frozen:
        module = item.axis.module
        reason = item.reason.removesuffix(f" in {module}") if module else item.reason
        count[reason] += 1
        example.setdefault(reason, item)
    table = titled(f"{len(frozen)} axes stay")
    table.add_column("axes", justify="right", no_wrap=True)
    table.add_column("because it", overflow="fold")
    table.add_column("for example", overflow="fold")
    for reason, number in count.most_common(_SHOWN_REASONS):
        table.add_row(whole(number), Text(reason), Text(str(example[reason].axis)))
    rest = count.most_common()[_SHOWN_REASONS:]
    if rest:
        table.add_row(whole(sum(number for _, number in rest)), Text(f"({len(rest)} further reasons)"), "")
    return table


def titled(title: str, header: bool = True) -> Table:
    return Table(
        title=Text(title, style="bold"),
        title_justify="left",
        min_width=min(len(title), _WIDTH),  # else a title is broken where its table ends
        box=box.SIMPLE_HEAD,
        show_header=header,
        pad_edge=False,
        padding=(0, 1),
        header_style="bold",
    )


def _holder(axis: Axis) -> str:
    """The module where the tensor is its weight, else the tensor."""
    return axis.module if axis.module and axis.tensor.endswith(".weight") else axis.tensor


def _relative(name: str, other: str, longest: int = 24) -> str:
    """A long name without the path that it shares with another."""
    if len(name) <= longest:
        return name
    parts, others = name.split("."), other.split(".")
    shared = next((i for i, (a, b) in enumerate(zip(parts, others, strict=False)) if a != b), 0)
    return "…" + ".".join(parts[shared:]) if shared else name


def _counted(group: AxisGroup) -> str:
    """`512`, or `8 × 512` where each of eight experts has units of its own."""
    return f"{group.sets} × {whole(group.units)}" if group.sets > 1 else whole(group.units)
