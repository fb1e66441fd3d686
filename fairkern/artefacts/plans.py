"""A plan as JSON: what goes from which axis, as runs [start, stop); a list of runs per set where there are several."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from fairkern.artefacts.branches import branches_content, read_branches, read_rows, rows_content
from fairkern.artefacts.fields import Fields
from fairkern.artefacts.file_tensors import files_content, read_files
from fairkern.artefacts.files import encoded, entries_of, json_file, plain, read_json, write_json
from fairkern.artefacts.units import read_seen, seen_content, silence
from fairkern.types import (
    AttributeChange,
    Axis,
    ConfigChange,
    IndexArray,
    Plan,
    PlanAxis,
    PlanGroup,
    Replacement,
    Silence,
    SizeChange,
)

_MOST, _MOST_PER_RUN = 2**25, 2**12  # positions of a plan: what a file may ask for that says little


def save_plan(plan: Plan, path: str | os.PathLike[str]) -> None:
    """Writes a plan atomically as readable JSON ("fairkern.plan"), to be read and not to be edited: it has a sum.

    A plan is changed in Python: `dataclasses.replace(load_plan(path), …)`.

    Raises:
        InputError: a request or result that JSON cannot hold.
        OSError: the folder cannot be made or written, the disk is full.
    """
    write_json(path, "plan", plan_payload(plan))


def load_plan(path: str | os.PathLike[str]) -> Plan:
    """Reads what `save_plan` wrote; the same plan, tuples in `request` and `result` having become lists.

    Raises:
        ArtefactError: truncated, foreign, newer, edited or inconsistent; says what was found and where.
        FileNotFoundError: there is no such file.
    """
    return read_plan_payload(read_json(path, "plan"), path)


def plan_text(plan: Plan) -> str:
    """What `save_plan` writes, for a place within somebody else's file."""
    return json_file("plan", plan_payload(plan)).decode("utf-8")


def read_plan_text(text: str, where: str) -> Plan:
    """The plan of a text that `plan_text` made and that was found in `where`. Raises ArtefactError as `load_plan`."""
    return read_plan_payload(entries_of(encoded(text, where), where, "plan"), where)


def plan_payload(plan: Plan) -> dict[str, Any]:
    """The plan as plain JSON content."""
    return {
        "model": plan.model,
        "request": plain(plan.request, "request"),
        "result": plain(plan.result, "result"),
        "groups": [
            {"name": g.name, "kind": g.kind, "units": g.units, "sets": g.sets, "removed": _content(g.removed)}
            for g in plan.groups
        ],
        "axes": [
            {
                "tensor": a.axis.tensor,
                "dim": a.axis.dim,
                "length": a.length,
                "consumer": a.consumer,
                "routes": a.silence is Silence.MINUS_INFINITY,
                "sets": len(a.removed) if a.removed.ndim == 2 else 1,
                "removed": _content(a.removed),
            }
            for a in plan.axes
        ],
        "attributes": [
            {"module": a.module, "attribute": a.attribute, "before": a.before, "after": a.after}
            for a in plan.attributes
        ],
        "sites": [
            {
                "module": s.module,
                "call": s.call,
                "function": s.function,
                "place": s.place,
                "before": s.before,
                "after": s.after,
                **({"at": s.at} if s.at else {}),
                **({"outright": True} if s.outright else {}),
            }
            for s in plan.sites
        ],
        "config": [{"name": c.name, "before": c.before, "after": c.after} for c in plan.config],
        "replacements": [{"module": r.module, "name": r.name} for r in plan.replacements],
        "lists": {path: list(names) for path, names in plan.lists.items()},
        "shapes": {name: list(shape) for name, shape in plan.shapes.items()},
        **({"seen": seen_content(plan.seen)} if plan.seen else {}),
        **({"branches": branches_content(plan.branches)} if plan.branches else {}),
        **({"rows": rows_content(plan.rows)} if plan.rows else {}),
        **({} if plan.files is None else {"files": files_content(plan.files)}),
    }


