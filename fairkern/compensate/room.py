"""How many bytes a cut with its compensation is going to take beside the model and its scores, before any is taken."""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Mapping
from typing import Any

from torch import nn

from fairkern.compact.descriptors import Index, kept
from fairkern.compensate.fit import Compensation
from fairkern.compensate.refit import other_taps
from fairkern.model.tensors import named_tensors
from fairkern.types import Plan, Tap, UnitMap

_FIT = 6  # [n, n] in float64 that one fit holds: the moments, what is solved, its factor
_JOINT = 6  # more of them, where two models are compared at a tap
_LAYERS = 7  # copies of the weights that conjugate gradients hold
_ARENA = 2**26  # bytes of addresses that the allocator sets aside for a thread, of so many threads a core
_ARENAS = 8


def cut_bytes(
    model: nn.Module, plan: Plan, units: UnitMap, method: Compensation, known: Mapping[str, Any], *, inplace: bool
) -> int:
    """Without the moments that are kept already. `known`: the scores' provenance, for what batches hold.

    What is left of the model, and of each weight that is fitted its correction in float64; sequentially also a copy of
    the model, two times what every batch holds at a depth, and a correction of every weight; jointly what conjugate
    gradients hold of the weights that are left.
    """
    cuts, tensors = kept(plan), named_tensors(model)
    left = {name: _numbers(tuple(t.shape), cuts.get(name, {})) for name, t in tensors.items()}
    small = sum(left[name] * t.element_size() for name, t in tensors.items())
    total = 0 if inplace else small
    if method is Compensation.NONE:
        return total
    fitted = {item.axis.tensor for item in plan.axes if item.consumer and item.removed.size}
    total += 8 * sum(left.get(name, 0) for name in fitted)
    if method is Compensation.MEAN:
        return total
    square = max((_width(units, tap) ** 2 for g in units.scored for tap in units.groups[g].taps), default=0)
    total += 8 * _FIT * square
    if not method.compares:
        return total
    others = [tap.length**2 for tap in other_taps(model, units)]
    batches = known["samples" if known["singly"] else "batches"]
    total += sum(t.nbytes for t in tensors.values())
    total += 8 * (_JOINT * max([square, *others]) + sum(left[name] for name, t in tensors.items() if t.ndim > 1))
    total += 2 * batches * known["predicted_bytes"]["held"] + _of_threads(2 * batches)
    return total + _LAYERS * small if method is Compensation.JOINT else total


def _numbers(shape: tuple[int, ...], index: Index) -> int:
    return math.prod(len(index[d]) if d in index else n for d, n in enumerate(shape))


def _width(units: UnitMap, tap: Tap) -> int:
    """Entries of the tap's moments; none of whole experts and branches, which are not fitted."""
    if tap.side.whole:
        return 0
    kinds = {group.kind for g in units.scored for group in (units.groups[g],) if tap in group.taps}
    return tap.length // tap.positions.shape[1] if kinds == {"channel"} else tap.length


def _of_threads(threads: int) -> int:
    """Addresses that so many threads take, where the process has a limit of those."""
    if not sys.platform.startswith("linux"):
        return 0
    import resource

    if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        return 0
    stack = threading.stack_size() or max(resource.getrlimit(resource.RLIMIT_STACK)[0], 2**20)
    stack = 2**23 if stack == resource.RLIM_INFINITY else stack
    return threads * stack + min(threads, _ARENAS * (os.cpu_count() or 1)) * _ARENA
