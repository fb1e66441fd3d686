"""One model of the zoo: traced, proven, cut three ways and compared with itself masked."""

from __future__ import annotations

import copy
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import fairkern as fk
from bench.zoo.entry import Entry, prepared
from bench.zoo.reload import Reloader
from bench.zoo.rival import cut_by_rival_alone
from bench.zoo.uses import Uses, tried
from fairkern.model.nested import call_model
from fairkern.plans.build import build
from fairkern.plans.removals import random_removal
from fairkern.prove.double import in_double
from fairkern.prove.inputs import distance
from fairkern.types import IndexArray, Plan

LIMIT = 1e-9
COARSE_LIMIT = 1e-4  # of float32: rounding through a deep network stays below 1e-5, a wrong cut shows at 1e-3
LARGE = 200_000_000  # parameters above which float64 copies do not fit beside each other
HEAVY = 100_000_000  # above which those of training, with gradients, do not either


@dataclass(frozen=True)
class Row:
    """What came of one model: `error` is the worst relative error of all cuts, `problem` an exception in one line."""

    library: str
    name: str
    groups: int = 0
    prunable: int = 0
    units: int = 0
    share: float = 0.0  # of the parameters that lie on an axis that can be cut
    trace_s: float = 0.0  # of a processor, so that a busy machine does not count
    error: float = float("nan")
    sizes: str = ""  # how sizes that modules hold or pass on follow the cut
    reloads: bool | None = None  # saved and loaded in a new process: the same outputs, bit for bit
    commit: str = ""
    frozen: str = ""
    problem: str = ""
    checked: str = "float64"  # in what the error was found; float32: by the cuts alone, without the proof
    unknown: tuple[str, ...] = ()  # operators without a rule
    proof_s: float = 0.0  # of a processor: trace and proof, in float64
    rival: tuple[str, ...] | None = (
        None  # layers that Torch-Pruning cuts exactly and the map holds; None: it cannot run
    )
    uses: Uses = field(default_factory=Uses)

    @property
    def exact(self) -> bool:
        limit = LIMIT if self.checked == "float64" else COARSE_LIMIT
        return not self.problem and (self.prunable == 0 or self.error < limit)


def examine(entry: Entry, reloader: Reloader, seed: int = 0) -> Row:
    """Trace with proof, then remove 0.3, 0.7 and one unit of every group, in float64 (large models: see `Row`); save
    one of the cuts, load it in another process, and use it as people would."""
    torch.manual_seed(seed)
    try:
        model, inputs = entry.load()
        total = sum(p.numel() for p in model.parameters())
        large = total > LARGE
        start = time.process_time()
        try:
            units = _unproven(model, inputs, large)
            seconds = time.process_time() - start
            coarse = large or not _runs_in_double(model, inputs)
            model, inputs = prepared(model, inputs, double=not coarse)
            start = time.process_time()
            if units is None or not large:
                units = fk.trace(model, inputs, seed=seed, time_limit=None)
            proof = time.process_time() - start
        except fk.InputError as error:
            return Row(entry.library, entry.name, trace_s=time.process_time() - start, frozen=str(error)[:200])
        removals = [random_removal(units, fraction, seed=1) for fraction in (0.0, 0.3, 0.7)]  # 0: a unit of each
        worst = max(_error(entry, model, units, removed, inputs) for removed in removals)
        plan = build(units, removals[1])
        small = fk.apply(model, plan)
        reloads = None if coarse else reloader.agrees(entry, seed, small, plan, inputs)
        heavy = total > HEAVY
        rival = None if heavy else cut_by_rival_alone(model, units, inputs, entry.results)
        widest = max((units.groups[g].total for g in units.prunable), default=0)
        uses = Uses() if heavy else tried(entry, model, small, inputs, widest)
    except Exception as error:  # a row of the table, not the end of the run
        return Row(entry.library, entry.name, problem=f"{type(error).__name__}: {str(error).splitlines()[0][:160]}")
    on_axes = {a.axis.tensor for g in units.prunable for a in units.groups[g].axes}
    reasons = Counter(g.frozen.split(" in ")[0] for g in units.groups if g.frozen)
    return Row(
        entry.library,
        entry.name,
        groups=len(units.groups),
        prunable=len(units.prunable),
        units=sum(units.groups[g].total for g in units.prunable),
        share=sum(p.numel() for n, p in model.named_parameters() if n in on_axes) / total,
        trace_s=seconds,
        error=worst,
        sizes=_means(units, plan),
        reloads=reloads,
        frozen="; ".join([*train_only(units), *(f"{count}× {reason}" for reason, count in reasons.most_common(2))]),
        checked="float32" if coarse else "float64",
        unknown=without_rule(units),
        proof_s=proof,
        rival=rival,
        uses=uses,
    )


def _unproven(model: nn.Module, inputs: Any, large: bool) -> fk.UnitMap | None:
    """The map without the proof; None where only the proof can allow a cut and there will be one."""
    try:
        return fk.trace(model, inputs, verify=False)
    except fk.InputError:
        if large:
            raise
        return None


def _runs_in_double(model: nn.Module, inputs: Any) -> bool:
    """Whether its code bears float64 at all: a mask of float64's least number in a float32 tensor overflows."""
    model, inputs = prepared(copy.deepcopy(model), inputs)
    try:
        with torch.no_grad():
            call_model(model, inputs)
    except RuntimeError:
        return False
    return True


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


def train_only(units: fk.UnitMap) -> list[str]:
    """The share of parameters that eval mode does not reach, from the map's notes."""
    found = [re.match(r"(\d+) of (\d+) parameters are reached in train mode only", note) for note in units.notes]
    shares = [int(m[1]) / int(m[2]) for m in found if m]
    return [f"{100 * share:.0f} % of parameters are reached in train mode only (auxiliary heads)" for share in shares]


def without_rule(units: fk.UnitMap) -> tuple[str, ...]:
    """Operators that the trace met without a rule, from the map's notes."""
    said = "operators without a rule: "
    return tuple(op for note in units.notes if note.startswith(said) for op in note.removeprefix(said).split(", "))


def _error(entry: Entry, model: nn.Module, units: fk.UnitMap, removed: list[IndexArray], inputs: Any) -> float:
    """The larger one of those without and with gradients, since some modules take another path then."""
    plan = build(units, removed)
    small = fk.apply(model, plan)
    worst = 0.0
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients), in_double(model):
            torch.manual_seed(0)  # a model may draw which patches it looks at
            with fk.Plan(**vars(plan)).masked(model):
                expected = entry.results(model, inputs)
            torch.manual_seed(0)
            worst = max(worst, distance(expected, entry.results(small, inputs)))
    return worst
