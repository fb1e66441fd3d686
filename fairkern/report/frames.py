"""Tables as pandas frames and as files of comma-separated values."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fairkern.artefacts import replacing
from fairkern.errors import InputError
from fairkern.plans.cost import per_unit
from fairkern.report.rows import group_rows
from fairkern.types import AxisGroup, FloatArray, IndexArray, Plan, PlanGroup, Scores

_FORMULA = ("=", "+", "-", "@", "\t", "\r")

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pandas import DataFrame


def frame(table: Mapping[str, Any]) -> DataFrame:
    """Columns by name. Raises InputError where pandas is missing."""
    try:
        import pandas
    except ImportError as error:
        raise InputError(
            f"a data frame needs pandas, which cannot be imported ({error}): pip install 'fairkern[research]'"
        ) from error
    return pandas.DataFrame(dict(table))


def unit_columns(scores: Scores, plan: Plan | None) -> dict[str, Any]:
    """A row for each unit that can be cut, as columns; see `fairkern.Scores.to_pandas`."""
    units = scores.units
    groups = [(g, units.groups[g]) for g in units.prunable]
    sizes = [group.total for _, group in groups]
    params, flops = per_unit(units)

    def each(values: Iterable[Any]) -> NDArray[Any]:
        return np.repeat(np.array(list(values)), sizes)

    def scored(values: FloatArray, size: int) -> FloatArray:
        return values if len(values) else np.full(size, np.nan)

    def numbers(of: Callable[[AxisGroup], IndexArray]) -> IndexArray:
        return np.concatenate([np.zeros(0, np.int64), *(of(group) for _, group in groups)])

    found: dict[str, Any] = {
        "group": each(group.name for _, group in groups),
        "kind": each(group.kind for _, group in groups),
        "set": numbers(lambda group: np.repeat(np.arange(group.sets), group.units)),
        "unit": numbers(lambda group: np.tile(np.arange(group.units), group.sets)),
    }
    for name, values in scores.signals.items():
        parts = [scored(values[g], group.total) for g, group in groups]
        found[name] = np.concatenate([np.zeros(0), *parts])
    found["params"] = each(params[g] / group.sets for g, group in groups)
    found["flops"] = each(flops[g] / group.sets for g, group in groups)
    if plan is not None:
        goes = {group.name: np.isin(np.arange(group.total), _numbers(group)) for group in plan.groups}
        found["removed"] = np.concatenate([np.zeros(0, bool), *(goes[group.name] for _, group in groups)])
    return found


def plan_columns(plan: Plan) -> dict[str, Any]:
    """A row for each group of a plan, as columns; see `fairkern.Plan.to_pandas`."""
    rows = [
        {
            "group": row["group"],
            "kind": row["kind"],
            "sets": group.sets,
            "units": row["units"],
            "removed": row["removed"],
            "kept": row["units"] - row["removed"],
            "rate": row["rate"],
            "threshold": row["threshold"],
            "removed_units": tuple(_numbers(group).tolist()),
        }
        for row, group in zip(group_rows(plan), plan.groups, strict=True)
    ]
    return as_columns(rows)


def _numbers(group: PlanGroup) -> IndexArray:
    """Those that go, among all units of the group."""
    return (np.arange(group.sets)[:, None] * group.units + group.removed.reshape(group.sets, -1)).reshape(-1)


def columns_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """All names that any row has, in the order in which they first come; the last of the first row stays last."""
    rows = list(rows)
    found = list(dict.fromkeys(name for row in rows for name in row))
    last = list(rows[0])[-1:] if rows else []
    return [*(name for name in found if name not in last), *last]


def as_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Rows as columns; None where a row has no such entry."""
    return {name: [row.get(name) for row in rows] for name in columns_of(rows)}


def save_csv(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """With a header, in UTF-8, written atomically; empty where a row has no such entry. Numbers come back as they are;
    a text that spreadsheets would take for a formula has an apostrophe before it.

    Raises OSError.
    """
    text = io.StringIO(newline="")
    names = columns_of(rows)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_text(name) for name in names])
    writer.writerows([_text(row.get(name)) for name in names] for row in rows)
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        file.write(text.getvalue())


def _text(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