def read_plan_payload(payload: Mapping[str, Any], path: str | os.PathLike[str]) -> Plan:
    """The plan of `plan_payload`, checked; `path` is for the messages of the ArtefactError."""
    content = Fields(dict(payload), path)
    shapes = content["shapes"].shapes()
    lists = {path: entry.names() for path, entry in content.get("lists", {}).entries().items()}
    branches = read_branches(content)
    counted = {**{path: len(names) for path, names in lists.items()}, **{n: len(b) for n, b in branches.items()}}
    lengths = {**shapes, **{path: (count,) for path, count in counted.items()}}
    _refuse_vast(content)
    groups = []
    for entry in content["groups"].items():
        count, sets = entry["units"].whole(1), entry.get("sets", 1).whole(1)
        removed = _sets(entry["removed"], sets, count)
        groups.append(PlanGroup(entry["name"].text(), entry["kind"].text(), count, removed, sets))
    axes: dict[Axis, PlanAxis] = {}
    for entry in content["axes"].items():
        axis, length = Axis(entry["tensor"].text(), entry["dim"].whole()), entry["length"].whole(1)
        entry.axis_length(lengths, axis.tensor, axis.dim, length)
        if axis in axes:
            entry.fail(f"the axis {axis} comes twice")
        sets = entry.get("sets", 1).whole(1)
        if sets > 1 and (axis.dim == 0 or lengths[axis.tensor][0] != sets):
            entry.fail(f"{sets} sets on {axis}, whose tensor has the shape {lengths[axis.tensor]}")
        removed = _sets(entry["removed"], sets, length)
        silent = silence(entry["consumer"], entry.get("routes", False).flag(), axis.tensor in branches)
        axes[axis] = PlanAxis(axis, length, removed, silent)
    attributes = tuple(
        AttributeChange(a["module"].text(), a["attribute"].text(), a["before"].whole(), a["after"].whole())
        for a in content["attributes"].items()
    )
    sites = tuple(
        SizeChange(
            s["module"].text(),
            s["call"].optional_whole() if "at" in s.entries() else s["call"].whole(),
            s["function"].text(),
            s["place"].whole(),
            s["before"].whole(1),
            s["after"].whole(1),
            s.get("at", "").text(),
            s.get("outright", False).flag(),
        )
        for s in content.optional_items("sites")
    )
    seen = read_seen(content)
    replacements = tuple(
        Replacement(r["module"].text(), r["name"].text()) for r in content.optional_items("replacements")
    )
    config = tuple(
        ConfigChange(c["name"].text(), c["before"].optional_whole(), c["after"].whole(1))
        for c in content.optional_items("config")
    )
    return Plan(
        content["model"].text(),
        tuple(groups),
        tuple(axes.values()),
        attributes,
        shapes,
        content["request"].mapping(),
        content["result"].mapping(),
        sites,
        replacements,
        config,
        lists,
        seen,
        branches,
        read_rows(content),
        read_files(content, shapes),
    )


def _content(removed: IndexArray) -> list[Any]:
    """Runs, or runs for each set."""
    return [_runs(row) for row in removed] if removed.ndim == 2 else _runs(removed)


def _sets(entry: Fields, sets: int, length: int) -> IndexArray:
    """Positions `[removed]`, or `[sets, removed]` where there are several sets and any position goes."""
    if sets == 1 or not entry.items():
        return _positions(entry, length)
    rows = [_positions(item, length) for item in entry.items(sets)]
    if len({len(row) for row in rows}) > 1:
        entry.fail("the sets lose different numbers of positions")
    return np.stack(rows)


def _refuse_vast(content: Fields) -> None:
    """Complains before memory is asked for that no model's plan takes: a length is no more than what the file says."""
    runs = positions = 0
    for entry in (*content["groups"].items(), *content["axes"].items()):
        removed = entry["removed"]
        for row in [removed] if entry.get("sets", 1).whole(1) == 1 else removed.items():
            lengths = [max(stop - start, 0) for start, stop in row.pairs()]
            runs, positions = runs + len(lengths), positions + sum(lengths)
    if positions > _MOST + _MOST_PER_RUN * runs:
        content.fail(f"{positions} positions that go, in {runs} runs")


def _runs(positions: IndexArray) -> list[list[int]]:
    """Ascending positions as half-open runs: [2, 3, 4, 9] → [[2, 5], [9, 10]]."""
    array = np.asarray(positions)
    if not len(array):
        return []
    breaks = np.flatnonzero(np.diff(array) != 1)
    starts, stops = array[np.append(0, breaks + 1)], array[np.append(breaks, len(array) - 1)] + 1
    return [[start, stop] for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]


def _positions(entry: Fields, length: int) -> IndexArray:
    """The positions of runs that ascend, do not meet, and stay below `length`."""
    runs, end = [], -1
    for i, (start, stop) in enumerate(entry.pairs()):
        run = f"the run [{start}, {stop})"
        if start <= end or stop <= start:
            entry.items()[i].fail(f"{run} does not ascend: runs are [start, stop), apart and in order")
        if stop > length:
            entry.items()[i].fail(f"{run} ends beyond the length {length}")
        runs.append(np.arange(start, stop, dtype=np.int64))
        end = stop
    return np.concatenate(runs) if runs else np.zeros(0, dtype=np.int64)
