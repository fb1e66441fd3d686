"""One model of the zoo: traced, proven, cut three ways and compared with itself masked."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import nn

import fairkern as fk
from bench.zoo.catalogue import Entry, prepared
from bench.zoo.reload import Reloader
from fairkern.allocate import build, random_removal
from fairkern.compact import difference
from fairkern.types import IndexArray, Plan

LIMIT = 1e-9


@dataclass(frozen=True)
class Row:
    """What came of one model: `error` is the worst relative error of all cuts, `problem` an exception in one line."""

    library: str
    name: str
    groups: int = 0
    prunable: int = 0
    units: int = 0
    share: float = 0.0  # of the parameters that lie on an axis that can be cut
    trace_s: float = 0.0
    error: float = float("nan")
    sizes: str = ""  # how sizes that modules hold or pass on follow the cut
    reloads: bool | None = None  # saved and loaded in a new process: the same outputs, bit for bit
    commit: str = ""
    frozen: str = ""
    problem: str = ""

    @property
    def exact(self) -> bool:
        return not self.problem and (self.prunable == 0 or self.error < LIMIT)


def examine(entry: Entry, reloader: Reloader, seed: int = 0) -> Row:
    """Trace with proof, then remove 0.3, 0.7 and one unit of every group, in float64; save one cut and load it."""
    try:
        model, inputs = prepared(entry, seed)
        start = time.perf_counter()
        try:
            fk.trace(model, inputs, verify=False)
            seconds = time.perf_counter() - start
            units = fk.trace(model, inputs, seed=seed)
        except fk.InputError as error:
            return Row(entry.library, entry.name, trace_s=time.perf_counter() - start, frozen=str(error)[:200])
        removals = [random_removal(units, fraction, seed=1) for fraction in (0.3, 0.7)]
        removals.append([one[:1] for one in removals[0]])
        worst = max(_error(model, units, removed, inputs) for removed in removals)
        plan = build(units, removals[0])
        reloads = reloader.agrees(entry, seed, fk.apply(model, plan), plan, inputs)
    except Exception as error:  # a row of the table, not the end of the run
        return Row(entry.library, entry.name, problem=f"{type(error).__name__}: {str(error).splitlines()[0][:160]}")
    on_axes = {a.axis.tensor for g in units.prunable for a in units.groups[g].axes}
    total = sum(p.numel() for p in model.parameters())
    reasons = Counter(g.frozen.split(" in ")[0] for g in units.groups if g.frozen)
    return Row(
        entry.library,
        entry.name,
        groups=len(units.groups),
        prunable=len(units.prunable),
        units=sum(units.groups[g].units for g in units.prunable),
        share=sum(p.numel() for n, p in model.named_parameters() if n in on_axes) / total,
        trace_s=seconds,
        error=worst,
        sizes=_means(units, plan),
        reloads=reloads,
        frozen="; ".join(f"{count}× {reason}" for reason, count in reasons.most_common(2)),
    )


def _means(units: fk.UnitMap, plan: Plan) -> str:
    """By which means sizes follow the cut: what the plan changes."""
    changed = {(a.module, a.attribute) for a in plan.attributes}
    observed = {(a.module, a.attribute) for a in units.attributes if a.observed}
    means = {
        "class": changed - observed,
        "observed": changed & observed,
        "site": plan.sites,
        "replacement": plan.replacements,
    }
    return ", ".join(name for name, used in means.items() if used)


def _error(model: nn.Module, units: fk.UnitMap, removed: list[IndexArray], inputs: Any) -> float:
    plan = build(units, removed)
    small = fk.apply(model, plan)
    with fk.Plan(**vars(plan)).masked(model):
        return difference(model, small, inputs)
