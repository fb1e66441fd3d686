"""One model of the zoo: traced, proven, cut three ways and compared with itself masked."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

import fairkern as fk
from bench.zoo.catalogue import Entry
from fairkern.allocate import build, random_removal
from fairkern.compact import difference
from fairkern.nested import map_tensors
from fairkern.types import IndexArray

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
    sizes: str = ""  # how hard-coded sizes follow: by class, observed
    frozen: str = ""
    problem: str = ""

    @property
    def exact(self) -> bool:
        return not self.problem and (self.prunable == 0 or self.error < LIMIT)


def examine(entry: Entry, seed: int = 0) -> Row:
    """Trace with proof, then remove 0.3, 0.7 and one unit of every group, in float64."""
    torch.manual_seed(seed)
    try:
        model, inputs = entry.load()
        model, inputs = _stirred(model.double()), map_tensors(inputs, _double)
        start = time.perf_counter()
        try:
            fk.trace(model, inputs, verify=False)
            seconds = time.perf_counter() - start
            units = fk.trace(model, inputs, seed=seed)
        except fk.InputError as error:
            return Row(entry.library, entry.name, trace_s=time.perf_counter() - start, frozen=str(error)[:200])
        removals = [random_removal(units, fraction, seed=1) for fraction in (0.0, 0.3, 0.7)]  # 0: a unit of each
        worst = max(_error(model, units, removed, inputs) for removed in removals)
    except Exception as error:  # a row of the table, not the end of the run
        return Row(entry.library, entry.name, problem=f"{type(error).__name__}: {str(error).splitlines()[0][:160]}")
    on_axes = {a.axis.tensor for g in units.prunable for a in units.groups[g].axes}
    total = sum(p.numel() for p in model.parameters())
    reasons = Counter(g.frozen.split(" in ")[0] for g in units.groups if g.frozen)
    observed = any(a.observed and units.extents[a.extent].parts for a in units.attributes)
    return Row(
        entry.library,
        entry.name,
        groups=len(units.groups),
        prunable=len(units.prunable),
        units=sum(units.groups[g].total for g in units.prunable),
        share=sum(p.numel() for n, p in model.named_parameters() if n in on_axes) / total,
        trace_s=seconds,
        error=worst,
        sizes="class, observed" if observed else "class",
        frozen="; ".join(f"{count}× {reason}" for reason, count in reasons.most_common(2)),
    )


def _error(model: nn.Module, units: fk.UnitMap, removed: list[IndexArray], inputs: Any) -> float:
    plan = build(units, removed)
    small = fk.apply(model, plan)
    with fk.Plan(**vars(plan)).masked(model):
        return difference(model, small, inputs)


def _stirred(model: nn.Module) -> nn.Module:
    """Statistics and constant parameters drawn at random: zeros and ones hide wrong cuts."""
    generator = np.random.default_rng(0)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if (
                tensor.is_floating_point()
                and tensor.ndim == 1
                and len(tensor) > 1
                and bool((tensor == tensor[0]).all())
            ):
                low = 0.5 if float(tensor[0]) > 0 or "var" in name else -0.2
                tensor.copy_(torch.from_numpy(generator.uniform(low, low + 0.7, len(tensor))))
    return model


def _double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
